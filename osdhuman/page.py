"""The HTML kit of all reports: one file that needs nothing but itself, light or dark as the reader's screen asks.

Everything is rendered by jinja2 with autoescape: text that comes from files, settings or data sets cannot become
markup. The functions here return `Markup`; what they are given as plain text is escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from osdhuman import paper

environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
# The filter `tojson` writes JSON that no name of a file can end early: it escapes "<", ">" and "&". Order is kept.
environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "ensure_ascii": False, "allow_nan": False}


@dataclass(frozen=True)
class Cell:
    """A value, what the paper says of it, and whether it is the best of its column."""

    value: str
    paper: str = ""
    best: bool = False


def text(words: str) -> Markup:
    """A paragraph."""
    return _call("text", words)


def note(words: str) -> Markup:
    """A paragraph in small grey letters."""
    return _call("note", words)


def table(header: Sequence[str], rows: Sequence[Sequence[str | Cell]], main: int | None = None) -> Markup:
    """A table that scrolls sideways where the screen is narrow; row `main` is highlighted."""
    lines = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    return _call("table", header, lines, main)


def plot(light: str, dark: str, caption: str) -> Markup:
    """A drawing in both themes, as data URIs; it scrolls sideways where it would become too small to read."""
    return _call("plot", light, dark, caption)


def photograph(image: str, caption: str) -> Markup:
    """An image as data URI, as wide as the page."""
    return _call("photograph", image, caption)


def section(title: str, *blocks: str) -> Markup:
    """A card with a heading."""
    return _call("section", title, blocks)


def tiles(numbers: Sequence[tuple[str, str, str]]) -> Markup:
    """Number, what it counts, and what the paper says."""
    return _call("tiles", numbers)


def render(title: str, parts: Sequence[str]) -> str:
    """The whole page of `parts`, which the functions above made."""
    return _call("page", title, parts, f"The paper: {paper.SOURCE}.")


def render_template(name: str, **values: Any) -> str:
    """A template of the package, by its path below osdhuman/, filled."""
    return environment.get_template(name).render(values)


def _call(macro: str, *arguments: Any) -> Markup:
    return getattr(environment.get_template("page.html").module, macro)(*arguments)
