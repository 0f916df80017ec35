"""One page that shows a benchmark run and needs nothing else: table, sliders, the scores of each picture, strips.

Pictures inside the page are WebP, at most `PREVIEW` pixels a side, to be looked at; what was measured are the PNGs.
The page is `report.html` beside this file, with its placeholders filled.
"""

import base64
import io
import json
import math
from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from osdhuman.evaluation.config import EvalConfig
from osdhuman.evaluation.cost_table import cost_table
from osdhuman.evaluation.strips import evenly_spaced, images_of, picture_at, restored_names
from osdhuman.evaluation.table_formats import interval_text, number_text, paper_rows
from osdhuman.evaluation.tables import HEADS, Cell, Column, Row, Table, build_table, read_scores, title_of
from osdhuman.files import replacing
from osdhuman.images import load_rgb

TEMPLATE = Path(__file__).with_name("report.html")
PREVIEW, QUALITY = 512, 82  # pixels a side at most; of WebP
LQ, HQ = ":lq", ":hq"  # no method can have these names


def write_page(config: EvalConfig) -> Path:
    """Write report.html under `config.output` from the files that are there; returns its path."""
    table = build_table(config)
    pictures, widths = _pictures(config)
    data = {
        "sets": table.set_titles,
        "titles": {LQ: "LQ", HQ: "HQ"} | {name: title_of(name, method) for name, method in config.methods.items()},
        "metrics": {
            set_: [
                {"title": c.metric.title, "arrow": c.metric.arrow, "digits": c.metric.digits}
                for c in _image_columns(table, set_)
            ]
            for set_ in config.sets
        },
        "scores": list(_scores(config, table)),
        "pictures": pictures,
        "widths": widths,
    }
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=f"Human body restoration: Table {table.number}, measured",
        lead=escape("; ".join(f"{set_.title or name}: {set_.note or 'no note'}" for name, set_ in config.sets.items())),
        means=_means(table),
        legend=_legend(table),
        footnotes="".join(f"<li>{escape(note)}</li>" for note in table.footnotes),
        preview=_preview_note(config),
        cost=_cost(config),
        strips=_strips(config),
        data=_json_in_html(data),
    )
    path = config.output / "report.html"
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def _json_in_html(data: Any) -> str:
    """JSON that no name of a file can end early: in HTML `</script>` and `<!--` count even inside strings."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


# ------------------------------------------------------------------------------------------------------------- tables


def _means(table: Table) -> str:
    sets = [(name, sum(c.set == name for c in table.columns)) for name in table.set_titles]
    first = [f'<th class="text" rowspan="2">{escape(head)}</th>' for head in HEADS[table.number]]
    first += [
        f'<th colspan="{count}" class="text">{escape(table.set_titles[name])}</th>' for name, count in sets if count
    ]
    second = [f"<th>{escape(c.metric.title)} {c.metric.arrow}</th>" for c in table.columns]
    body = "".join(line for row in table.rows for line in _mean_rows(table, row))
    rank = '<th rowspan="2">Average rank</th>'
    head = f"<tr>{''.join(first)}{rank}</tr><tr>{''.join(second)}</tr>"
    return f'<table id="means"><thead>{head}</thead><tbody>{body}</tbody></table>'


def _legend(table: Table) -> str:
    groups = " of each group" if table.number == 2 else ""
    text = f"Best and second best{groups} in red and cyan. Small: 95&nbsp;% bootstrap interval of the mean over images."
    published = any(cell.paper is not None for row in table.rows for cell in row.cells.values())
    return text + (" In italics: the paper's own numbers, for the paper's own restored pictures." if published else "")


def _mean_rows(table: Table, row: Row) -> Iterator[str]:
    heads = "".join(f'<td class="text">{escape(head)}</td>' for head in row.heads)
    cells = "".join(_mean_cell(row.cells[c.key], c) for c in table.columns)
    rank = "" if row.average_rank is None else f"{row.average_rank:.2f}"
    yield f"<tr>{heads}{cells}<td>{rank}</td></tr>"
    for texts, values in paper_rows(table, row):
        heads = "".join(f'<td class="text">{escape(text)}</td>' for text in texts)
        yield f'<tr class="paper">{heads}{"".join(f"<td>{value}</td>" for value in values)}<td></td></tr>'


def _mean_cell(cell: Cell, column: Column) -> str:
    if cell.value is None:
        text = "n/a" if cell.reason.startswith("unavailable") else ""
        return f'<td title="{escape(cell.reason)}">{text}</td>'
    interval = "" if cell.low is None else f"<small>{interval_text(cell, column)}</small>"
    return f'<td><span class="{cell.mark or "plain"}">{number_text(cell.value, column)}</span>{interval}</td>'


def _cost(config: EvalConfig) -> str:
    lines = cost_table(config)
    if not lines:
        return ""
    head = "".join(f"<th>{escape(text)}</th>" for text in lines[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in line) + "</tr>" for line in lines[1:])
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<h2>Cost of one picture</h2><div class="scroll">{table}</div>'


def _image_columns(table: Table, set_: str) -> list[Column]:
    """The metrics of single pictures that any method has on a set."""
    columns = [column for column in table.columns if column.set == set_ and column.metric.scope == "image"]
    return [column for column in columns if any(row.cells[column.key].judged for row in table.rows)]


def _scores(config: EvalConfig, table: Table) -> Iterator[dict[str, Any]]:
    """For each measured folder: one row per picture, its name and its scores in the order of the set's columns."""
    for (set_, method), scores in read_scores(config).items():
        columns = _image_columns(table, set_)
        rows = [
            [row["file"], *(_rounded(row.get(c.metric.name), c.metric.digits) for c in columns)]
            for row in scores.images.iter_rows(named=True)
        ]
        yield {"set": set_, "method": method, "rows": rows}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


