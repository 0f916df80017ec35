"""Which images a training run reads: folders, manifests and pairs.

A manifest is a list of images: .txt or .lst (one path a line), .jsonl, .json, .csv, .tsv or .parquet (a column of
paths), or the manifest.parquet that HQ-ACF writes, which gives its split `train`. Relative names are taken from the
manifest's folder and must stay below it; absolute names are taken as they are.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from osdhuman.config import Config
from osdhuman.files import printable
from osdhuman.folders import find_images
from osdhuman.image_files import MAX_PIXELS, image_suffixes


class DataConfig(Config):
    """Which photographs, and how they are cropped."""

    kind: Literal["folder", "manifest", "pairs"] = "folder"
    paths: Annotated[tuple[Path, ...], BeforeValidator(lambda paths: [paths] if isinstance(paths, str) else paths)] = ()
    column: str = "path"  # of a manifest that is a table
    max_pixels: int = Field(MAX_PIXELS, gt=0)  # images with more are skipped
    size: int = Field(512, gt=0)  # pixels a side
    shrink: tuple[float, float] | None = None  # downscale by a random factor of this range, [0.5, 1.0] say; then crop
    upscale_small: bool = True  # enlarge an image whose short side is below `size`; false skips it
    flip: bool = True  # horizontally, with probability 1/2
    workers: int = Field(4, ge=0)  # reading processes for each training process
    # where LQ is made, which does not change it; workers keep JPEG off the training process. auto: if there are any
    degrade: Literal["auto", "workers", "device"] = "auto"
    cache: bool = False  # keep the decoded images in memory as 8 bits (3 bytes a pixel)

    @property
    def degrades_in_workers(self) -> bool:
        """Whether the loader makes LQ, rather than the training process on its device."""
        return self.degrade == "workers" or (self.degrade == "auto" and self.workers > 0)

    @model_validator(mode="after")
    def _shrink_is_a_range(self) -> "DataConfig":
        if self.shrink is not None and not 0 < self.shrink[0] <= self.shrink[1] <= 1:
            raise ValueError(f"shrink must be (low, high) with 0 < low <= high <= 1, got {self.shrink}")
        return self

    @model_validator(mode="after")
    def _column_can_act(self) -> "DataConfig":
        tables = [path for path in self.paths if path.suffix.lower() not in LINES]
        if self.column != "path" and not (self.kind == "manifest" and (tables or not self.paths)):
            raise ValueError(f"column={self.column} has no effect: only kind=manifest with a table has columns")
        return self


class Pair(NamedTuple):
    """The files of one sample; `lq` is None where degradation makes it."""

    hq: Path
    lq: Path | None


def find_pairs(folder: Path) -> list[Pair]:
    """The pairs `hq/NAME`, `lq/NAME` below `folder`, matched without their suffix (hq/a.jpg and lq/a.png match).

    Raises FileNotFoundError naming the images that have no partner, ValueError where two images have one name.
    """
    hq, lq = (_by_name(folder / side) for side in Pair._fields)
    if unmatched := sorted(printable(name) for name in hq.keys() ^ lq.keys()):
        raise FileNotFoundError(f"{folder}: {len(unmatched)} image(s) lack a partner in hq/ or lq/: {_some(unmatched)}")
    return [Pair(hq[name], lq[name]) for name in sorted(hq)]


def _by_name(folder: Path) -> dict[Path, Path]:
    images: dict[Path, Path] = {}
    for path in find_images(folder):
        name = path.relative_to(folder)
        name = name.with_suffix("") if name.suffix.lower() in image_suffixes() else name
        if name in images:
            raise ValueError(f"{printable(images[name])} and {printable(path)} differ in their suffix only: rename one")
        images[name] = path
    return images


def list_samples(config: DataConfig) -> list[Pair]:
    """Every sample of every path of the config, in order; a path given twice counts twice."""
    if not config.paths:
        raise ValueError("no training images are named: give data.paths=FOLDER (or [FOLDER, FOLDER])")
    if config.kind == "pairs":
        return [pair for path in config.paths for pair in find_pairs(path)]
    find = find_images if config.kind == "folder" else lambda path: read_manifest(path, config.column)
    return [Pair(image, None) for path in config.paths for image in find(path)]


# ---------------------------------------------------------------------------------------------------------- manifests

LINES = (".txt", ".lst")  # manifests of one path a line; all others are tables


class _Fault(ValueError):
    """What is wrong with a line of a manifest."""


def read_manifest(manifest: Path, column: str = "path") -> list[Path]:
    """The images that a manifest lists, in its order. Raises ValueError with every faulty line by its number."""
    read = _READERS.get(manifest.suffix.lower())
    if read is None:
        raise ValueError(f"manifest {printable(manifest)}: expected a file that ends in {', '.join(_READERS)}")
    if not manifest.is_file():
        raise FileNotFoundError(f"manifest {printable(manifest)} does not exist")
    names: list[Path] = []
    faults: list[str] = []
    for place, row in read(manifest, column):
        try:
            names.append(_inside(manifest.parent, _name(row, column)))
        except _Fault as fault:
            faults.append(f"{place}: {fault}")
    if faults:
        raise ValueError(f"manifest {printable(manifest)}: {_some(faults, '; ')}")
    if not names:
        raise ValueError(f"manifest {printable(manifest)} lists no image")
    return names


def _name(row: Any, column: str) -> str:
    """The path that a row gives: the row itself, or its column."""
    if isinstance(row, dict):
        if column not in row:
            known = ", ".join(str(name) for name in row) or "none"
            raise _Fault(f"has no column {column!r} (found: {known}); name it with data.column=...")
        row = row[column]
    if isinstance(row, _Fault):
        raise row
    if not isinstance(row, str) or not row.strip(BLANKS):
        raise _Fault(f"expected a path, got {json.dumps(row, default=str):.80}")
    return row.strip(BLANKS)


BLANKS = " \t\r\n"  # not all that Unicode calls blank: U+0085 and U+2028 may stand in names


def _inside(root: Path, name: str) -> Path:
    """A name taken from `root`, which a relative one must not leave."""
    depth = 0
    for part in Path(name).parts:
        depth += -1 if part == ".." else 1
        if depth < 0 and not Path(name).is_absolute():
            raise _Fault(f"{name!r:.120} leaves the folder of the manifest; give the absolute path")
    if "\0" in name:
        raise _Fault(f"{name!r:.120} is no path")
    return root / name


def _some(items: list[str], separator: str = ", ", most: int = 5) -> str:
    more = f"{separator}... ({len(items)} in all)" if len(items) > most else ""
    return separator.join(items[:most]) + more


Rows = Iterator[tuple[str, Any]]  # where a row stands, for messages; a path, or a mapping with a column of paths


def _text(manifest: Path) -> str:
    data = manifest.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"manifest {printable(manifest)}: line {line} is not UTF-8") from None


def _lines(manifest: Path, column: str) -> Rows:
    for number, line in enumerate(_text(manifest).split("\n"), 1):  # not splitlines, which also splits at U+2028
        if line.strip(BLANKS):
            yield f"line {number}", line


def _json_lines(manifest: Path, column: str) -> Rows:
    for place, line in _lines(manifest, column):
        try:
            yield place, _json_row(json.loads(line))
        except ValueError as error:
            yield place, _Fault(f"is not JSON ({error})")


def _json(manifest: Path, column: str) -> Rows:
    try:
        rows = json.loads(_text(manifest))
    except json.JSONDecodeError as error:
        raise ValueError(f"manifest {printable(manifest)} is not JSON: {error}") from None
    if not isinstance(rows, list):
        raise ValueError(f"manifest {printable(manifest)}: expected a list of paths or rows, got {_kind(rows)}")
    yield from ((f"row {number}", _json_row(row)) for number, row in enumerate(rows, 1))


def _json_row(row: Any) -> Any:
    if isinstance(row, str | dict):
        return row
    return _Fault(f"expected an object with a column of paths, or a path, got {_kind(row)}")


def _kind(value: Any) -> str:
    return "null" if value is None else f"{json.dumps(value):.80}"


def _csv(manifest: Path, column: str, delimiter: str = ",") -> Rows:
    rows = csv.DictReader(io.StringIO(_text(manifest), newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        header = [name.strip(BLANKS) for name in rows.fieldnames or ()]
        rows.fieldnames = header
        if header and column not in header:
            yield "line 1", dict.fromkeys(header)
            return
        for row in rows:
            whole = None not in row and None not in row.values()
            fault = _Fault(f"has {_count(row)} field(s), expected {len(header)} as in the header")
            yield f"line {rows.line_num}", row if whole else fault
    except csv.Error as error:
        raise ValueError(f"manifest {printable(manifest)}: line {rows.line_num}: {error}") from None


def _count(row: dict) -> int:
    """Fields of a CSV row; what is too much stands as a list under None, what lacks is None."""
    return sum(value is not None for name, value in row.items() if name is not None) + len(row.get(None, ()))


def _tsv(manifest: Path, column: str) -> Rows:
    return _csv(manifest, column, "\t")


def _parquet(manifest: Path, column: str) -> Rows:
    import polars as pl

    try:
        table = pl.scan_parquet(manifest)
        names = table.collect_schema().names()
        if column not in names and {"id", "split", "crop_sha256"} <= set(names):
            crops = table.filter(pl.col("split") == "train").select("id").collect()["id"]
            yield from ((f"crop {crop}", f"{_train_folder(manifest)}/{crop}.png") for crop in crops)
        elif column not in names:
            yield "table", dict.fromkeys(names)
        else:
            values = table.select(column).collect()[column]
            yield from ((f"row {number}", value) for number, value in enumerate(values, 1))
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"manifest {printable(manifest)} is not a parquet file that can be read: {reason}") from None


def _train_folder(manifest: Path) -> str:
    """Where HQ-ACF puts the training crops: below the manifest, or beside it if that was moved into PERSONA."""
    return "train" if (manifest.parent / "train").is_dir() else "persona/train"


_READERS: dict[str, Callable[[Path, str], Rows]] = {
    **dict.fromkeys(LINES, _lines),
    **dict.fromkeys((".jsonl", ".ndjson"), _json_lines),
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
