"""A finished run of HQ-ACF as the report reads it: the manifest as a lazy table, the small JSON files checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one below Python 3.12

from osdhuman.curate.manifest_reader import scan_manifest
from osdhuman.metrics.table import METRICS

COLUMNS = {
    **dict.fromkeys(("id", "source", "file", "box_id", "reason", "split", "crop_sha256"), pl.String()),
    "sharpness": pl.Float64(),
    "persons": pl.Int32(),
}
Part = TypedDict("Part", {"in": int, "kept": int, "dropped": dict[str, int]})


class SourceAccount(TypedDict):
    """What entered and what was kept of one source, or of all."""

    images: Part
    boxes: Part
    splits: dict[str, int]


class Account(SourceAccount):
    """account.json."""

    faults: int
    sources: dict[str, SourceAccount]


class Selection(TypedDict, total=False):
    """What the report uses of selection/selection.json."""

    floors: dict[str, float]
    test_limits: dict[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class Run:
    """A finished run folder."""

    out: Path
    account: Account
    thresholds: Mapping[str, float]  # of sharpness, by source
    floors: Mapping[str, float]
    test_limits: Mapping[str, tuple[float | None, float | None]]
    rows: pl.LazyFrame  # of manifest.parquet
    metrics: tuple[str, ...]  # that were scored

    @property
    def train(self) -> pl.LazyFrame:
        """The rows of PERSONA's training set."""
        return self.rows.filter(pl.col("split") == "train")


def read_run(out: Path) -> Run:
    """Raises FileNotFoundError where `out` is not a finished run, ValueError of one line for a file that is damaged."""
    for name in ("manifest.parquet", "account.json"):
        if not (out / name).is_file():
            raise FileNotFoundError(f"{out} is not a finished run of HQ-ACF: {name} is missing; run it to its end")
    rows = scan_manifest(out / "manifest.parquet", COLUMNS)
    columns = rows.collect_schema().names()
    selection = read_product(out / "selection" / "selection.json", Selection, out / "selection")
    return Run(
        out,
        read_product(out / "account.json", Account, out / "account.json"),
        read_product(out / "thresholds.json", dict[str, float], out / "thresholds.json"),
        selection.get("floors", {}),
        selection.get("test_limits", {}),
        rows,
        tuple(name for name in METRICS if name in columns),
    )


def read_product(path: Path, kind: Any, remade: Path) -> Any:
    """A JSON file of a run, checked against the type `kind`; {} where there is none.

    Raises ValueError of one line that says what was expected, and that the run makes `remade` again where it is
    deleted.
    """
    if not path.is_file():
        return {}
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        fault = f"{place}: {first['msg']}" if place else first["msg"]
        raise ValueError(
            f"{path} is damaged ({fault}); delete {remade} and run HQ-ACF again, which remakes it"
        ) from None