# ----------------------------------------------------------------------------------------------------------- pictures


def _pictures(config: EvalConfig) -> tuple[dict, dict]:
    """Set -> picture -> method -> data URI, LQ first; and set -> picture -> width in pixels."""
    pictures: dict[str, dict[str, dict[str, str]]] = {}
    widths: dict[str, dict[str, int]] = {}
    for set_, settings in config.sets.items():
        folders = {LQ: settings.lq, HQ: settings.hq}
        folders |= {name: images_of(config, set_, name) for name in config.methods}
        pictures[set_], widths[set_] = {}, {}
        for name in evenly_spaced(restored_names(config, set_), config.page_images):
            stem = Path(name).with_suffix("")
            found = {key: picture_at(folder, stem) for key, folder in folders.items() if folder is not None}
            previews = {key: _preview(path) for key, path in found.items() if path is not None}
            pictures[set_][name] = {key: uri for key, (uri, _) in previews.items()}
            widths[set_][name] = max(width for _, width in previews.values())
    return pictures, widths


def _preview(path: Path) -> tuple[str, int]:
    """A picture as WebP in a data URI, and its width there."""
    image = Image.fromarray((load_rgb(path) * 255).round().byte().permute(1, 2, 0).numpy())
    image.thumbnail((PREVIEW, PREVIEW), Image.Resampling.LANCZOS)
    return _data_uri(image), image.width


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _preview_note(config: EvalConfig) -> str:
    return (
        f"Up to {config.page_images} pictures of each set, evenly spaced over the names, as WebP of at most {PREVIEW} "
        "pixels a side; what was measured are the PNGs."
    )


def _strips(config: EvalConfig) -> str:
    figures = sorted((config.output / "figures").glob("*.png"))
    if not figures:
        return ""
    items = "".join(_strip(path) for path in figures)
    return f"<h2>Comparison strips</h2>{items}"


def _strip(path: Path) -> str:
    with Image.open(path) as image:
        uri = _data_uri(image.convert("RGB"))
    name = escape(path.stem)
    return f'<figure><img src="{uri}" alt="{name}" loading="lazy"><figcaption>{name}</figcaption></figure>'
