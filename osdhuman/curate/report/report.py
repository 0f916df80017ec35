"""The report on a run of HQ-ACF: what the paper shows of PERSONA, measured here, with the paper's values beside.

Table 1, Figs. 1, 6 and 7, Fig. 3 in numbers, persons per image, sharpness and scores with their limits; as plots
(PNG, PDF), tables (Markdown, CSV) and one HTML page that needs nothing but itself. The manifest is read column by
column and aggregated by polars, so its length does not matter. The same run gives the same files.
"""

from collections.abc import Mapping
from pathlib import Path

from osdhuman import page
from osdhuman.curate.manifest_reader import readable_manifest
from osdhuman.curate.report.contact_sheet import sheet_section
from osdhuman.curate.report.run import Run, read_run
from osdhuman.curate.report.sections import (
    funnel_section,
    headline,
    limits_section,
    persons_section,
    sources_section,
)
from osdhuman.curate.report.table_1 import scored_metrics, table_1, table_section, write_table_1
from osdhuman.curate.report.tags_section import tags_section
from osdhuman.curate.report.whole_images import score_whole_images
from osdhuman.files import replacing


def report(
    out: Path,
    output: Path,
    folders: Mapping[str, Path] | None = None,
    tags: Path | None = None,
    categories: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    whole: int = 0,
) -> Path:
    """Write `output`/report.html, table1.{md,csv}, tags.csv and figures/*.{png,pdf}; returns the page's path.

    `folders` adds rows to Table 1: name -> folder of images, whose scores are kept in `output`/scores. `whole` images
    with humans of each source are scored for Table 1 as well, none by default, and kept in `output`/whole; the same
    call continues after a stop. `tags` is what `osdhuman.curate.tags.tag_folder` wrote for PERSONA train, by default
    `out`/tags; `categories` is another map of tags than ours. `seed` draws the images of Fig. 6 and the whole ones.

    Raises FileNotFoundError if `out` is not a finished run or `tags` holds no tags, and ValueError of one line for a
    file of the run that is damaged.
    """
    run = read_run(out)
    with readable_manifest(out / "manifest.parquet"):  # columns are read where they are needed
        parts = make_sections(run, output, folders or {}, tags, categories, seed, device, whole)
    with replacing(output / "report.html") as part:
        part.write_text(page.render("PERSONA, built by HQ-ACF", parts), encoding="utf-8")
    return output / "report.html"


def make_sections(
    run: Run,
    output: Path,
    folders: Mapping[str, Path],
    tags: Path | None,
    categories: Path | None,
    seed: int,
    device: str,
    whole: int,
) -> list[str]:
    """The parts of the page; tables and figures are written on the way."""
    figures = output / "figures"
    images, unavailable = [], {}
    if whole:
        images, unavailable = score_whole_images(run, scored_metrics(run), whole, output, seed, device)
    rows, missing = table_1(run, folders, images, output / "scores", device)
    write_table_1(rows, output)
    return [
        headline(run),
        funnel_section(run, figures),
        table_section(rows, missing | unavailable, images, figures),
        sheet_section(run, figures, seed),
        persons_section(run, figures),
        limits_section(run, figures),
        tags_section(run, tags, categories, output),
        sources_section(run),
    ]
