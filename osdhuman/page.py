"""The HTML page of a report: one file that needs nothing but itself, light or dark as the reader's screen asks."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from osdhuman import paper

STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --muted: #66727f; --faint: #d5dce3; --page: #f3f5f7; --card: #fff;
  --run: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --muted: #9aa7b4; --faint: #3a4654; --page: #0f1318;
  --card: #171d24; --run: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 "DejaVu Sans", Verdana, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
p { margin: .4rem 0 .8rem; }
.note, figcaption, footer { color: var(--muted); font-size: .85rem; }
section { background: var(--card); border: 1px solid var(--faint); border-radius: .6rem; padding: 1.2rem;
  margin: 1.2rem 0; }
figure { margin: .8rem 0; }
img { display: block; width: 100%; height: auto; }
.plot img { min-width: 36rem; }
section > :last-child { margin-bottom: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem; margin: 1.2rem 0; }
.tile { background: var(--card); border: 1px solid var(--faint); border-radius: .6rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { display: block; color: var(--muted); font-size: .8rem; }
.wide, .plot { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--muted); font-weight: normal; }
td small { display: block; color: var(--muted); font-size: .8rem; }
tr.main td { background: color-mix(in srgb, var(--run) 12%, transparent); }
""".strip()


@dataclass(frozen=True)
class Cell:
    """A value, what the paper says of it, and whether it is the best of its column."""

    value: str
    paper: str = ""
    best: bool = False

    def __str__(self) -> str:
        value = f"<b>{escape(self.value)}</b>" if self.best else escape(self.value)
        return value + (f"<small>{escape(self.paper)}</small>" if self.paper else "")


def text(words: str) -> str:
    return f"<p>{escape(words)}</p>"


def note(words: str) -> str:
    return f'<p class="note">{escape(words)}</p>'


def table(header: Sequence[str], rows: Sequence[Sequence[str | Cell]], main: int | None = None) -> str:
    """A table that scrolls sideways where the screen is narrow; row `main` is set off."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = []
    for place, row in enumerate(rows):
        cells = "".join(f"<td>{cell if isinstance(cell, Cell) else escape(cell)}</td>" for cell in row)
        lines.append(f'<tr class="main">{cells}</tr>' if place == main else f"<tr>{cells}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def plot(light: str, dark: str, caption: str) -> str:
    """A drawing in both themes, as data URIs; it scrolls sideways where it would become too small to read."""
    words = escape(caption)
    source = f'<source srcset="{dark}" media="(prefers-color-scheme: dark)">'
    image = f'<picture>{source}<img src="{light}" alt="{words}"></picture>'
    return f'<figure><div class="plot">{image}</div><figcaption>{words}</figcaption></figure>'


def photograph(image: str, caption: str) -> str:
    """A picture as data URI, as wide as the page."""
    words = escape(caption)
    return f'<figure><img src="{image}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def section(title: str, *blocks: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(blocks)}</section>"


def tiles(numbers: Sequence[tuple[str, str, str]]) -> str:
    """Number, what it counts, and what the paper says."""
    one = '<div class="tile"><b>{}</b>{}<span>{}</span></div>'
    return f'<div class="tiles">{"".join(one.format(*map(escape, number)) for number in numbers)}</div>'


def render(title: str, parts: Sequence[str]) -> str:
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>",
            f"<h1>{escape(title)}</h1>",
            *parts,
            f"<footer>The paper: {escape(paper.SOURCE)}.</footer>",
            "</main></body></html>\n",
        ]
    )
