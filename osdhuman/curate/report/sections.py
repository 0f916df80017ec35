"""The sections of the report that count what the run did: its size, Fig. 3 in numbers, sources, persons, limits."""

from pathlib import Path

import polars as pl

from osdhuman import page, paper
from osdhuman.curate.report.figures import (
    draw_persons,
    draw_score_distributions,
    draw_sharpness,
    draw_survivors,
    save,
)
from osdhuman.curate.report.histograms import histogram, image_sharpness, score_histogram
from osdhuman.curate.report.run import Run
from osdhuman.metrics.table import METRICS


def headline(run: Run) -> str:
    """The run's size beside the paper's."""
    account, splits = run.account, run.account["splits"]
    scored = run.rows.select(pl.col("crop_sha256").is_not_null().sum()).collect().item()
    numbers = [
        (account["images"]["in"], "images in", "paper: about 4 million"),
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
            "Reasons stand in the order in which the pipeline asks. An image counts as kept if one of its boxes is, "
            "otherwise under the reason that its last box met."
        ),
        page.plot(
            *drawing, "Orange is what a reason removes. Boxes that are kept are the crops of train, val and test."
        ),
    )


def sources_section(run: Run) -> str:
    """The account of each source."""
    rows = []
    for name, part in run.account["sources"].items():
        counts = [part["images"]["in"], part["images"]["kept"], part["boxes"]["in"], part["boxes"]["kept"]]
        rows.append([name, *(f"{count:,}" for count in (*counts, *part["splits"].values()))])
    faults = run.account["faults"]
    return page.section(
        "Sources",
        page.table(["source", "images", "kept", "boxes", "kept", "train", "val", "test"], rows),
        *([page.note(f"Malformed annotations: {faults:,}, listed in faults.jsonl.")] if faults else []),
    )


def persons_section(run: Run, figures: Path) -> str:
    """Persons per image of the training set."""
    counts = run.train.group_by("persons").len().drop_nulls().sort("persons").collect(engine="streaming")
    if counts.is_empty():
        return page.section("Persons per image", page.text("The training set is empty."))
    drawing = save(figures, "persons", draw_persons, dict(counts.iter_rows()), paper.PERSONS_PER_IMAGE)
    caption = (
        "Persons whose box a crop of the training set shows; crowds and groups that were annotated as one count once."
    )
    return page.section("Persons per image", page.plot(*drawing, caption))


def limits_section(run: Run, figures: Path) -> str:
    """Sharpness and scores, with the limits that the configuration sets and the paper does not tell."""
    blocks = [page.text("The paper gives neither its sharpness threshold nor its IQA limits; these are this run's.")]
    sharpness = histogram(image_sharpness(run), pl.col("sharpness").log10(), pl.col("source"))
    if sharpness:
        drawing = save(figures, "sharpness", draw_sharpness, sharpness, run.thresholds)
        blocks.append(page.plot(*drawing, "Sharpness of the images whose boxes were looked at, by source."))
    scores = {name: found for name in run.metrics if (found := score_histogram(run, name))}
    if scores:
        drawing = save(figures, "scores", draw_score_distributions, scores, run.floors)
        blocks.append(page.plot(*drawing, "Scores of all crops and of the training set. Right is better."))
    if run.test_limits:
        blocks.append(page.text(f"PERSONA test was sampled within {limits_text(run)}."))
    return page.section("Sharpness and scores", *blocks)


def limits_text(run: Run) -> str:
    """The limits of test, such as "NIQE 3.1 to 6.2"; a dash where there is none."""
    pairs = run.test_limits.items()
    parts = [
        f"{METRICS[name].title if name in METRICS else name} {' to '.join(map(_limit, pair))}" for name, pair in pairs
    ]
    return ", ".join(parts)


def _limit(value: float | None) -> str:
    return "—" if value is None else f"{value:.4g}"
