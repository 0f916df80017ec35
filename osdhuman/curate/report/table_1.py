"""Table 1 and Fig. 1: the quality of PERSONA beside that of the data sets, as measured and as the paper prints it.

The paper's rows are whole images that show humans. A run has scored crops that passed its gates, which are better than
what they come from; `report --whole N` measures whole images too. Every row says what was measured.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from osdhuman import markdown, page, paper
from osdhuman.curate.report.csv_file import write_csv
from osdhuman.curate.report.figures import Scores, draw_scores, save
from osdhuman.curate.report.run import Run
from osdhuman.curate.report.whole_images import SampleScores
from osdhuman.files import replacing
from osdhuman.metrics.table import METRICS

TABLE_METRICS = ("brisque", "niqe", "clipiqa", "maniqa", "musiq")  # in the order of Table 1
PAPER_NAMES = {  # how a source's name begins, in letters and digits -> its row in Table 1
    "openimages": "OID",
    "oid": "OID",
    "voc": "VOC",
    "pascalvoc": "VOC",
    "coco": "COCO",
    "object365": "Object365",
    "objects365": "Object365",
    "crowdhuman": "CrowdHuman",
    "deepfashion": "DeepFashion",
    "idesigner": "iDesigner",
    "persona": "PERSONA",
}
PERSONA = "PERSONA train"
CROPS, CROPS_OF_TRAIN, FOLDER = "crops before selection", "crops of the training set", "images of a folder"
NOT_SCORED = "this run did not score it (score.metrics of its configuration)"
FOLDER_NAME = re.compile(r"\w[\w .-]*")
CROPS_ONLY = (
    "The rows of this run's sources are crops that passed its gates, before selection. The paper's, in small grey "
    "numbers, are whole images that show humans: use report --whole N to measure those."
)
WITH_WHOLE = (
    "As in the paper, the rows of the sources are whole images that show humans, drawn by chance; the crops that "
    "passed this run's gates stand below them. Small grey numbers are the paper's."
)


def table_1(
    run: Run, folders: Mapping[str, Path], whole: Sequence[SampleScores], scores: Path, device: str
) -> tuple[list[Scores], dict[str, str]]:
    """Rows of Table 1: the paper's data sets, then others, PERSONA last; and why a metric is missing.

    A source has the means of `whole` images where these were scored, and of all its crops that were scored, before
    selection; PERSONA those of the crops of its training set. Folders are measured as they are.
    """
    metrics = scored_metrics(run)
    missing = {name: NOT_SCORED for name in TABLE_METRICS if name not in metrics}
    rows = [whole_row(part) for part in whole] + crop_rows(run.rows, metrics, pl.col("source"), CROPS)
    for name, folder in folders.items():
        row, unavailable = measure_folder(name, folder, scores, device)
        rows.append(row)
        missing |= unavailable
    rows = [without_paper(row) if whole and row.unit == CROPS else row for row in rows]
    shown = {paper_name(row.name) for row in rows}
    rows += [Scores(name, 0, {}, paper.TABLE_1[name]) for name in paper.TABLE_1 if name not in {*shown, "PERSONA"}]
    order = [*paper.TABLE_1, None]
    rows.sort(key=lambda row: (order.index(paper_name(row.name)), row.name))
    persona = crop_rows(run.train, metrics, pl.lit(PERSONA), CROPS_OF_TRAIN)
    return rows + (persona or [Scores(PERSONA, 0, {}, paper.TABLE_1["PERSONA"])]), missing


def scored_metrics(run: Run) -> list[str]:
    """Metrics of Table 1 that the run has scored."""
    return [name for name in TABLE_METRICS if name in run.metrics]


def whole_row(scored: SampleScores) -> Scores:
    """The means of whole images of one source."""
    sample, count = scored.sample, len(scored.values)
    unit = f"whole images, drawn from {sample.among:,}" if len(sample.files) < sample.among else "all whole images"
    unit = unit if count else f"none of {len(sample.files):,} whole images could be scored"
    return Scores(sample.source, count, scored.means(), paper_row(sample.source), unit)


def crop_rows(rows: pl.LazyFrame, metrics: Sequence[str], name: pl.Expr, unit: str) -> list[Scores]:
    """For each name that has scored crops, their number and the mean of each metric."""
    rows = rows.with_columns(pl.col(metrics).fill_nan(None))  # NaN: the metric could not judge this crop
    scored = rows.filter(pl.any_horizontal(pl.col(metrics).is_not_null())) if metrics else rows.clear()
    means = scored.group_by(name.alias("name")).agg(pl.col(metrics).mean(), crops=pl.len())
    table = means.sort("name").collect(engine="streaming")
    return [
        Scores(
            row["name"],
            row["crops"],
            {metric: row[metric] for metric in metrics if row[metric] is not None},
            paper_row(row["name"]),
            unit,
        )
        for row in table.iter_rows(named=True)
    ]


def without_paper(row: Scores) -> Scores:
    """Crops beside whole images of the same source: the paper has no numbers of them."""
    return Scores(f"{row.name}, crops", row.images, row.measured, {}, row.unit)


def paper_row(name: str) -> dict[str, float]:
    """The paper's values for a data set, by how its name begins; {} if there are none."""
    return paper.TABLE_1.get(paper_name(name), {})


