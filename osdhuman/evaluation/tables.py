"""Tables 2, 3 and 4 from files of scores: Markdown, LaTeX, CSV and JSON, the paper's values beside what was measured.

A cell holds what was measured on these pictures, or nothing and the reason. The paper's value never takes its place:
it has rows (Markdown, LaTeX) or columns (CSV, JSON) of its own, and only where the set is the paper's own.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from osdhuman import paper
from osdhuman.evaluation.config import EvalConfig, MethodConfig
from osdhuman.evaluation.statistics import Difference, average_ranks, marks, mean_interval, paired_difference

if TYPE_CHECKING:
    from osdhuman.metrics.table import Metric

HEADS = {2: ("Type", "Methods"), 3: ("Training Dataset",), 4: ("Type", "From HQ", "From LQ")}
PAPER_IMAGES = {"val": paper.VAL, "test": paper.TEST}
CAPTIONS = {
    2: "Quantitative comparison.",
    3: "Ablation studies within different training datasets.",
    4: "Ablation studies within different prompt extractors. ``From HQ / LQ'' says what they read in training.",
}


@dataclass(frozen=True)
class Column:
    """One metric on one set."""

    set: str
    metric: "Metric"

    @property
    def key(self) -> str:
        return f"{self.set}/{self.metric.name}"


@dataclass(frozen=True)
class Cell:
    """What was measured, or why nothing was. `low` and `high`: the 95 % interval, None for a metric of whole sets.

    `judged`: how many pictures the mean is of; None for a metric of whole sets.
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
class Row:
    """One method: its columns of text (`heads`) and its cells, by column key."""

    method: str
    title: str
    group: str
    heads: tuple[str, ...]
    paper: str | None
    cells: dict[str, Cell]
    average_rank: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of the paper, measured."""

    number: int
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    set_titles: dict[str, str]
    against: str
    footnotes: tuple[str, ...]

    @property
    def groups(self) -> dict[str, list[Row]]:
        """Rows by group, in the order in which the groups first appear."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        return groups


@dataclass(frozen=True)
class Scores:
    """The files of one method on one set: scores/<set>/<method>.json and .parquet."""

    measurement: dict[str, Any]
    path: Path

    @cached_property
    def images(self) -> pl.DataFrame:
        """`file` and one column per metric, sorted by file."""
        return pl.read_parquet(self.path.with_suffix(".parquet")).sort("file")

    def judged(self, metric: str) -> pl.DataFrame:
        """`file` and the metric's scores, without the pictures that it cannot judge."""
        return self.images.select("file", pl.col(metric).fill_nan(None)).drop_nulls()

    def of(self, metric: str) -> dict[str, Any] | None:
        return self.measurement["metrics"].get(metric)


def read_scores(config: EvalConfig) -> dict[tuple[str, str], Scores]:
    """(set, method) -> its scores, for those that were measured.

    Raises ValueError, naming all that differs, where the methods of a set are not comparable.
    """
    found = {}
    for set_ in config.sets:
        for method in config.methods:
            path = config.output / "scores" / set_ / f"{method}.json"  # a name may hold dots: no with_suffix
            if path.is_file():
                found[set_, method] = Scores(json.loads(path.read_text(encoding="utf-8")), path)
        _require_comparable({method: scores for (of, method), scores in found.items() if of == set_}, set_)
    return found


def _require_comparable(scores: dict[str, Scores], set_: str) -> None:
    from osdhuman.metrics.folder import comparable

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


def build_table(config: EvalConfig) -> Table:
    """The table that `config.table` names, from the files of scores under `config.output`."""
    scores = read_scores(config)
    columns = tuple(_columns(config))
    against = config.against or next(iter(config.methods))
    cells = {
        name: {c.key: _cell(c, scores.get((c.set, name)), scores.get((c.set, against)), config, name) for c in columns}
        for name in config.methods
    }
    _mark(cells, columns, config)
    rank = _ranks(cells, columns)
    rows = (
        Row(name, title_of(name, method), method.group, _heads(config.table, name, method), method.paper, cells[name],
            rank.get(name))
        for name, method in config.methods.items()
    )  # fmt: skip
    titles = {name: set_.title or name for name, set_ in config.sets.items()}
    return Table(config.table, columns, tuple(rows), titles, against, tuple(_footnotes(config, scores, cells)))


def title_of(name: str, method: MethodConfig) -> str:
    """What a method is called where it stands alone: that it is tiny, and what its prompts were read from, included."""
    return _short_title(name, method) + (f", from {method.prompt_from.upper()}" if method.prompt_from else "")


def _short_title(name: str, method: MethodConfig) -> str:
    return (method.title or name) + (" (tiny)" if method.tiny else "")


def _columns(config: EvalConfig) -> Iterator[Column]:
    from osdhuman.metrics.table import METRICS

    for name, set_ in config.sets.items():
        for metric in (METRICS[metric] for metric in config.metrics):
            if set_.hq is not None or not metric.reference:
                yield Column(name, metric)


