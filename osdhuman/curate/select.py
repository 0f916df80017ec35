"""The one global step of HQ-ACF: which of all crops become PERSONA (paper 3.1, Eq. 1; 4.2).

In order: an image that came twice is dropped once; crops of train sources are ranked by Eq. 1, the top third is
kept, then each metric has its floor; val is drawn from what is left, by image. Crops of test sources are not ranked:
they are sampled within limits of each metric. Nothing depends on the order or the number of shards: sums are exact,
ties go to the smaller id, and draws are hashes. Arrays of scores and of places are (n,).
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

# An image is known by the first 64 bits of its sha256: of 4 million, two agree by chance once in 2 million sets.
IMAGE = pl.col("sha256").str.decode("hex").bin.slice(0, 8).bin.reinterpret(dtype=pl.UInt64, endianness="big")
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

    The paper gives no floors, but counts: a third of about 440,000 crops is 146,666 (3.1). Of these the floors leave
    113,269: 109,053 for train (3.1) and 4,216 for val, which are other crops of the same pipeline (4.2).
    """

    share: Share = 0.22771  # 1 - 113,269 / 146,666


def _kind_of_floors(floors: Any) -> str:
    return "shared" if isinstance(floors, SharedFloors) or _has_key(floors, SharedFloors) else "by metric"


def _has_key(value: Any, kind: type[Config]) -> bool:
    return isinstance(value, Mapping) and not kind.model_fields.keys().isdisjoint(value)


Floors = Annotated[
    Annotated[SharedFloors, Tag("shared")] | Annotated[dict[str, Floor], Tag("by metric")],
    Discriminator(_kind_of_floors),
]


class QuantileLimits(Config):
    """Limits of test from its own crops: the worst and the best are no real-world low quality to be restored.

    One quantile for all metrics of Eq. 1 such that the lower limits together remove the share `worst`, and another
    such that the upper limits together remove the share `best`. So at least 1 - worst - best of the crops remain, with
    any set of metrics.

    The paper says that the 3,000 images were sampled "under predefined IQA thresholds" (4.2), and gives neither metrics
    nor values; Table 2 has no row for the LQ images either. What Table 2 implies: even restored by OSDHuman, the images
    have a worse NIQE and MANIQA (4.13, 0.698) than VOC, their source, on average (3.72, 0.701; Table 1). So good crops
    were left out. With the defaults 3,000 images need 5,294 crops of test sources.
    """

    worst: Share = 0.1  # ours, as the tenth that the sharpness threshold removes of each source
    best: Share = 1 / 3  # ours: the third that Eq. 1's ranking would call high quality (3.1)

    @model_validator(mode="after")
    def _something_remains(self) -> "QuantileLimits":
        if self.worst + self.best >= 1:
            raise ValueError(f"worst and best are shares of all crops and leave none: {self.worst} + {self.best} >= 1")
        return self


def _kind_of_limits(limits: Any) -> str:
    return "quantiles" if isinstance(limits, QuantileLimits) or _has_key(limits, QuantileLimits) else "by metric"


Range = tuple[float | None, float | None]  # low, high; None is open
Limits = Annotated[
    Annotated[QuantileLimits, Tag("quantiles")] | Annotated[dict[str, Range], Tag("by metric")],
    Discriminator(_kind_of_limits),
]


class SelectConfig(Config):
    """How crops are ranked, selected and split. Where the paper is silent the comment says so."""

    metrics: tuple[str, ...] = Field(("clipiqa", "maniqa", "musiq", "niqe"), min_length=1)  # of Eq. 1
    top: float = Field(1 / 3, gt=0, le=1)  # the part that Eq. 1's ranking keeps
    floors: Floors = SharedFloors()  # {share: 0.22771}, or {niqe: {value: 5}, musiq: {quantile: 0.1}}
    val: int = Field(4216, ge=0)  # crops
    test: int = Field(3000, ge=0)  # crops, or all within the limits where there are fewer
    test_limits: Limits = QuantileLimits()  # {worst: 0.1, best: 0.3}, or {musiq: [20, 60], niqe: [null, 9]}
    seed: int = Field(0, ge=0)  # of the draws for val and test

    @model_validator(mode="after")
    def _floors_are_of_metrics(self) -> "SelectConfig":
        if isinstance(self.floors, dict) and (unknown := self.floors.keys() - set(self.metrics)):
            raise ValueError(f"floors of {', '.join(sorted(unknown))}, but metrics are {', '.join(self.metrics)}")
        return self

    @property
    def needed_metrics(self) -> tuple[str, ...]:
        """The metrics that must be scored: those of Eq. 1, and those that have limits of their own for test."""
        return tuple(dict.fromkeys([*self.metrics, *(self.test_limits if isinstance(self.test_limits, dict) else ())]))


