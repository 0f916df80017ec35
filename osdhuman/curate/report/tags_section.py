"""Fig. 7: the tags of the training set by category, with the paper's beside."""

from collections.abc import Mapping
from pathlib import Path

from osdhuman import page, paper
from osdhuman.curate.report.csv_file import write_csv
from osdhuman.curate.report.figures import draw_tags, save
from osdhuman.curate.report.run import Run
from osdhuman.curate.tags import TagCounts, count_tags, read_categories

PAPER_TAGS, PAPER_DISTINCT = (sum(counts) for counts in zip(*paper.FIGURE_7.values(), strict=True))  # 1,452,088; 3,365
PAPER_TAGS_PER_IMAGE = 13.32  # 4.1
NO_TAGS = (
    "No tags were computed. They need the official weights of RAM++ and its lists of tags and thresholds: "
    "scripts/hq_acf.py tags RUN checkpoint=... tag_list=... thresholds=..., then make this report again."
)


def tags_section(run: Run, folder: Path | None, categories: Path | None, output: Path) -> str:
    """Fig. 7, or how to get it."""
    title = "Tags of PERSONA train (Fig. 7)"
    if folder is None and not (run.out / "tags").is_dir():
        return page.section(title, page.text(NO_TAGS))
    counts = count_tags(folder or run.out / "tags", read_categories(categories) if categories else None)
    write_csv(output / "tags.csv", [counts.per_tag.columns, *counts.per_tag.iter_rows()])
    found = {name: (tags, distinct) for name, tags, distinct in counts.per_category.iter_rows()}
    whose = f"the map {categories.name}" if categories else "our own map of common words, as the paper's is unpublished"
    frequent = ", ".join(f"{tag} {count:,}" for tag, _, count in counts.per_tag.head(30).iter_rows())
    blocks = [
        page.table(*totals_table(counts)),
        page.text(f"Tags are found by RAM++. Categories are by {whose}; what it does not know is Unsorted."),
        page.table(*category_table(found)),
        page.text(f"Most frequent: {frequent}"),
    ]
    if frequent:
        drawing = save(output / "figures", "figure7", draw_tags, found, paper.FIGURE_7)
        blocks.insert(2, page.plot(*drawing, "Angles are tags; labels give tags and distinct tags."))
    return page.section(title, *blocks)


def totals_table(counts: TagCounts) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the totals of Fig. 7 and 4.1, of this run and of the paper."""
    tags, distinct = counts.per_tag["count"].sum(), counts.per_tag.height
    rows = [
        ["images", f"{counts.images:,}", f"{paper.TRAIN:,}"],
        ["tags in all", f"{tags:,}", f"{PAPER_TAGS:,}"],
        ["distinct tags (“tag categories” in the paper)", f"{distinct:,}", f"{PAPER_DISTINCT:,}"],
        ["tags per image", f"{counts.per_image:.2f}", f"{PAPER_TAGS_PER_IMAGE:.2f}"],
    ]
    return ["total", "this run", "paper"], rows


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
