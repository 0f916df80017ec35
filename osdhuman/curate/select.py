"""The one global step of HQ-ACF: which of all crops become PERSONA (paper 3.1, Eq. 1; 4.2).

In order: a picture that came twice is dropped once; crops of train sources are ranked by Eq. 1, the top third is
kept, then each metric has its floor; val is drawn from what is left, by picture. Crops of test sources are only
sampled within given limits. Nothing depends on the order or the number of shards: sums are exact, ties go to the
smaller id, and draws are hashes.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Discriminator, Field, Tag, model_validator

from osdhuman.config import Config
from osdhuman.curate.record import Reason
from osdhuman.files import replacing
from osdhuman.metrics.table import METRICS

# A picture is known by the first 64 bits of its sha256: of 4 million, two agree by chance once in 2 million sets.
PICTURE = pl.col("sha256").str.decode("hex").bin.slice(0, 8).bin.reinterpret(dtype=pl.UInt64, endianness="big")
BLOCK = 64  # shards that are joined with their scores at a time

Share = Annotated[float, Field(ge=0, lt=1)]


class Floor(Config):
    """What a metric must reach: a fixed `value`, or the `quantile` of the top third that may fail it."""

    value: float | None = None  # at least this; at most, where lower is better
    quantile: Share | None = None  # 0.1: the worst tenth fails

    @model_validator(mode="after")
    def _one_of_both(self) -> "Floor":
        if (self.value is None) == (self.quantile is None):
            raise ValueError("a floor is either {value: x} or {quantile: q}")
        return self


class SharedFloors(Config):
    """One quantile for all metrics, such that the floors together remove `share` of the top third.

    The paper gives no floors, but counts: a third of 440,000 crops is 146,667, of which 109,053 are left.
    """

    share: Share = 0.256  # 1 - 109,053 / 146,667; 0.228 if val's 4,216 crops come on top of the 109,053


def _kind_of_floors(floors: Any) -> str:
    return "shared" if isinstance(floors, SharedFloors) or "share" in floors else "by metric"


Floors = Annotated[
    Annotated[SharedFloors, Tag("shared")] | Annotated[dict[str, Floor], Tag("by metric")],
    Discriminator(_kind_of_floors),
]


class SelectConfig(Config):
    """How crops are ranked, selected and split. Where the paper is silent the comment says so."""

    metrics: tuple[str, ...] = Field(("clipiqa", "maniqa", "musiq", "niqe"), min_length=1)  # of Eq. 1
    top: float = Field(1 / 3, gt=0, le=1)  # the part that Eq. 1's ranking keeps
    floors: Floors = SharedFloors()  # {share: 0.256}, or {niqe: {value: 5}, musiq: {quantile: 0.1}}
    val: int = Field(4216, ge=0)  # crops
    test: int = Field(3000, ge=0)  # crops, or all within the limits where there are fewer
    test_limits: dict[str, tuple[float | None, float | None]] = Field({})  # metric: [low, high]; the paper names none
    seed: int = Field(0, ge=0)  # of the draws for val and test

    @model_validator(mode="after")
    def _floors_are_of_metrics(self) -> "SelectConfig":
        if isinstance(self.floors, dict) and (unknown := self.floors.keys() - set(self.metrics)):
            raise ValueError(f"floors of {', '.join(sorted(unknown))}, but metrics are {', '.join(self.metrics)}")
        return self


def select(out: Path, config: SelectConfig, test_sources: Sequence[str]) -> dict[str, int]:
    """Decide about every crop: `out`/crops and `out`/scores -> `out`/selection/selection.parquet, sorted by id.

    Its columns: id, every metric that was scored, `normalized` (Eq. 1; null where it does not apply), `split`,
    `reason`, `detail`. Beside it selection.json: mean and standard deviation of each metric, the floors, the counts.
    Returns the number of crops by split and reason. Raises ValueError for missing scores or metrics, and where val
    would leave nothing to train on.
    """
    crops = read_crops(out, config, test_sources)
    verdicts = Verdicts(len(crops))
    drop_duplicates(crops, find_duplicates(out, crops), verdicts)
    statistics = select_train(crops, verdicts, config)
    select_test(crops, verdicts, config)
    return write_selection(out, crops, verdicts, statistics)


class Verdicts:
    """What is decided about each crop, by its place in the order of ids."""

    def __init__(self, count: int) -> None:
        self.split, self.reason, self.detail = (np.full(count, None, object) for _ in range(3))
        self.normalized = np.full(count, np.nan)

    def undecided(self, among: np.ndarray) -> np.ndarray:
        """The places where `among` is true, and neither a split nor a reason is given."""
        return np.flatnonzero(among & np.equal(self.split, None) & np.equal(self.reason, None))

    def drop(self, places: np.ndarray, reason: Reason, detail: pl.Series | None = None) -> None:
        self.reason[places] = str(reason)
        if detail is not None:
            self.detail[places] = detail.to_list()


# ------------------------------------------------------------------------------------------------------------ reading


def read_crops(out: Path, config: SelectConfig, test_sources: Sequence[str]) -> pl.DataFrame:
    """One row per crop, sorted by id: id, `picture` and `origin` as 64 bits, is_test, and every metric."""
    shards = shards_of(out)
    if missing := [name for name in shards if not (out / "scores" / name / "scores.parquet").is_file()]:
        raise ValueError(f"{len(missing)} shard(s) have no scores ({', '.join(missing[:5])}); score them first")
    known = set(pl.read_parquet_schema(out / "scores" / shards[0] / "scores.parquet"))
    if unknown := sorted({*config.metrics, *config.test_limits} - known):
        raise ValueError(f"not scored: {', '.join(unknown)}; scores hold {', '.join(sorted(known - {'id'}))}")
    blocks = [shards[start : start + BLOCK] for start in range(0, len(shards), BLOCK)]
    crops = pl.concat([_read_block(out, block, test_sources) for block in blocks]).sort("id")
    if lacking := crops["scored"].null_count():
        raise ValueError(f"{lacking} of {len(crops)} crops have no scores; score their shards again")
    if len(crops) and (crops["id"] == crops["id"].shift()).any():
        raise ValueError("two crops have the same id; each (source, file, box id) may come once")
    return crops.drop("scored")


def shards_of(out: Path) -> list[str]:
    """Names of the shards that were cut, sorted. Raises ValueError where there are none."""
    shards = sorted(path.parent.name for path in (out / "crops").glob("*/candidates.parquet"))
    shards = [name for name in shards if name.isdecimal()]  # others are being written
    if not shards:
        raise ValueError(f"no crops in {out / 'crops'}; cut them first")
    return shards


def _read_block(out: Path, shards: Sequence[str], test_sources: Sequence[str]) -> pl.DataFrame:
    crops = _crops(out, shards).select(
        "id",
        PICTURE.alias("picture"),
        pl.concat_str("source", "file", separator="\n").hash().alias("origin"),
        pl.col("source").is_in(list(test_sources)).alias("is_test"),
    )
    scores = pl.scan_parquet([out / "scores" / name / "scores.parquet" for name in shards])
    return crops.join(scores.with_columns(scored=pl.lit(True)), on="id", how="left").collect()


def _crops(out: Path, shards: Sequence[str]) -> pl.LazyFrame:
    candidates = pl.scan_parquet([out / "crops" / name / "candidates.parquet" for name in shards])
    return candidates.filter(pl.col("reason").is_null())


# --------------------------------------------------------------------------------------------------------- duplicates


def find_duplicates(out: Path, crops: pl.DataFrame) -> pl.DataFrame:
    """Crops of pictures whose bytes also came under a smaller (source, file): id and detail, sorted by id."""
    one_origin = pl.col("origin").min() == pl.col("origin").max()
    suspects = crops.group_by("picture").agg(one_origin.alias("one")).filter(~pl.col("one"))["picture"]
    if suspects.is_empty():
        return pl.DataFrame(schema={"id": pl.String, "detail": pl.String})
    crops = _crops(out, shards_of(out)).filter(PICTURE.is_in(suspects.implode()))
    rows = crops.select("id", "sha256", "source", "file").collect().sort("source", "file")
    first = pl.struct("source", "file").first().over("sha256")
    rows = rows.with_columns(first.alias("first")).filter(pl.struct("source", "file") != pl.col("first"))
    field = pl.col("first").struct.field
    return rows.select("id", detail=pl.format("same bytes as {}/{}", field("source"), field("file"))).sort("id")


def drop_duplicates(crops: pl.DataFrame, duplicates: pl.DataFrame, verdicts: Verdicts) -> None:
    places = np.flatnonzero(crops["id"].is_in(duplicates["id"].implode()))
    verdicts.drop(places, Reason.DUPLICATE, duplicates["detail"])


# --------------------------------------------------------------------------------------------------------------- Eq. 1


def oriented(name: str, scores: np.ndarray) -> np.ndarray:
    """Scores with the sign turned where lower is better, so that more is always better."""
    return scores if higher_is_better(name) else -scores


def higher_is_better(name: str) -> bool:
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    return METRICS[name].higher_is_better


def drop_unscored(crops: pl.DataFrame, places: np.ndarray, names: Iterable[str], verdicts: Verdicts) -> np.ndarray:
    """Drop the crops that a metric could not judge, a flat one say; returns the places of the others."""
    failed = {name: ~np.isfinite(crops[name].to_numpy()[places]) for name in names}
    return drop_failed(crops, places, {name: (failed[name], "is not finite") for name in failed}, verdicts)


def drop_failed(
    crops: pl.DataFrame, places: np.ndarray, failed: Mapping[str, tuple[np.ndarray, str]], verdicts: Verdicts
) -> np.ndarray:
    """Drop the crops that a metric speaks against; returns the places of the others.

    `failed` says for each metric of which `places`, and in which words: "niqe 7.1 is ...".
    """
    fails = np.any([np.zeros(len(places), bool), *(by for by, _ in failed.values())], axis=0)
    if not fails.any():
        return places
    parts = [
        pl.when(pl.Series(by[fails])).then(
            pl.format("{} {} {}", pl.lit(name), pl.col(name).fill_null(math.nan).round_sig_figs(6), pl.lit(text))
        )
        for name, (by, text) in failed.items()
    ]
    detail = crops[places[fails]].select(pl.concat_str(parts, separator="; ", ignore_nulls=True)).to_series()
    verdicts.drop(places[fails], Reason.BELOW_FLOOR, detail)
    return places[~fails]


def select_train(crops: pl.DataFrame, verdicts: Verdicts, config: SelectConfig) -> dict[str, Any]:
    """Eq. 1, top third, floors, val; returns mean and standard deviation of the metrics, and the floors."""
    places = verdicts.undecided(~crops["is_test"].to_numpy())
    places = drop_unscored(crops, places, config.metrics, verdicts)
    scores = {name: oriented(name, crops[name].to_numpy()[places]) for name in config.metrics}
    verdicts.normalized[places], statistics = normalize(scores)
    top = top_share(verdicts.normalized[places], config.top)
    verdicts.drop(np.delete(places, top), Reason.NOT_TOP_THIRD)

    places, scores = places[top], {name: values[top] for name, values in scores.items()}
    floors = resolve_floors(config.floors, scores)
    raw = {name: float(oriented(name, np.float64(floor))) for name, floor in floors.items()}
    failed = {name: (scores[name] < floors[name], f"misses the floor {raw[name]:.6g}") for name in floors}
    places = drop_failed(crops, places, failed, verdicts)
    split_val(places, crops["picture"].to_numpy()[places], verdicts, config)
    signed = {name: {**values, "mean": oriented(name, values["mean"])} for name, values in statistics.items()}
    return {"metrics": signed, "floors": raw}


def normalize(scores: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, dict[str, float]]]:
    """Eq. 1 of oriented scores (n,): the mean over the metrics of (M - mean) / std, and mean and std of each.

    std is the population's (divided by n); a metric that is the same for all crops adds nothing. Sums are exactly
    rounded, so the result does not depend on the order of the crops, on threads or on the processor.
    """
    total, statistics = np.zeros(len(next(iter(scores.values())))), {}
    for name, values in scores.items():
        mean, std = _mean_and_std(values)
        statistics[name] = {"mean": mean, "std": std}
        if std > 0:
            total += (values - mean) / std
    return total / len(scores), statistics


def _mean_and_std(values: np.ndarray) -> tuple[float, float]:
    if len(values) == 0 or values.min() == values.max():  # where rounding could make a spread of nothing
        return (float(values[0]) if len(values) else 0.0), 0.0
    mean = math.fsum(memoryview(values)) / len(values)
    return mean, math.sqrt(math.fsum(memoryview(np.square(values - mean))) / len(values))


def top_share(normalized: np.ndarray, share: float) -> np.ndarray:
    """Places of the highest floor(n * share) values, ascending; ties go to the smaller place."""
    best = np.argsort(-normalized, kind="stable")[: whole_share(len(normalized), share)]
    return np.sort(best)


def whole_share(count: int, share: float) -> int:
    """floor(count * share), where 1/3 and 0.256 mean the fractions and not the floats beside them."""
    return int(count * Fraction(share).limit_denominator())


# -------------------------------------------------------------------------------------------------------------- floors


def resolve_floors(floors: SharedFloors | Mapping[str, Floor], scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The least oriented score of each metric that has a floor; `scores` (n,) are those of the top third."""
    count = len(next(iter(scores.values())))
    if count == 0:
        return {}
    ordered = {name: np.sort(values) for name, values in scores.items()}
    if isinstance(floors, SharedFloors):
        place = _common_place(ordered, scores, whole_share(count, floors.share))
        return {name: float(values[place]) for name, values in ordered.items()}
    return {
        name: float(oriented(name, np.float64(floor.value)))
        if floor.value is not None
        else float(ordered[name][whole_share(count, floor.quantile)])
        for name, floor in floors.items()
    }