def select(out: Path, config: SelectConfig, test_sources: Sequence[str]) -> dict[str, int]:
    """Decide about every crop: `out`/crops and `out`/scores -> `out`/selection/selection.parquet, sorted by id.

    Its columns: id, every metric that was scored, `normalized` (Eq. 1; null where it does not apply), `split`,
    `reason`, `detail`. Beside it selection.json: mean and standard deviation of each metric, the floors, the limits of
    test, the counts. Returns the number of crops by split and reason. Raises ValueError for missing scores or metrics,
    and where val would leave nothing to train on.
    """
    crops = read_crops(out, config, test_sources)
    verdicts = Verdicts(len(crops))
    drop_duplicates(crops, find_duplicates(out, crops), verdicts)
    statistics = select_train(crops, verdicts, config)
    statistics["test_limits"] = select_test(crops, verdicts, config)
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
    """One row per crop, sorted by id: id, `image` and `origin` as 64 bits, is_test, and every metric."""
    shards = shards_of(out)
    if missing := [name for name in shards if not (out / "scores" / name / "scores.parquet").is_file()]:
        raise ValueError(f"{len(missing)} shard(s) have no scores ({', '.join(missing[:5])}); score them first")
    known = set(pl.read_parquet_schema(out / "scores" / shards[0] / "scores.parquet"))
    if unknown := sorted(set(config.needed_metrics) - known):
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
        IMAGE.alias("image"),
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
    """Crops of images whose bytes also came under a smaller (source, file): id and detail, sorted by id."""
    one_origin = pl.col("origin").min() == pl.col("origin").max()
    suspects = crops.group_by("image").agg(one_origin.alias("one")).filter(~pl.col("one"))["image"]
    if suspects.is_empty():
        return pl.DataFrame(schema={"id": pl.String, "detail": pl.String})
    crops = _crops(out, shards_of(out)).filter(IMAGE.is_in(suspects.implode()))
    rows = crops.select("id", "sha256", "source", "file").collect().sort("source", "file")
    first = pl.struct("source", "file").first().over("sha256")
    rows = rows.with_columns(first.alias("first")).filter(pl.struct("source", "file") != pl.col("first"))
    field = pl.col("first").struct.field
    return rows.select("id", detail=pl.format("same bytes as {}/{}", field("source"), field("file"))).sort("id")


def drop_duplicates(crops: pl.DataFrame, duplicates: pl.DataFrame, verdicts: Verdicts) -> None:
    """Drop the crops that `find_duplicates` found."""
    places = np.flatnonzero(crops["id"].is_in(duplicates["id"].implode()))
    verdicts.drop(places, Reason.DUPLICATE, duplicates["detail"])


# --------------------------------------------------------------------------------------------------------------- Eq. 1


def oriented(name: str, scores: np.ndarray) -> np.ndarray:
    """Scores of any shape with the sign turned where lower is better, so that more is always better."""
    return scores if higher_is_better(name) else -scores


def higher_is_better(name: str) -> bool:
    """The direction of a metric; ValueError for an unknown name."""
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    return METRICS[name].higher_is_better


def drop_unscored(crops: pl.DataFrame, places: np.ndarray, names: Iterable[str], verdicts: Verdicts) -> np.ndarray:
    """Drop the crops that a metric could not judge, such as a flat one; returns the places of the rest."""
    failed = {name: ~np.isfinite(crops[name].to_numpy()[places]) for name in names}
    return drop_failed(
        crops, places, {name: (failed[name], "is not finite") for name in failed}, verdicts, Reason.BELOW_FLOOR
    )


