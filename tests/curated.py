"""A finished run of HQ-ACF in miniature: the files that the report reads, with drawn numbers."""

import json
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from osdhuman.curate.record import CANDIDATES, Reason, candidate_id

METRICS = {"niqe": (4.0, 0.8), "brisque": (20.0, 8.0)}
THRESHOLD, FLOOR = 150.0, 3.6


def write_run(folder: Path, sources: dict[str, int], metrics: dict[str, tuple[float, float]] = METRICS) -> Path:
    """`sources`: name -> pictures, of which each has two boxes. A fifth has no person; the blurred half of the rest is
    dropped; the third with the best NIQE is the training set, but for those that miss the floor."""
    random = np.random.default_rng(0)
    rows = [row for name, pictures in sources.items() for row in _rows(name, pictures, metrics, random)]
    table = pl.DataFrame(rows, schema=_schema(metrics))
    _select(table).write_parquet(folder / "manifest.parquet")
    table = pl.read_parquet(folder / "manifest.parquet")
    (folder / "account.json").write_text(json.dumps(_account(table, sources)))
    (folder / "thresholds.json").write_text(json.dumps(dict.fromkeys(sources, THRESHOLD)))
    (folder / "selection").mkdir()
    (folder / "selection/selection.json").write_text(json.dumps({"floors": {"niqe": FLOOR}}))
    (folder / "persona/train").mkdir(parents=True)
    for crop in table.filter(split="train")["id"].head(60):
        pixels = random.integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"persona/train/{crop}.png")
    return folder


def _schema(metrics: dict) -> dict:
    later = {"normalized": pl.Float64, "split": pl.String, "crop_sha256": pl.String}
    return {**CANDIDATES, **dict.fromkeys(metrics, pl.Float64), **later}


def _rows(source: str, pictures: int, metrics: dict, random: np.random.Generator) -> list[dict]:
    rows = []
    for number in range(pictures):
        file = f"{number:06d}.jpg"
        picture = {"source": source, "file": file, "image_id": str(number)}
        sharpness = float(random.lognormal(5.2, 0.9))
        if number % 5 == 0:
            rows.append({"id": candidate_id(source, file, None), **picture, "reason": Reason.NO_PERSON})
        elif sharpness < THRESHOLD:
            dropped = {"sharpness": sharpness, "reason": Reason.BLURRED}
            rows.append({"id": candidate_id(source, file, None), **picture, **dropped})
        else:
            for box in "ab":
                scores = {name: float(random.normal(*spread)) for name, spread in metrics.items()}
                crop = {"box_id": box, "persons": int(1 + random.poisson(2)), "crop_sha256": "0"}
                rows.append(
                    {"id": candidate_id(source, file, box), **picture, "sharpness": sharpness, **crop, **scores}
                )
    return rows


def _select(table: pl.DataFrame) -> pl.DataFrame:
    best = pl.col("niqe") <= pl.col("niqe").quantile(1 / 3)
    fate = (
        pl.when(pl.col("reason").is_not_null())
        .then("reason")
        .when(~best)
        .then(pl.lit(Reason.NOT_TOP_THIRD))
        .when(pl.col("niqe") > FLOOR)
        .then(pl.lit(Reason.BELOW_FLOOR))
    )
    table = table.with_columns(reason=fate)
    return table.with_columns(split=pl.when(pl.col("reason").is_null()).then(pl.lit("train")))


def _account(table: pl.DataFrame, sources: dict[str, int]) -> dict:
    def part(rows: pl.DataFrame, pictures: int) -> dict:
        counts = dict(rows["reason"].drop_nulls().value_counts().iter_rows())
        images = {r: counts[r] for r in Reason if r in counts and r in (Reason.NO_PERSON, Reason.BLURRED)}
        boxes = {r: counts[r] for r in Reason if r in counts and r not in images}
        train = rows.filter(split="train").height
        kept = pictures - sum(images.values())
        return {
            "images": {"in": pictures, "kept": kept, "dropped": images},
            "boxes": {"in": 2 * kept, "kept": train, "dropped": boxes},
            "splits": {"train": train, "val": 0, "test": 0},
        }

    each = {name: part(table.filter(source=name), pictures) for name, pictures in sources.items()}
    return {**part(table, sum(sources.values())), "faults": 3, "sources": each}
