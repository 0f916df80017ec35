"""Tables 2, 3 and 4 from files of scores, with the paper's values beside what was measured.

A cell holds what was measured on these images, or nothing and the reason. The paper's value never takes its place: it
has rows (Markdown, LaTeX) or columns (CSV, JSON) of its own, and only where the set is the paper's own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from osdhuman.evaluation.config import EvalConfig, MethodConfig, short_title, title_of
from osdhuman.evaluation.footnotes import footnotes
from osdhuman.evaluation.results import Column, MethodScores, Result, read_scores, result_of
from osdhuman.evaluation.statistics import average_ranks, marks
from osdhuman.metrics.table import METRICS

HEADS = {2: ("Type", "Methods"), 3: ("Training Dataset",), 4: ("Type", "From HQ", "From LQ")}
CAPTIONS = {
    2: "Quantitative comparison.",
    3: "Ablation studies within different training datasets.",
    4: "Ablation studies within different prompt extractors. ``From HQ / LQ'' says what they read in training.",
}


@dataclass(frozen=True)
class Row:
    """One method: its columns of text (`heads`) and its cells, by column key."""

    method: str
    title: str
    group: str
    heads: tuple[str, ...]
    paper: str | None
    cells: dict[str, Result]
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
    scores: Mapping[tuple[str, str], MethodScores]  # (set, method) -> the files that the cells come from

    @property
    def groups(self) -> dict[str, list[Row]]:
        """Rows by group, in the order in which the groups first appear."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        return groups


def build_table(config: EvalConfig) -> Table:
    """The table that `config.table` names, from the files of scores under `config.output`."""
    scores = read_scores(config)
    columns = tuple(_columns(config))
    against = config.against or next(iter(config.methods))
    cells = {
        name: {c.key: result_of(c, *_both(scores, c.set, name, against), config, name) for c in columns}
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
    return Table(config.table, columns, tuple(rows), titles, against, tuple(footnotes(config, scores, cells)), scores)


def _both(
    scores: Mapping[tuple[str, str], MethodScores], set_: str, ours: str, theirs: str
) -> tuple[MethodScores | None, MethodScores | None]:
    return scores.get((set_, ours)), scores.get((set_, theirs))


def _columns(config: EvalConfig) -> Iterator[Column]:
    for name, set_ in config.sets.items():
        for metric in (METRICS[metric] for metric in config.metrics):
            if set_.hq is not None or not metric.reference:
                yield Column(name, metric)


def _heads(number: int, name: str, method: MethodConfig) -> tuple[str, ...]:
    title = short_title(name, method)
    if number == 4:
        return title, *("✓" if method.prompt_from == source else "" for source in ("hq", "lq"))
    return (method.group, title) if number == 2 else (title,)


def _mark(cells: dict[str, dict[str, Result]], columns: Sequence[Column], config: EvalConfig) -> None:
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


def _ranks(cells: dict[str, dict[str, Result]], columns: Sequence[Column]) -> dict[str, float]:
    """Mean rank over all columns, among the methods with any value."""
    values = {
        name: {key: cell.value for key, cell in row.items() if cell.value is not None} for name, row in cells.items()
    }
    return average_ranks(
        {name: row for name, row in values.items() if row}, {c.key: c.metric.higher_is_better for c in columns}
    )
