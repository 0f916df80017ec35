"""The report on a run of HQ-ACF: what the paper shows of PERSONA, measured here, with the paper's values beside.

Table 1, Figs. 1, 6 and 7, Fig. 3 in numbers, persons per picture, sharpness and scores with their limits; as plots
(PNG, PDF), tables (Markdown, CSV) and one HTML page that needs nothing but itself. The manifest is read column by
column and aggregated by polars, so its length does not matter. The same run gives the same files.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from osdhuman import page, paper
from osdhuman.curate.report.figures import (
    Histogram,
    Scores,
    data_uri,
    draw_contact_sheet,
    draw_persons,
    draw_score_distributions,
    draw_scores,
    draw_sharpness,
    draw_survivors,
    draw_tags,
    save,
)
from osdhuman.curate.tags import count_tags, read_categories
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
SHEET_ROWS, SHEET_COLUMNS, TILE = 5, 8, 180  # Fig. 6; pixels of a picture's side
PERSONA = "PERSONA train"
PAPER_TAGS_PER_IMAGE = 13.32  # 4.1
NO_TAGS = (
    "No tags were computed. They need the official weights of RAM++ and its lists of tags and thresholds: "
    "scripts/hq_acf.py tags RUN checkpoint=... tag_list=... thresholds=..., then make this report again."
)
NOT_SCORED = "this run did not score it (score.metrics of its configuration)"


@dataclass(frozen=True)
class Run:
    """A finished run folder."""

    out: Path
    account: Mapping
    thresholds: Mapping[str, float]  # of sharpness, by source
    floors: Mapping[str, float]
    rows: pl.LazyFrame  # of manifest.parquet
    metrics: tuple[str, ...]  # that were scored

    @property
    def train(self) -> pl.LazyFrame:
        return self.rows.filter(pl.col("split") == "train")


def report(
    out: Path,
    output: Path,
    folders: Mapping[str, Path] | None = None,
    tags: Path | None = None,
    categories: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Path:
    """Write `output`/report.html, table1.{md,csv}, tags.csv and figures/*.{png,pdf}; returns the page's path.

    `folders` adds rows to Table 1: name -> folder of pictures, whose scores are kept in `output`/scores. `tags` is what
    `osdhuman.curate.tags.tag_folder` wrote for PERSONA train, by default `out`/tags; `categories` is another map of
    tags than ours. `seed` draws the pictures of Fig. 6. Raises FileNotFoundError if `out` is not a finished run,
    or `tags` holds no tags.
    """
    run = read_run(out)
    figures = output / "figures"
    rows, missing = table_1(run, folders or {}, output / "scores", device)
    write_table_1(rows, output)
    parts = [
        headline(run),
        funnel_section(run, figures),
        table_section(rows, missing, figures),
        sheet_section(run, figures, seed),
        persons_section(run, figures),
        limits_section(run, figures),
        tags_section(run, tags, categories, output),
        sources_section(run),
    ]
    with replacing(output / "report.html") as part:
        part.write_text(page.render("PERSONA, built by HQ-ACF", parts), encoding="utf-8")
    return output / "report.html"


def read_run(out: Path) -> Run:
    for name in ("manifest.parquet", "account.json"):
        if not (out / name).is_file():
            raise FileNotFoundError(f"{out} is not a finished run of HQ-ACF: {name} is missing; run it to its end")
    rows = pl.scan_parquet(out / "manifest.parquet")
    columns = rows.collect_schema().names()
    return Run(
        out,
        _read_json(out / "account.json"),
        _read_json(out / "thresholds.json"),
        _read_json(out / "selection" / "selection.json").get("floors", {}),
        rows,
        tuple(name for name in METRICS if name in columns),
    )


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


# ------------------------------------------------------------------------------------------------------------- Table 1


def table_1(run: Run, folders: Mapping[str, Path], scores: Path, device: str) -> tuple[list[Scores], dict[str, str]]:
    """Rows of Table 1: the paper's data sets, then others, PERSONA last; and why a metric is missing.

    A source's mean is over all its crops that were scored, before selection; PERSONA's over the training set. Folders
    are measured as they are.
    """
    metrics = [name for name in TABLE_METRICS if name in run.metrics]
    missing = {name: NOT_SCORED for name in TABLE_METRICS if name not in metrics}
    rows = _means(run.rows, metrics, pl.col("source"))
    for name, folder in folders.items():
        row, unavailable = measure_folder(name, folder, scores, device)
        rows.append(row)
        missing |= unavailable
    shown = {paper_name(row.name) for row in rows}
    rows += [Scores(name, 0, {}, paper.TABLE_1[name]) for name in paper.TABLE_1 if name not in {*shown, "PERSONA"}]
    order = [*paper.TABLE_1, None]
    rows.sort(key=lambda row: order.index(paper_name(row.name)))
    persona = _means(run.train, metrics, pl.lit(PERSONA)) or [Scores(PERSONA, 0, {}, paper.TABLE_1["PERSONA"])]
    return rows + persona, missing


def _means(rows: pl.LazyFrame, metrics: Sequence[str], name: pl.Expr) -> list[Scores]:
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
            paper.TABLE_1.get(paper_name(row["name"]), {}),
        )
        for row in table.iter_rows(named=True)
    ]


def paper_name(name: str) -> str | None:
    """The row of Table 1 that a name begins with: "coco_val2017" -> "COCO"; None if there is none."""
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    return next((row for start, row in PAPER_NAMES.items() if letters.startswith(start)), None)


def measure_folder(name: str, folder: Path, scores: Path, device: str) -> tuple[Scores, dict[str, str]]:
    """Score a folder of pictures; those of an earlier call are taken over. Also why a metric could not be had."""
    from osdhuman.metrics.folder import measure

    names = ("table1", name)  # JPEG is allowed: what it costs is a part of a data set's quality
    measured = measure(folder, scores / name, TABLE_METRICS, names=names, device=device, png_only=False)
    found = measured["metrics"]
    means = {metric: found[metric]["mean"] for metric in found if found[metric].get("mean") is not None}
    reasons = {metric: found[metric]["unavailable"] for metric in found if "unavailable" in found[metric]}
    return Scores(name, measured["images"], means, paper.TABLE_1.get(paper_name(name), {})), reasons


def write_table_1(rows: Sequence[Scores], output: Path) -> None:
    """table1.md with the paper's values in brackets, and table1.csv with both in columns of their own."""
    metrics = [METRICS[name] for name in TABLE_METRICS]
    header = ["data set", "images", *(f"{metric.title} {metric.arrow}" for metric in metrics)]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    table = [["name", "images", *(f"{name}{end}" for name in TABLE_METRICS for end in ("", "_paper"))]]
    for row in rows:
        papers = [f" ({_number(row.paper, name)})" if row.paper else "" for name in TABLE_METRICS]
        cells = [_number(row.measured, name) + words for name, words in zip(TABLE_METRICS, papers, strict=True)]
        lines.append([row.name, f"{row.images:,}" if row.images else "—", *cells])
        values = [_number(source, name, 2, "") for name in TABLE_METRICS for source in (row.measured, row.paper)]
        table.append([row.name, row.images, *values])
    with replacing(output / "table1.md") as part:
        part.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")
    _write_csv(output / "table1.csv", table)


def _number(values: Mapping[str, float], name: str, more: int = 0, nothing: str = "—") -> str:
    """Rounded as in the paper, or to `more` digits: the last bits of a mean depend on the number of threads."""
    return f"{values[name]:.{METRICS[name].digits + more}f}" if name in values else nothing


def _write_csv(path: Path, rows: Sequence[Sequence]) -> None:
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def table_section(rows: Sequence[Scores], missing: Mapping[str, str], figures: Path) -> str:
    """Table 1 and Fig. 1."""
    metrics = [METRICS[name] for name in TABLE_METRICS]
    header = ["data set", "images", *(f"{metric.title} {metric.arrow}" for metric in metrics)]
    best = {}
    for metric in metrics:
        values = [row.measured[metric.name] for row in rows if metric.name in row.measured]
        best[metric.name] = (max if metric.higher_is_better else min)(values, default=None)
    cells = [
        [row.name, f"{row.images:,}" if row.images else "—"]
        + [
            page.Cell(
                _number(row.measured, name),
                _number(row.paper, name) if row.paper else "",
                row.measured.get(name, "") == best[name],
            )
            for name in TABLE_METRICS
        ]
        for row in rows
    ]
    titles: dict[str, list[str]] = {}
    for name, reason in missing.items():
        titles.setdefault(reason, []).append(METRICS[name].title)
    reasons = [f"Not measured: {', '.join(names)}. Why: {reason}." for reason, names in titles.items()]
    drawing = save(figures, "figure1", draw_scores, rows, TABLE_METRICS)
    return page.section(
        "Quality of the data sets (Table 1, Fig. 1)",
        page.text(
            "Means over all crops of a source that were scored, before selection, and over PERSONA's training set. "
            "Small grey numbers are the paper's; bold is the best that was measured."
        ),
        page.table(header, cells, main=len(rows) - 1),
        *(page.note(reason) for reason in reasons),
        page.plot(*drawing, "Mean of each metric. Right is better in every panel."),
    )


# -------------------------------------------------------------------------------------------------- counts of the run


def headline(run: Run) -> str:
    """The run's size beside the paper's."""
    account, splits = run.account, run.account["splits"]
    scored = run.rows.select(pl.col("crop_sha256").is_not_null().sum()).collect().item()
    numbers = [
        (account["images"]["in"], "pictures in", "paper: about 4 million"),
        (scored, "crops cut", f"paper: about {paper.CANDIDATES:,}"),
        (splits.get("train", 0), "PERSONA train", f"paper: {paper.TRAIN:,}"),
        (splits.get("val", 0), "PERSONA val", f"paper: {paper.VAL:,}"),
        (splits.get("test", 0), "PERSONA test", f"paper: {paper.TEST:,}"),
    ]
    return page.tiles([(f"{number:,}", what, words) for number, what, words in numbers])


def funnel_section(run: Run, figures: Path) -> str:
    """Fig. 3 in numbers."""
    drawing = save(figures, "survivors", draw_survivors, run.account)
    return page.section(
        "What is left after each stage (Fig. 3)",
        page.text(
            "Reasons stand in the order in which the pipeline asks. A picture counts as kept if one of its boxes is, "
            "otherwise under the reason that its last box met."
        ),
        page.plot(
            *drawing, "Orange is what a reason removes. Boxes that are kept are the crops of train, val and test."
        ),
    )


def sources_section(run: Run) -> str:
    """The account of each source."""
    rows = []
    for name, part in run.account.get("sources", {}).items():
        counts = [part["images"]["in"], part["images"]["kept"], part["boxes"]["in"], part["boxes"]["kept"]]
        rows.append([name, *(f"{count:,}" for count in (*counts, *part["splits"].values()))])
    faults = run.account.get("faults", 0)
    return page.section(
        "Sources",
        page.table(["source", "pictures", "kept", "boxes", "kept", "train", "val", "test"], rows),
        *([page.note(f"Malformed annotations: {faults:,}, listed in faults.jsonl.")] if faults else []),
    )


def persons_section(run: Run, figures: Path) -> str:
    """Persons per picture of the training set."""
    counts = run.train.group_by("persons").len().drop_nulls().sort("persons").collect(engine="streaming")
    if counts.is_empty():
        return page.section("Persons per picture", page.text("The training set is empty."))
    drawing = save(figures, "persons", draw_persons, dict(counts.iter_rows()), paper.PERSONS_PER_IMAGE)
    caption = (
        "Persons whose box a crop of the training set shows; crowds and groups that were annotated as one count once."
    )
    return page.section("Persons per picture", page.plot(*drawing, caption))


def limits_section(run: Run, figures: Path) -> str:
    """Sharpness and scores, with the limits that the configuration sets and the paper does not tell."""
    blocks = [page.text("The paper gives neither its sharpness threshold nor its floors; these are this run's.")]
    sharpness = histogram(pictures(run), pl.col("sharpness").log10(), pl.col("source"))
    if sharpness:
        drawing = save(figures, "sharpness", draw_sharpness, sharpness, run.thresholds)
        blocks.append(page.plot(*drawing, "Sharpness of the pictures whose boxes were looked at, by source."))
    scores = {name: found for name in run.metrics if (found := score_histogram(run, name))}
    if scores:
        drawing = save(figures, "scores", draw_score_distributions, scores, run.floors)
        blocks.append(page.plot(*drawing, "Scores of all crops and of the training set. Right is better."))
    return page.section("Sharpness and scores", *blocks)


def pictures(run: Run) -> pl.LazyFrame:
    """Source and sharpness, once for each picture whose sharpness was measured; told apart by a hash, not by name."""
    rows = run.rows.filter(pl.col("sharpness") > 0)
    rows = rows.select(picture=pl.struct("source", "file").hash(), source="source", sharpness="sharpness")
    return rows.unique("picture").select("source", "sharpness").collect(engine="streaming").lazy()


def score_histogram(run: Run, metric: str) -> Histogram | None:
    """All crops that have a score, and those of train among them."""
    found = histogram(run.rows, pl.col(metric), (pl.col("split") == "train").fill_null(False))
    if found is None:
        return None
    nothing = np.zeros(len(found.edges) - 1, int)
    train, others = (found.counts.get(str(group).lower(), nothing) for group in (True, False))
    return Histogram(found.edges, {"all crops": train + others, "train": train})


def histogram(rows: pl.LazyFrame, value: pl.Expr, group: pl.Expr) -> Histogram | None:
    """Counts of `value` by group, in about 2 n^(1/3) bins, at most 60. None if there is no value.

    The outermost thousandths fall into the outermost bins.
    """
    values = rows.select(group=group.cast(pl.String), value=value.fill_nan(None)).drop_nulls()
    ends = {"low": pl.col("value").quantile(0.001), "high": pl.col("value").quantile(0.999)}
    count, low, high = values.select(count=pl.len(), **ends).collect(engine="streaming").row(0)
    if count == 0:
        return None
    bins = min(round(2 * count ** (1 / 3)), 60)
    high = high if high > low else low + 1.0
    place = ((pl.col("value") - low) / (high - low) * bins).floor().clip(0, bins - 1).cast(pl.Int32)
    table = values.group_by("group", bin=place).len().sort("group", "bin").collect(engine="streaming")
    counts = {name: np.zeros(bins, int) for name in table["group"].unique(maintain_order=True)}
    for name, bin_, count in table.iter_rows():
        counts[name][bin_] = count
    return Histogram(np.linspace(low, high, bins + 1), counts)


# ------------------------------------------------------------------------------------------------ what PERSONA shows


def sheet_section(run: Run, figures: Path, seed: int) -> str:
    """Fig. 6: pictures of the training set, drawn by a hash of the seed and their ids."""
    ids = run.train.select("id").collect()["id"].to_list()
    ids.sort(key=lambda crop: sha256(f"{seed}\n{crop}".encode()).digest())
    paths = [path for crop in ids if (path := run.out / "persona" / "train" / f"{crop}.png").is_file()]
    title = "Pictures of PERSONA train (Fig. 6)"
    if not paths:
        return page.section(title, page.text("The folder persona/train holds none of the manifest's pictures."))
    shown = paths[: SHEET_ROWS * SHEET_COLUMNS]
    sheet = contact_sheet(shown)
    save(figures, "figure6", draw_contact_sheet, sheet)
    return page.section(
        title, page.photograph(_jpeg(sheet), f"{len(shown)} of {len(ids):,} pictures, drawn by chance.")
    )


def contact_sheet(paths: Sequence[Path]) -> np.ndarray:
    """Pictures in rows of eight, uint8 RGB (H,W,3) with white gaps."""
    columns = min(SHEET_COLUMNS, len(paths))
    rows, step = -(-len(paths) // columns), TILE + 6
    sheet = np.full((rows * step - 6, columns * step - 6, 3), 255, np.uint8)
    for place, path in enumerate(paths):
        y, x = (step * n for n in divmod(place, columns))
        with Image.open(path) as image:
            sheet[y : y + TILE, x : x + TILE] = image.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)
    return sheet


def _jpeg(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return data_uri(buffer.getvalue(), "image/jpeg")


def tags_section(run: Run, folder: Path | None, categories: Path | None, output: Path) -> str:
    """Fig. 7, or how to get it."""
    title = "Tags of PERSONA train (Fig. 7)"
    if folder is None and not (run.out / "tags").is_dir():
        return page.section(title, page.text(NO_TAGS))
    counts = count_tags(folder or run.out / "tags", read_categories(categories) if categories else None)
    _write_csv(output / "tags.csv", [counts.per_tag.columns, *counts.per_tag.iter_rows()])
    found = {name: (tags, distinct) for name, tags, distinct in counts.per_category.iter_rows()}
    whose = f"the map {categories.name}" if categories else "our own map of common words, as the paper's is unpublished"
    words = (
        f"RAM++ finds {counts.per_image:.2f} tags in each of {counts.images:,} pictures (paper: "
        f"{PAPER_TAGS_PER_IMAGE}). Categories are by {whose}; what it does not know is Unsorted."
    )
    frequent = ", ".join(f"{tag} {count:,}" for tag, _, count in counts.per_tag.head(30).iter_rows())
    blocks = [page.text(words), page.table(*category_table(found)), page.text(f"Most frequent: {frequent}")]
    if frequent:
        drawing = save(output / "figures", "figure7", draw_tags, found, paper.FIGURE_7)
        blocks.insert(1, page.plot(*drawing, "Angles are tags; labels give tags and distinct tags."))
    return page.section(title, *blocks)


def category_table(run: Mapping[str, tuple[int, int]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: tags, their share, distinct tags; the paper's beside."""
    header = ["category", "tags", "share", "paper", "distinct", "paper"]
    total, paper_total = (max(sum(tags for tags, _ in part.values()), 1) for part in (run, paper.FIGURE_7))
    rows = []
    for name, (tags, distinct) in run.items():
        share = f"{100 * tags / total:.1f} %"
        theirs = paper.FIGURE_7.get(name)
        texts = (f"{100 * theirs[0] / paper_total:.1f} %", f"{theirs[1]:,}") if theirs else ("—", "—")
        rows.append([name, f"{tags:,}", share, texts[0], f"{distinct:,}", texts[1]])
    return header, rows