def _common_place(ordered: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray], removed: int) -> int:
    """The place k for which the floors `ordered[metric][k]` together remove `removed` crops, or just fewer.

    A crop misses its floor where at most k scores are no better than its own; so its worst rank over the metrics says
    from which k on it is removed.
    """
    ranks = [np.searchsorted(ordered[name], values, side="right") for name, values in scores.items()]
    worst = np.min(ranks, axis=0)
    return int(np.partition(worst, removed)[removed]) - 1


# -------------------------------------------------------------------------------------------------------------- splits


def split_val(places: np.ndarray, pictures: np.ndarray, verdicts: Verdicts, config: SelectConfig) -> None:
    """Draw pictures in seeded order until val has its crops; the drawn pictures' other crops are in no split."""
    if len(places) == 0:
        return
    unique, picture = np.unique(pictures, return_inverse=True)
    drawn = np.lexsort((places, picture, seeded(config.seed, unique.tolist())[picture]))
    val, rest = drawn[: config.val], drawn[config.val :]
    shared = np.isin(picture[rest], picture[val])
    if shared.all():
        raise ValueError(
            f"val takes {config.val} of {len(places)} selected crops and leaves none to train on; choose a smaller val"
        )
    verdicts.split[places[val]] = "val"
    verdicts.drop(places[rest[shared]], Reason.HELD_OUT)
    verdicts.split[places[rest[~shared]]] = "train"


