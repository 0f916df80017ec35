"""The cells of a table: what was measured of a method by a metric on a set, from the files of scores, or why not."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from osdhuman import paper
from osdhuman.evaluation.config import EvalConfig, title_of
from osdhuman.evaluation.json_files import read_json
from osdhuman.evaluation.statistics import Difference, mean_interval, paired_difference
from osdhuman.metrics.folder import comparable
from osdhuman.metrics.table import Metric


@dataclass(frozen=True)
class Column:
    """One metric on one set."""

    set: str
    metric: Metric

    @property
    def key(self) -> str:
        return f"{self.set}/{self.metric.name}"


@dataclass(frozen=True)
class Result:
    """What was measured, or why nothing was. `low` and `high`: the 95 % interval, None for a metric of whole sets.

    `judged`: how many images the mean is of; None for a metric of whole sets.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    paper: float | None = None
    mark: str | None = None
    difference_to: Difference | None = None  # paired, to the table's `against`
    judged: int | None = None

    @property
    def difference(self) -> float | None:
        """Measured minus the paper's."""
        return None if self.value is None or self.paper is None else self.value - self.paper


@dataclass(frozen=True)
class MethodScores:
    """The files of one method on one set: scores/<set>/<method>.json and .parquet."""

    measurement: dict[str, Any]
    path: Path

    @cached_property
    def images(self) -> pl.DataFrame:
        """`file` and one column per metric, sorted by file."""
        path = self.path.with_suffix(".parquet")
        try:
            return pl.read_parquet(path).sort("file")
        except (pl.exceptions.PolarsError, OSError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(f"{path} is damaged ({reason}); delete it and run again") from None

    def judged(self, metric: str) -> pl.DataFrame:
        """`file` and the metric's scores, without the images that it cannot judge."""
        return self.images.select("file", pl.col(metric).fill_nan(None)).drop_nulls()

    def of(self, metric: str) -> dict[str, Any] | None:
        return self.measurement["metrics"].get(metric)


def read_scores(config: EvalConfig) -> dict[tuple[str, str], MethodScores]:
    """(set, method) -> its scores, for those that were measured.

    Raises ValueError, naming all that differs, where the methods of a set are not comparable.
    """
    found = {}
    for set_ in config.sets:
        for method in config.methods:
            path = config.output / "scores" / set_ / f"{method}.json"  # a name may hold dots: no with_suffix
            if path.is_file():
                found[set_, method] = MethodScores(read_json(path, ("set", "images", "inputs_digest", "metrics")), path)
        _require_comparable({method: scores for (of, method), scores in found.items() if of == set_}, set_)
    return found


def _require_comparable(scores: dict[str, MethodScores], set_: str) -> None:
    first, *others = scores.items() or [("", None)]
    reasons = [
        f"  {first[0]} and {name}: {reason}"
        for name, other in others
        for reason in comparable(first[1].measurement, other.measurement)
    ]
    if reasons:
        raise ValueError(
            "\n".join([f"rows of set {set_} cannot stand in one table; measure them again alike:", *reasons])
        )


def result_of(
    column: Column, ours: MethodScores | None, theirs: MethodScores | None, config: EvalConfig, method: str
) -> Result:
    """The cell of a method: the mean of its scores with an interval, the paper's value, the difference to `theirs`."""
    published = paper_value(config, column, config.methods[method].paper)
    if ours is None:
        return Result(reason=not_run(config, method), paper=published)
    name = column.metric.name
    measured = ours.of(name)
    if measured is None or "unavailable" in measured:
        reason = measured["unavailable"] if measured else f"{name} was not asked for when this row was measured"
        return Result(reason=f"unavailable: {reason}", paper=published)
    if column.metric.scope == "set":
        return Result(measured["mean"], paper=published)
    judged = ours.judged(name)
    if judged.is_empty():
        return Result(reason=f"unavailable: {name} can judge none of these images", paper=published)
    if judged[name].is_infinite().any():
        reason = f"infinite for {title_of(method, config.methods[method])}, of which some equal their references"
        return Result(reason=f"unavailable: {reason}", paper=published)
    interval = mean_interval(judged[name], seed=config.seed)
    difference = None
    if theirs is not None and theirs is not ours and name in theirs.images.columns:
        both = judged.join(theirs.judged(name), on="file", suffix=" theirs").sort("file")
        if len(both) and both[f"{name} theirs"].is_finite().all():
            difference = paired_difference(both[name], both[f"{name} theirs"], seed=config.seed)
    return Result(*map(_number, interval), paper=published, difference_to=difference, judged=len(judged))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def paper_value(config: EvalConfig, column: Column, row: str | None) -> float | None:
    """What the paper prints for this row, if the set is the paper's own; None otherwise."""
    part = config.sets[column.set].paper
    if row is None or part is None:
        return None
    if config.table == 4:
        return paper.TABLE_4[row].get(column.metric.name) if part == "test" else None
    return {2: paper.TABLE_2, 3: paper.TABLE_3}[config.table][row][part].get(column.metric.name)


def not_run(config: EvalConfig, method: str) -> str:
    """Why a method has no images: what went wrong when it was to run, else its note."""
    path = config.output / "not_run.json"
    reasons = read_json(path) if path.is_file() else {}
    return "not run: " + (reasons.get(method) or config.methods[method].note or "no images of it were measured yet")
