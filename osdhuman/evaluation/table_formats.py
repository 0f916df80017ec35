"""A table as Markdown, LaTeX, CSV and JSON."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from osdhuman.evaluation.results import Column, Result
from osdhuman.evaluation.statistics import Difference
from osdhuman.evaluation.tables import CAPTIONS, HEADS, Row, Table
from osdhuman.files import replacing


def write_table(table: Table, output: Path) -> list[Path]:
    """Write tables/table<number>.md, .tex, .csv and .json under `output`; returns their paths."""
    writers: dict[str, Callable[[Table], str]] = {".md": markdown, ".tex": latex, ".csv": as_csv, ".json": as_json}
    paths = []
    for suffix, write in writers.items():
        path = output / "tables" / f"table{table.number}{suffix}"
        with replacing(path) as part:
            part.write_text(write(table), encoding="utf-8")
        paths.append(path)
    return paths


def markdown(table: Table) -> str:
    """Best in bold, second underlined; below, the differences between methods, image by image."""
    metrics = [
        f"{table.set_titles[c.set]}<br>{c.metric.title} {c.metric.arrow}" if len(table.set_titles) > 1
        else f"{c.metric.title} {c.metric.arrow}" for c in table.columns
    ]  # fmt: skip
    lines = [[*HEADS[table.number], *metrics, "Average rank"]]
    for row in table.rows:
        rank = "" if row.average_rank is None else f"{row.average_rank:.2f}"
        lines.append([*row.heads, *(_markdown_cell(row.cells[c.key], c) for c in table.columns), rank])
        lines += [[*heads, *values, ""] for heads, values in paper_rows(table, row)]
    notes = "\n".join(f"- {note}" for note in table.footnotes)
    return f"# Table {table.number}\n\n{markdown_table(lines)}\n\n{notes}\n{_markdown_differences(table, metrics)}"


def markdown_table(lines: list[list[str]]) -> str:
    """Lines of cells as Markdown, the first being the heads."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _markdown_cell(cell: Result, column: Column) -> str:
    if cell.value is None:
        return "n/a" if cell.reason.startswith("unavailable") else ""
    number = number_text(cell.value, column)
    number = {"best": f"**{number}**", "second": f"<u>{number}</u>"}.get(cell.mark or "", number)
    return number if cell.low is None else f"{number} {interval_text(cell, column)}"


def _markdown_differences(table: Table, metrics: list[str]) -> str:
    """The paired differences, or nothing where only one method was measured."""
    title = next(row.title for row in table.rows if row.method == table.against)
    lines = [["Method", *metrics]]
    for row in table.rows:
        cells = [(row.cells[column.key].difference_to, column) for column in table.columns]
        if any(difference for difference, _ in cells):
            lines.append([row.title, *("" if d is None else difference_text(d, c) for d, c in cells)])
    if len(lines) == 1:
        return ""
    return (
        f"\n## Differences to {title}\n\nMean over the same images, 95 % bootstrap interval, p of a two-sided "
        f"sign-flip test (not corrected for the number of comparisons).\n\n{markdown_table(lines)}\n"
    )


def number_text(value: float, column: Column) -> str:
    """A mean with the paper's decimals."""
    return f"{value:.{column.metric.digits}f}"


def interval_text(cell: Result, column: Column) -> str:
    """A confidence interval with the paper's decimals."""
    return f"[{number_text(cell.low, column)}, {number_text(cell.high, column)}]"


def difference_text(difference: Difference, column: Column) -> str:
    """A paired difference with its interval and p-value."""
    low, mean, high = (
        f"{value:+.{column.metric.digits}f}" for value in (difference.low, difference.mean, difference.high)
    )
    return f"{mean} [{low}, {high}], p {difference.p:.2g}"


def paper_rows(table: Table, row: Row) -> Iterator[tuple[list[str], list[str]]]:
    """The paper's values of a row, and the differences where both exist: (heads, values)."""
    cells = [(row.cells[column.key], column) for column in table.columns]
    blank = [""] * (len(HEADS[table.number]) - 1)
    heads = (lambda text: [*blank, text]) if table.number == 2 else (lambda text: [text, *blank])
    if any(cell.paper is not None for cell, _ in cells):
        values = ["" if cell.paper is None else number_text(cell.paper, column) for cell, column in cells]
        yield heads(f"{row.paper} (paper)"), values
    if any(cell.difference is not None for cell, _ in cells):
        values = [
            "" if cell.difference is None else f"{cell.difference:+.{column.metric.digits}f}" for cell, column in cells
        ]
        yield heads("measured - paper"), values