def paper_name(name: str) -> str | None:
    """The row of Table 1 that a name begins with: "coco_val2017" -> "COCO"; None if there is none."""
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    return next((row for start, row in PAPER_NAMES.items() if letters.startswith(start)), None)


def measure_folder(name: str, folder: Path, scores: Path, device: str) -> tuple[Scores, dict[str, str]]:
    """Score a folder of images; those of an earlier call are taken over. Also why a metric could not be had.

    Raises ValueError for a `name` that is no plain name, as a file of scores is named after it.
    """
    from osdhuman.metrics.folder import measure

    if not FOLDER_NAME.fullmatch(name):
        raise ValueError(
            f"expected a name of letters, digits, blanks, dots and hyphens for {folder}, got {name!r:.120}"
        )
    names = ("table1", name)  # JPEG is allowed: what it costs is a part of a data set's quality
    measured = measure(folder, scores / name, TABLE_METRICS, names=names, device=device, png_only=False)
    found = measured["metrics"]
    means = {metric: found[metric]["mean"] for metric in found if found[metric].get("mean") is not None}
    reasons = {metric: found[metric]["unavailable"] for metric in found if "unavailable" in found[metric]}
    return Scores(name, measured["images"], means, paper_row(name), FOLDER), reasons


# ------------------------------------------------------------------------------------------------------------- written


def write_table_1(rows: Sequence[Scores], output: Path) -> None:
    """table1.md with the paper's values in brackets, and table1.csv with both in columns of their own."""
    lines = []
    table = [["name", "images", "measured_on", *(f"{name}{end}" for name in TABLE_METRICS for end in ("", "_paper"))]]
    for row in rows:
        papers = [f" ({_number(row.paper, name)})" if row.paper else "" for name in TABLE_METRICS]
        cells = [_number(row.measured, name) + words for name, words in zip(TABLE_METRICS, papers, strict=True)]
        lines.append([*_labels(row), *cells])
        values = [_number(source, name, 2, "") for name in TABLE_METRICS for source in (row.measured, row.paper)]
        table.append([row.name, row.images, row.unit, *values])
    with replacing(output / "table1.md") as part:
        part.write_text(markdown.table(_header(), lines, left=2), encoding="utf-8")
    write_csv(output / "table1.csv", table)


def _header() -> list[str]:
    metrics = [METRICS[name] for name in TABLE_METRICS]
    return ["data set", "measured on", "images", *(f"{metric.title} {metric.arrow}" for metric in metrics)]


def _labels(row: Scores) -> list[str]:
    return [row.name, row.unit or "—", f"{row.images:,}" if row.images else "—"]


def _number(values: Mapping[str, float], name: str, more: int = 0, nothing: str = "—") -> str:
    """Rounded as in the paper, or to `more` digits: the last bits of a mean depend on the number of threads."""
    return f"{values[name]:.{METRICS[name].digits + more}f}" if name in values else nothing


def table_section(
    rows: Sequence[Scores], missing: Mapping[str, str], whole: Sequence[SampleScores], figures: Path
) -> str:
    """Table 1 and Fig. 1."""
    drawing = save(figures, "figure1", draw_scores, rows, TABLE_METRICS)
    return page.section(
        "Quality of the data sets (Table 1, Fig. 1)",
        page.text(f"{WITH_WHOLE if whole else CROPS_ONLY} Bold is the best that was measured."),
        page.table(_header(), [_cells(row, best_values(rows)) for row in rows], main=len(rows) - 1),
        *(page.note(line) for line in [*missing_lines(missing), *fault_lines(whole)]),
        page.plot(*drawing, "Mean of each metric. Right is better in every panel."),
    )


def best_values(rows: Sequence[Scores]) -> dict[str, float | None]:
    """The best measured value of each metric, None where nothing was measured."""
    best = {}
    for name in TABLE_METRICS:
        values = [row.measured[name] for row in rows if name in row.measured]
        best[name] = (max if METRICS[name].higher_is_better else min)(values, default=None)
    return best


def _cells(row: Scores, best: Mapping[str, float | None]) -> list[str | page.Cell]:
    return _labels(row) + [
        page.Cell(
            _number(row.measured, name),
            _number(row.paper, name) if row.paper else "",
            row.measured.get(name, "") == best[name],
        )
        for name in TABLE_METRICS
    ]


def missing_lines(missing: Mapping[str, str]) -> list[str]:
    """Why metrics were not measured, a line for each reason."""
    titles: dict[str, list[str]] = {}
    for name, reason in missing.items():
        titles.setdefault(reason, []).append(METRICS[name].title)
    return [f"Not measured: {', '.join(names)}. Why: {reason}." for reason, names in titles.items()]


def fault_lines(whole: Sequence[SampleScores]) -> list[str]:
    """How many drawn images have no score, and the first of them with the reason."""
    lines = []
    for part in (part for part in whole if part.faults):
        file, reason = next(iter(part.faults.items()))
        count = f"{len(part.faults):,} of {len(part.sample.files):,} drawn images of {part.sample.source}"
        lines.append(f"{count} could not be scored, the first is {file} ({reason}); whole_images.csv names all.")
    return lines