def drop_failed(
    crops: pl.DataFrame,
    places: np.ndarray,
    failed: Mapping[str, tuple[np.ndarray, str]],
    verdicts: Verdicts,
    reason: Reason,
) -> np.ndarray:
    """Drop the crops that fail a metric's limit, for `reason`; returns the places of the rest.

    `failed` has for each metric which of `places` fail (a mask), and the words of the detail: "niqe 7.1 is ...".
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
    verdicts.drop(places[fails], reason, detail)
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
    places = drop_failed(crops, places, failed, verdicts, Reason.BELOW_FLOOR)
    split_val(places, crops["image"].to_numpy()[places], verdicts, config)
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


def split_val(places: np.ndarray, images: np.ndarray, verdicts: Verdicts, config: SelectConfig) -> None:
    """Draw images in seeded order until val has its crops; the drawn images' other crops are in no split.

    `images` (n,) tells for the crops at `places` (n,) which come from the same image. Only the last image that is drawn
    can have other crops, so fewer than one image's crops are held out.
    """
    if len(places) == 0:
        return
    unique, image = np.unique(images, return_inverse=True)
    drawn = np.lexsort((places, image, seeded(config.seed, unique.tolist())[image]))
    val, rest = drawn[: config.val], drawn[config.val :]
    shared = np.isin(image[rest], image[val])
    if shared.all():
        raise ValueError(
            f"val takes {config.val} of {len(places)} selected crops and leaves none to train on; choose a smaller val"
        )
    verdicts.split[places[val]] = "val"
    verdicts.drop(places[rest[shared]], Reason.HELD_OUT)
    verdicts.split[places[rest[~shared]]] = "train"


def select_test(crops: pl.DataFrame, verdicts: Verdicts, config: SelectConfig) -> dict[str, list[float | None]]:
    """Crops of test sources within the limits, drawn in seeded order (paper 4.2); returns [low, high] by metric."""
    places = verdicts.undecided(crops["is_test"].to_numpy())
    places = drop_unscored(crops, places, config.needed_metrics, verdicts)
    scores = {name: crops[name].to_numpy()[places] for name in config.needed_metrics}
    limits = resolve_limits(config.test_limits, {name: scores[name] for name in config.metrics})
    outside = {name: (is_outside(scores[name], *pair), f"is outside {_text(*pair)}") for name, pair in limits.items()}
    places = drop_failed(crops, places, outside, verdicts, Reason.OUTSIDE_LIMITS)
    drawn = np.lexsort((places, seeded(config.seed, crops["id"][places].to_list())))
    verdicts.split[places[drawn[: config.test]]] = "test"
    verdicts.drop(places[drawn[config.test :]], Reason.NOT_SAMPLED)
    return {name: list(pair) for name, pair in limits.items()}


def resolve_limits(limits: QuantileLimits | Mapping[str, Range], scores: Mapping[str, np.ndarray]) -> dict[str, Range]:
    """(low, high) of each metric that has limits, None where it is open; `scores` (n,) are raw, of test's crops."""
    if not isinstance(limits, QuantileLimits):
        return dict(limits)
    better = {name: oriented(name, values) for name, values in scores.items()}
    lowest = resolve_floors(SharedFloors(share=limits.worst), better)
    highest = resolve_floors(SharedFloors(share=limits.best), {name: -values for name, values in better.items()})
    pairs = {name: (lowest[name], -highest[name]) for name in lowest}
    return {name: (low, high) if higher_is_better(name) else (-high, -low) for name, (low, high) in pairs.items()}


def is_outside(scores: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    """Whether each score (n,) is below `low` or above `high`; None is open."""
    return (scores < (-math.inf if low is None else low)) | (scores > (math.inf if high is None else high))


def _text(low: float | None, high: float | None) -> str:
    return f"[{', '.join('-' if limit is None else f'{limit:.6g}' for limit in (low, high))}]"


def seeded(seed: int, keys: Iterable[Any]) -> np.ndarray:
    """64 bits per key that look random, and depend on the seed and the key alone."""
    digests = b"".join(sha256(f"{seed} {key}".encode()).digest()[:8] for key in keys)
    return np.frombuffer(digests, ">u8").astype(np.uint64)


# ------------------------------------------------------------------------------------------------------------- writing


def write_selection(out: Path, crops: pl.DataFrame, verdicts: Verdicts, statistics: dict[str, Any]) -> dict[str, int]:
    """Write selection.parquet and selection.json; returns the number of crops by split and reason."""
    decided = {
        name: pl.Series(getattr(verdicts, name).tolist(), dtype=pl.String) for name in ("split", "reason", "detail")
    }
    normalized = pl.Series(verdicts.normalized).fill_nan(None)
    table = crops.drop("image", "origin", "is_test").with_columns(normalized=normalized, **decided)
    counts = dict(table.group_by(pl.coalesce("split", "reason")).len().sort("split").iter_rows())
    with replacing(out / "selection" / "selection.json") as part:
        part.write_text(json.dumps({**statistics, "counts": counts}, indent=1) + "\n", encoding="utf-8")
    with replacing(out / "selection" / "selection.parquet") as part:
        table.write_parquet(part)
    return counts