def latex(table: Table) -> str:
    """A `table*`: groups by \\multirow, best red and second cyan (Tables 3 and 4: best bold), the paper's rows grey."""
    text = len(HEADS[table.number])
    by_set = [[c for c in table.columns if c.set == name] for name in table.set_titles]
    spec = "|".join(["l" * text, *("c" * len(columns) for columns in by_set if columns)])
    body = [line for rows in _latex_groups(table) for line in (*_latex_rows(table, rows), r"\midrule")][:-1]
    notes = " ".join(map(_escape, table.footnotes))
    legend = "Best and second best of each group in red and cyan." if table.number == 2 else "Best in bold."
    return f"""% Needs \\usepackage{{booktabs,multirow,graphicx,amssymb}} and \\usepackage[table]{{xcolor}}.
\\begin{{table*}}[t]
\\centering
\\resizebox{{\\textwidth}}{{!}}{{%
\\begin{{tabular}}{{{spec}}}
\\toprule
{_latex_heads(table, by_set)}
\\midrule
{chr(10).join(body)}
\\bottomrule
\\end{{tabular}}}}
\\parbox{{\\textwidth}}{{\\scriptsize {notes}}}
\\caption{{{CAPTIONS[table.number]} {legend}}}
\\label{{tab:table{table.number}}}
\\end{{table*}}
"""


def _latex_heads(table: Table, by_set: list[list[Column]]) -> str:
    names, metrics = HEADS[table.number], [_latex_metric(column) for column in table.columns]
    sets = [
        rf"\multicolumn{{{len(columns)}}}{{c}}{{{_escape(table.set_titles[columns[0].set])}}}"
        for columns in by_set
        if columns
    ]
    first = " & ".join([*(rf"\multirow{{2}}{{*}}{{{_escape(name)}}}" for name in names), *sets])
    second = " & ".join([*("" for _ in names), *metrics])
    return f"{first} \\\\\n{second} \\\\"


def _latex_metric(column: Column) -> str:
    arrow = r"\uparrow" if column.metric.higher_is_better else r"\downarrow"
    return f"{_escape(column.metric.title)} ${arrow}$"


def _latex_groups(table: Table) -> list[list[Row]]:
    return list(table.groups.values()) if table.number == 2 else [list(table.rows)]


def _latex_rows(table: Table, rows: list[Row]) -> list[str]:
    lines = []
    for row in rows:
        heads = [_escape(head) for head in row.heads]
        lines.append([*heads, *(_latex_cell(row.cells[c.key], c, table.number) for c in table.columns)])
        for heads, values in paper_rows(table, row):
            grey = [rf"\textcolor{{gray}}{{{_escape(text)}}}" if text else "" for text in (*heads, *values)]
            lines.append(grey)
    if table.number == 2:
        for line in lines:
            line[0] = ""
        lines[0][0] = rf"\multirow{{{len(lines)}}}{{*}}{{{_stacked(rows[0].group)}}}"
    return [" & ".join(line) + r" \\" for line in lines]


def _latex_cell(cell: Result, column: Column, number: int) -> str:
    if cell.value is None:
        return "n/a" if cell.reason.startswith("unavailable") else ""
    text = number_text(cell.value, column)
    if number == 2:
        colour = {"best": "red", "second": "cyan"}.get(cell.mark or "")
        return rf"\textcolor{{{colour}}}{{{text}}}" if colour else text
    return rf"\textbf{{{text}}}" if cell.mark == "best" else text


def _stacked(text: str) -> str:
    """Words above each other, as the paper sets the types of Table 2."""
    return r"\begin{tabular}{@{}l@{}}" + r" \\ ".join(_escape(word) for word in text.split()) + r"\end{tabular}"


def _escape(text: str) -> str:
    special = {character: rf"\{character}" for character in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "✓": r"\checkmark"}
    return "".join(special.get(character, character) for character in text)


def as_records(table: Table) -> list[dict[str, Any]]:
    """One record per cell, in the table's order."""
    return [
        {
            "table": table.number,
            "set": column.set,
            "method": row.method,
            "title": row.title,
            "group": row.group,
            "metric": column.metric.name,
            "variant": column.metric.variant,
            "higher_is_better": column.metric.higher_is_better,
            "measured": cell.value,
            "judged": cell.judged,
            "low": cell.low,
            "high": cell.high,
            "mark": cell.mark,
            "paper": cell.paper,
            "measured_minus_paper": cell.difference,
            "against": table.against if cell.difference_to else None,
            **{f"against_{name}": value for name, value in _difference_fields(cell.difference_to).items()},
            "reason": cell.reason or None,
        }
        for row in table.rows
        for column in table.columns
        for cell in [row.cells[column.key]]
    ]


def _difference_fields(difference: Difference | None) -> dict[str, float | None]:
    values = difference or (None,) * 4
    return {
        name: None if value is None or math.isnan(value) else value
        for name, value in zip(("difference", "low", "high", "p"), values, strict=True)
    }


def as_csv(table: Table) -> str:
    """One line per cell."""
    text = io.StringIO()
    records = as_records(table)
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def as_json(table: Table) -> str:
    """The cells, the average ranks and the footnotes."""
    ranks = {row.method: row.average_rank for row in table.rows if row.average_rank is not None}
    content = {"table": table.number, "cells": as_records(table), "average_ranks": ranks, "footnotes": table.footnotes}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