def _cell(column: Column, ours: Scores | None, theirs: Scores | None, config: EvalConfig, method: str) -> Cell:
    published = paper_value(config, column, config.methods[method].paper)
    if ours is None:
        return Cell(reason=not_run(config, method), paper=published)
    name = column.metric.name
    measured = ours.of(name)
    if measured is None or "unavailable" in measured:
        reason = measured["unavailable"] if measured else f"{name} was not asked for when this row was measured"
        return Cell(reason=f"unavailable: {reason}", paper=published)
    if column.metric.scope == "set":
        return Cell(measured["mean"], paper=published)
    judged = ours.judged(name)
    if judged.is_empty():
        return Cell(reason=f"unavailable: {name} can judge none of these pictures", paper=published)
    if judged[name].is_infinite().any():
        title = title_of(method, config.methods[method])
        return Cell(reason=f"unavailable: infinite for {title}, of which some equal their references", paper=published)
    interval = mean_interval(judged[name], seed=config.seed)
    difference = None
    if theirs is not None and theirs is not ours and name in theirs.images.columns:
        both = judged.join(theirs.judged(name), on="file", suffix=" theirs").sort("file")
        if len(both) and both[f"{name} theirs"].is_finite().all():
            difference = paired_difference(both[name], both[f"{name} theirs"], seed=config.seed)
    return Cell(*map(_number, interval), paper=published, difference_to=difference, judged=len(judged))


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
    reasons = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return "not run: " + (reasons.get(method) or config.methods[method].note or "no images of it were measured yet")


def _heads(number: int, name: str, method: MethodConfig) -> tuple[str, ...]:
    title = _short_title(name, method)
    if number == 4:
        return title, *("✓" if method.prompt_from == source else "" for source in ("hq", "lq"))
    return (method.group, title) if number == 2 else (title,)


def _mark(cells: dict[str, dict[str, Cell]], columns: Sequence[Column], config: EvalConfig) -> None:
    """Best and second best of each column within each group, as in Table 2."""
    groups: dict[str, list[str]] = {}
    for name, method in config.methods.items():
        groups.setdefault(method.group if config.table == 2 else "", []).append(name)
    for column in columns:
        for names in groups.values():
            found = {name: cells[name][column.key].value for name in names}
            values = {name: value for name, value in found.items() if value is not None}
            for name, mark in marks(values, column.metric.higher_is_better).items():
                cells[name][column.key] = replace(cells[name][column.key], mark=mark)


def _ranks(cells: dict[str, dict[str, Cell]], columns: Sequence[Column]) -> dict[str, float]:
    """Mean rank over all columns, among the methods with any value."""
    values = {
        name: {key: cell.value for key, cell in row.items() if cell.value is not None} for name, row in cells.items()
    }
    return average_ranks(
        {name: row for name, row in values.items() if row}, {c.key: c.metric.higher_is_better for c in columns}
    )


def _footnotes(
    config: EvalConfig, scores: dict[tuple[str, str], Scores], cells: dict[str, dict[str, Cell]]
) -> Iterator[str]:
    """What one must know to compare the numbers with others: pictures, metric variants, versions, what is missing."""
    for name, set_ in config.sets.items():
        rows = [found.measurement for (of, _), found in scores.items() if of == name]
        of = f" of the paper's {PAPER_IMAGES[set_.paper]}" if set_.paper else ""
        what = f"{rows[0]['images']}{of} images, digest {rows[0]['inputs_digest'][:16]}" if rows else "not measured yet"
        own = "" if set_.paper else "not the paper's pictures, so its values do not stand beside"
        yield "; ".join(filter(None, [f"{set_.title or name}: {what}", set_.note, own])) + "."
    for name, method in config.methods.items():
        if method.note and any(of == name for _, of in scores):
            yield f"{title_of(name, method)}: {method.note}."
    identities = {
        name: m for found in scores.values() for name, m in found.measurement["metrics"].items() if "mean" in m
    }
    yield from (_identity(name, identities[name]) for name in config.metrics if name in identities)
    yield from _partly_judged(config, scores, cells)
    yield from _missing(config, cells)
    yield "Intervals: 95 %, percentile bootstrap of the mean over images; FID has none, being one number per set."
    yield f"Paper: {paper.SOURCE}."


def _missing(config: EvalConfig, cells: dict[str, dict[str, Cell]]) -> Iterator[str]:
    """Each reason why cells are empty, with the metrics, or the methods, that it concerns."""
    from osdhuman.metrics.table import METRICS

    whom: dict[str, dict[str, None]] = {}
    for method, row in cells.items():
        for key, cell in row.items():
            of_metric = cell.reason.startswith("unavailable")
            title = METRICS[key.rpartition("/")[2]].title if of_metric else title_of(method, config.methods[method])
            if cell.reason:
                whom.setdefault(cell.reason, {})[title] = None
    yield from (f"{', '.join(titles)} {reason.splitlines()[0].rstrip('.')}." for reason, titles in whom.items())


def _partly_judged(
    config: EvalConfig, scores: dict[tuple[str, str], Scores], cells: dict[str, dict[str, Cell]]
) -> Iterator[str]:
    """Means over fewer pictures than the set has: too small, or without any texture."""
    for (set_, method), found in scores.items():
        images = found.measurement["images"]
        cells_here = {key: cell for key, cell in cells[method].items() if key.startswith(f"{set_}/")}
        few = {
            key.rpartition("/")[2]: cell.judged for key, cell in cells_here.items() if cell.judged not in (None, images)
        }
        if few:
            counts = ", ".join(f"{metric} {count}" for metric, count in few.items())
            title = title_of(method, config.methods[method])
            yield f"{title} on {config.sets[set_].title or set_}: pictures that could be judged, of {images}: {counts}."


def _identity(name: str, measured: dict[str, Any]) -> str:
    from osdhuman.metrics.table import METRICS

    weights = " ".join(digest[:12] for digest in (measured.get("weights_sha256") or "").split())
    parts = [
        measured.get("variant"),
        f"{measured.get('library')} {measured.get('version')}",
        f"weights sha256 {weights}" if weights else None,
        f"on {measured.get('color')}",
        f"border {measured['border']}" if measured.get("border") else None,
    ]
    return f"{METRICS[name].title}: {', '.join(filter(None, parts))}."
