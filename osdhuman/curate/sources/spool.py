"""Images and persons that come in any order, brought together on disk."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import polars as pl

BLOCK = 50_000  # rows in memory before they are written
MEMORY = "256MB"  # what the sort may hold; the rest of it spills to disk


class ImageRow(NamedTuple):
    """What an annotation file says of one image."""

    file: str
    width: int | None = None
    height: int | None = None
    licence: str = ""
    url: str = ""


class Person(NamedTuple):
    """What an annotation file says of one person; the corners' unit is the reader's own."""

    x0: float
    y0: float
    x1: float
    y1: float
    id: str
    ignored: bool
    label: str = ""


NO_IMAGE = (None,) * len(ImageRow._fields)
NO_PERSON = (None,) * len(Person._fields)
ROWS = pl.Schema(
    {
        "key": pl.String,
        "row": pl.Int64,
        "file": pl.String,
        **dict.fromkeys(("width", "height"), pl.Int32),
        **dict.fromkeys(("licence", "url"), pl.String),
        **dict.fromkeys(("x0", "y0", "x1", "y1"), pl.Float64),
        "id": pl.String,
        "ignored": pl.Boolean,
        "label": pl.String,
    }
)


class Spool:
    """A temporary folder of rows (in TMPDIR); `groups` gives them back by image, sorted by duckdb.

    Memory stays the same however many rows there are.
    """

    def __init__(self) -> None:
        self.folder = TemporaryDirectory(prefix="osdhuman-")
        self.block: list[tuple] = []
        self.rows = 0

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def add(self, key: object, item: ImageRow | Person) -> None:
        """One row of the image `key`, which is its id in the annotation file."""
        image, person = (item, NO_PERSON) if isinstance(item, ImageRow) else (NO_IMAGE, item)
        self.block.append((str(key), self.rows, *image, *person))
        self.rows += 1
        if len(self.block) == BLOCK:
            self._write()

    def _write(self) -> None:
        path = Path(self.folder.name) / f"{self.rows - len(self.block):015d}.parquet"  # by its first row
        pl.DataFrame(self.block, schema=ROWS, orient="row").write_parquet(path, compression="lz4")
        self.block = []

    def groups(self) -> Iterator[tuple[str, list[ImageRow], list[Person]]]:
        """(key, its images, its persons), shorter keys first, then by the alphabet: numbers stand in their order.

        More than one image, or none, is for the caller to report. Within a group rows keep the order they came in.
        """
        self._write()
        for key, rows in groupby(self._sorted(), key=lambda row: row[0]):
            images, persons = [], []
            for _, _, *values in rows:
                if values[0] is None:
                    persons.append(Person(*values[len(NO_IMAGE) :]))
                else:
                    images.append(ImageRow(*values[: len(NO_IMAGE)]))
            yield key, images, persons

    def _sorted(self) -> Iterator[tuple]:
        import duckdb

        settings = {"memory_limit": MEMORY, "temp_directory": f"{self.folder.name}/sort", "threads": 1}
        with duckdb.connect(config=settings) as connection:
            rows = connection.execute(
                "SELECT * FROM read_parquet(?) ORDER BY length(key), key, row", [f"{self.folder.name}/*.parquet"]
            )
            while block := rows.fetchmany(10_000):
                yield from block
