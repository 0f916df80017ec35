"""The end of HQ-ACF: manifest.parquet with the split or drop reason of every candidate, and totals that are checked."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import polars as pl

from osdhuman.curate.record import CANDIDATES, Reason
from osdhuman.files import replacing

BLOCK = 32  # shards that are joined at a time: memory holds a block and the selection, never the manifest
DIGESTS = pl.Schema({"id": pl.String, "crop_sha256": pl.String})
FAULT_KINDS = 10  # how many of them the summary shows
VALUE = re.compile(r"['\"{\[]|(?<![\w-])\d")  # where a fault begins to quote
ORDER = {str(reason): place for place, reason in enumerate(Reason)}


class Entry(NamedTuple):
    """One shard as it entered: its source, and the images and boxes that were read or detected."""

    source: str
    images: int
    boxes: int


class AccountError(RuntimeError):
    """Images or boxes that were lost, or came twice: a fault of the pipeline, never of the data."""


def write_manifest(out: Path, entries: Mapping[int, Entry], settings: Mapping[str, str]) -> dict:
    """Write `out`/manifest.parquet, with `settings` as the file's own metadata, and account.json; returns the account.

    The manifest has the columns of CANDIDATES, every metric, `normalized` (Eq. 1), `split`, and `crop_sha256` (of the
    PNG); `reason` is null exactly where `split` is set. Rows stand in the order of the shards. Raises AccountError
    where the sums do not add up.
    """
    tallies: dict[str, Tally] = defaultdict(Tally)
    with replacing(out / "manifest.parquet") as part:
        with _parquet_writer(part, settings) as write:
            for shards in _blocks(sorted(entries)):
                rows = outcomes(out, shards)
                for shard in shards:
                    tallies[entries[shard].source].add(entries[shard], rows.filter(shard=shard))
                write(rows.drop("shard"))
        account = make_account(tallies, json.loads((out / "images" / "done.json").read_text())["faults"])
    with replacing(out / "account.json") as part:
        part.write_text(json.dumps(account, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return account


def outcomes(out: Path, shards: Sequence[int]) -> pl.DataFrame:
    """The rows of the manifest for these shards, with a column `shard`."""
    folders = {shard: out / "crops" / f"{shard:05d}" for shard in shards}
    candidates = [
        pl.read_parquet(folder / "candidates.parquet").with_columns(shard=shard) for shard, folder in folders.items()
    ]
    digests = pl.concat([pl.read_parquet(folder / "digests.parquet") for folder in folders.values()])
    selection = pl.scan_parquet(out / "selection" / "selection.parquet").join(digests.lazy(), on="id", how="semi")
    decided = selection.collect(engine="streaming").rename({"reason": "later", "detail": "why"})
    rows = (
        pl.concat(candidates)
        .join(digests, on="id", how="left", maintain_order="left", validate="1:1")
        .join(decided, on="id", how="left", maintain_order="left", validate="1:1")
        .with_columns(pl.coalesce("reason", "later"), pl.coalesce("detail", "why"))
    )
    metrics = [
        name
        for name in rows.columns
        if name not in {*CANDIDATES, *DIGESTS, "normalized", "split", "later", "why", "shard"}
    ]
    return rows.select(*CANDIDATES, *metrics, "normalized", "split", "crop_sha256", "shard")


def _blocks(shards: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(shards), BLOCK):
        yield shards[start : start + BLOCK]


@contextmanager
def _parquet_writer(path: Path, settings: Mapping[str, str]) -> Iterator[Callable[[pl.DataFrame], None]]:
    """A function that appends a frame as one row group; in one piece, as pieces would show in the bytes."""
    import pyarrow.parquet as pq

    writer = None

    def write(frame: pl.DataFrame) -> None:
        nonlocal writer
        table = frame.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).replace_schema_metadata(settings)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


# ------------------------------------------------------------------------------------------------------------- account


class Tally:
    """What became of the images and boxes of one source."""

    def __init__(self) -> None:
        self.images_in = self.boxes_in = 0
        self.images: Counter[str | None] = Counter()  # by reason, None for those that are kept
        self.boxes: Counter[str | None] = Counter()
        self.splits: Counter[str] = Counter()

    def add(self, entry: Entry, rows: pl.DataFrame) -> None:
        """One shard: how it entered, and its rows of the manifest."""
        self.images_in += entry.images
        self.boxes_in += entry.boxes
        self.images.update(_image_reasons(rows))
        self.boxes.update(rows.filter(pl.col("box_id").is_not_null())["reason"].to_list())
        self.splits.update(rows["split"].drop_nulls().to_list())

    def summary(self) -> dict:
        return {
            "images": {"in": self.images_in, **_outcomes(self.images)},
            "boxes": {"in": self.boxes_in, **_outcomes(self.boxes)},
            "splits": {split: self.splits[split] for split in ("train", "val", "test")},
        }

    def __add__(self, other: "Tally") -> "Tally":
        total = Tally()
        total.images_in, total.boxes_in = self.images_in + other.images_in, self.boxes_in + other.boxes_in
        total.images, total.boxes = self.images + other.images, self.boxes + other.boxes
        total.splits = self.splits + other.splits
        return total


def _image_reasons(rows: pl.DataFrame) -> list[str | None]:
    """One entry per image: None if a box of it is kept, else the reason of the box that came furthest."""
    place = pl.col("reason").replace_strict(ORDER, return_dtype=pl.Int32).fill_null(len(ORDER))
    furthest = rows.group_by("source", "file", "image_id").agg(pl.col("reason").sort_by(place).last())
    return furthest["reason"].to_list()


def _outcomes(counts: Counter[str | None]) -> dict:
    dropped = {str(reason): counts[str(reason)] for reason in Reason if counts[str(reason)]}
    return {"kept": counts[None], "dropped": dropped}


def make_account(tallies: Mapping[str, Tally], faults: int) -> dict:
    """Totals and each source; raises AccountError unless in = kept + dropped, everywhere."""
    sources = {name: tally.summary() for name, tally in sorted(tallies.items())}
    for name, part in sources.items():
        for kind in ("images", "boxes"):
            _check(f"{kind} of {name}", part[kind])
    return {**sum(tallies.values(), Tally()).summary(), "faults": faults, "sources": sources}


def _check(what: str, part: dict) -> None:
    out = part["kept"] + sum(part["dropped"].values())
    if out != part["in"]:
        raise AccountError(f"{what} do not add up: {part['in']} in, {part['kept']} kept, {part['dropped']} dropped")


def summary(account: dict, out: Path) -> str:
    """The account as lines for a terminal: images, boxes and faults by reason, and the files that name each of them."""
    lines = []
    for kind in ("images", "boxes"):
        part = account[kind]
        lines.append(f"{part['in']:>9,} {kind}")
        lines += [f"{-count:>9,}   {reason}" for reason, count in part["dropped"].items()]
        lines.append(f"{part['kept']:>9,}   kept")
    lines.append("          crops: " + ", ".join(f"{count:,} {split}" for split, count in account["splits"].items()))
    if not sum(account["splits"].values()):
        lines.append("          no crop was selected; the reasons above say which gate took them")
    if account["faults"]:
        lines.append(f"{account['faults']:>9,} malformed annotations or files that are no images:")
        lines += [f"{count:>9,}   {kind}" for kind, count in fault_kinds(out / "faults.jsonl").most_common(FAULT_KINDS)]
        lines.append(f"          each is named in {out / 'faults.jsonl'}")
    return "\n".join([*lines, f"          each candidate and its reason: {out / 'manifest.parquet'}"])


def fault_kinds(path: Path) -> Counter[str]:
    """How often each kind of fault came, as `source: fault` up to the first value that the fault quotes."""
    kinds: Counter[str] = Counter()
    with path.open(encoding="utf-8") as lines:
        for fault in map(json.loads, lines):
            kinds[f"{fault['source']}: {VALUE.split(fault['fault'], maxsplit=1)[0].rstrip(' ,;:([') or 'fault'}"] += 1
    return kinds
