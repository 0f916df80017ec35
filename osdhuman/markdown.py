"""Markdown tables whose cells may hold any text, such as a licence that a data set states."""

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])")  # an underscore between letters or digits is plain
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def escape(text: str) -> str:
    """Text that shows as it is within one line or cell: no markup, no HTML, no line breaks."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return _SPECIAL.sub(r"\\\g<0>", line).translate(_HTML)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns are aligned to the left, the others to the right; every cell is escaped."""
    lines = [[escape(cell) for cell in header], ["---"] * left + ["---:"] * (len(header) - left)]
    lines += [[escape(cell) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
