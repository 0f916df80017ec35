"""CSV files of the report."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from osdhuman.files import replacing


def write_csv(path: Path, rows: Iterable[Sequence]) -> None:
    """Write rows with the quoting of CSV, so that any text is one field."""
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
