"""One page that shows a benchmark run and needs nothing else: table, sliders, the scores of each image, strips.

Images inside the page are WebP, at most `PREVIEW` pixels a side, to be looked at; what was measured are the PNGs.
`report.html` beside this file is the template.
"""

import base64
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from osdhuman import page
from osdhuman.evaluation.config import EvalConfig, title_of
from osdhuman.evaluation.cost_table import cost_table
from osdhuman.evaluation.image_folders import by_stem, common_stems, evenly_spaced, images_of
from osdhuman.evaluation.results import Column, Result
from osdhuman.evaluation.table_formats import interval_text, number_text, paper_rows
from osdhuman.evaluation.tables import HEADS, Row, Table
from osdhuman.files import replacing
from osdhuman.images import load_rgb
from osdhuman.metrics.score_files import printable

PREVIEW, QUALITY = 512, 82  # pixels a side at most; of WebP
LQ, HQ = ":lq", ":hq"  # no method can have these names


def write_page(config: EvalConfig, table: Table) -> Path:
    """Write report.html under `config.output` from `table` and the files that exist; returns its path."""
    html = page.render_template(
        "evaluation/report.html",
        title=f"Human body restoration: Table {table.number}, measured",
        lead="; ".join(f"{set_.title or name}: {set_.note or 'no note'}" for name, set_ in config.sets.items()),
        heads=HEADS[table.number],
        sets=_set_heads(table),
        columns=table.columns,
        rows=[line for row in table.rows for line in _mean_rows(table, row)],
        legend=_legend(table),
        footnotes=table.footnotes,
        preview=_preview_note(config),
        cost=cost_table(config),
        strips=list(_strips(config)),
        data=_data(config, table),
    )
    path = config.output / "report.html"
    with replacing(path) as part:
        part.write_text(html, encoding="utf-8")
    return path


def _data(config: EvalConfig, table: Table) -> dict[str, Any]:
    """What the page's script shows: titles, metrics, scores and images, by set."""
    images, widths = _images(config)
    return {
        "sets": table.set_titles,
        "titles": {LQ: "LQ", HQ: "HQ"} | {name: title_of(name, method) for name, method in config.methods.items()},
        "metrics": {
            set_: [
                {"title": c.metric.title, "arrow": c.metric.arrow, "digits": c.metric.digits}
                for c in _image_columns(table, set_)
            ]
            for set_ in config.sets
        },
        "scores": list(_scores(table)),
        "images": images,
        "widths": widths,
    }


# ------------------------------------------------------------------------------------------------------------- tables


def _set_heads(table: Table) -> list[tuple[str, int]]:
    """The title of each set that has columns, and their number."""
    counts = {name: sum(column.set == name for column in table.columns) for name in table.set_titles}
    return [(table.set_titles[name], count) for name, count in counts.items() if count]


def _legend(table: Table) -> str:
    groups = " of each group" if table.number == 2 else ""
    text = f"Best and second best{groups} in red and cyan. Small: 95 % bootstrap interval of the mean over images."
    published = any(cell.paper is not None for row in table.rows for cell in row.cells.values())
    return text + (" In italics: the paper's own numbers, for the paper's own restored images." if published else "")


def _mean_rows(table: Table, row: Row) -> Iterator[dict[str, Any]]:
    """The row of a method, then those with the paper's values."""
    rank = "" if row.average_rank is None else f"{row.average_rank:.2f}"
    cells = [_mean_cell(row.cells[column.key], column) for column in table.columns]
    yield {"heads": row.heads, "cells": cells, "rank": rank, "paper": False}
    for heads, values in paper_rows(table, row):
        blank = {"reason": "", "mark": "", "interval": ""}
        yield {"heads": heads, "cells": [{"text": v, **blank} for v in values], "rank": "", "paper": True}


def _mean_cell(result: Result, column: Column) -> dict[str, str]:
    if result.value is None:
        text = "n/a" if result.reason.startswith("unavailable") else ""
        return {"text": text, "reason": result.reason, "mark": "", "interval": ""}
    interval = "" if result.low is None else interval_text(result, column)
    return {"text": number_text(result.value, column), "reason": "", "mark": result.mark or "", "interval": interval}


def _image_columns(table: Table, set_: str) -> list[Column]:
    """The metrics of single images that any method has on a set."""
    columns = [column for column in table.columns if column.set == set_ and column.metric.scope == "image"]
    return [column for column in columns if any(row.cells[column.key].judged for row in table.rows)]


def _scores(table: Table) -> Iterator[dict[str, Any]]:
    """For each measured folder: one row per image, its name and its scores in the order of the set's columns."""
    for (set_, method), scores in table.scores.items():
        columns = _image_columns(table, set_)
        rows = [
            [row["file"], *(_rounded(row.get(c.metric.name), c.metric.digits) for c in columns)]
            for row in scores.images.iter_rows(named=True)
        ]
        yield {"set": set_, "method": method, "rows": rows}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


# ------------------------------------------------------------------------------------------------------------- images


def _images(config: EvalConfig) -> tuple[dict[str, dict[str, dict[str, str]]], dict[str, dict[str, int]]]:
    """Set -> image -> method -> data URI, LQ first; and set -> image -> width in pixels."""
    images: dict[str, dict[str, dict[str, str]]] = {}
    widths: dict[str, dict[str, int]] = {}
    for set_, settings in config.sets.items():
        folders = {LQ: by_stem(settings.lq), HQ: by_stem(settings.hq)}
        folders |= {name: by_stem(images_of(config, set_, name)) for name in config.methods}
        images[set_], widths[set_] = {}, {}
        for stem in evenly_spaced(common_stems(config, set_), config.page_images):
            previews = {key: _preview(found[stem]) for key, found in folders.items() if stem in found}
            name = f"{printable(stem)}.png"  # as the scores name it
            images[set_][name] = {key: uri for key, (uri, _) in previews.items()}
            widths[set_][name] = max(width for _, width in previews.values())
    return images, widths


def _preview(path: Path) -> tuple[str, int]:
    """An image as WebP in a data URI, and its width there."""
    image = Image.fromarray((load_rgb(path) * 255).round().byte().permute(1, 2, 0).numpy())
    image.thumbnail((PREVIEW, PREVIEW), Image.Resampling.LANCZOS)
    return _data_uri(image), image.width


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _preview_note(config: EvalConfig) -> str:
    return (
        f"Up to {config.page_images} images of each set, evenly spaced over the names, as WebP of at most {PREVIEW} "
        "pixels a side; what was measured are the PNGs."
    )


def _strips(config: EvalConfig) -> Iterator[tuple[str, str]]:
    """Name and data URI of each strip that exists."""
    for path in sorted((config.output / "figures").glob("*.png")):
        with Image.open(path) as image:
            yield printable(path.stem), _data_uri(image.convert("RGB"))