def select_test(crops: pl.DataFrame, verdicts: Verdicts, config: SelectConfig) -> None:
    """Crops of test sources within the limits, drawn in seeded order (paper 4.2); no ranking."""
    places = verdicts.undecided(crops["is_test"].to_numpy())
    places = drop_unscored(crops, places, dict.fromkeys([*config.metrics, *config.test_limits]), verdicts)
    outside = {}
    for name, (low, high) in config.test_limits.items():
        scores = crops[name].to_numpy()[places]
        below, above = low is not None and scores < low, high is not None and scores > high
        outside[name] = (np.broadcast_to(below | above, scores.shape), f"is outside [{low}, {high}]")
    places = drop_failed(crops, places, outside, verdicts)
    drawn = np.lexsort((places, seeded(config.seed, crops["id"][places].to_list())))
    verdicts.split[places[drawn[: config.test]]] = "test"
    verdicts.drop(places[drawn[config.test :]], Reason.NOT_SAMPLED)


def seeded(seed: int, keys: Iterable[Any]) -> np.ndarray:
    """64 bits per key that look random, and depend on the seed and the key alone."""
    digests = b"".join(sha256(f"{seed} {key}".encode()).digest()[:8] for key in keys)
    return np.frombuffer(digests, ">u8").astype(np.uint64)


# ------------------------------------------------------------------------------------------------------------- writing


def write_selection(out: Path, crops: pl.DataFrame, verdicts: Verdicts, statistics: dict[str, Any]) -> dict[str, int]:
    decided = {
        name: pl.Series(getattr(verdicts, name).tolist(), dtype=pl.String) for name in ("split", "reason", "detail")
    }
    normalized = pl.Series(verdicts.normalized).fill_nan(None)
    table = crops.drop("picture", "origin", "is_test").with_columns(normalized=normalized, **decided)
    counts = dict(table.group_by(pl.coalesce("split", "reason")).len().sort("split").iter_rows())
    with replacing(out / "selection" / "selection.json") as part:
        part.write_text(json.dumps({**statistics, "counts": counts}, indent=1) + "\n", encoding="utf-8")
    with replacing(out / "selection" / "selection.parquet") as part:
        table.write_parquet(part)
    return counts
