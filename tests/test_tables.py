"""Tables from files of scores: what was measured stands alone, the paper beside it, and nothing is filled in."""

import csv
import io
import json
from pathlib import Path

import polars as pl
import pytest

from osdhuman import paper
from osdhuman.config import ConfigError, parse_config
from osdhuman.evaluation.config import EvalConfig
from osdhuman.evaluation.table_formats import as_csv, as_json, latex, markdown, write_table
from osdhuman.evaluation.tables import Table, build_table
from osdhuman.metrics.table import METRICS

IMAGES = ["a.png", "b.png", "c.png", "d.png"]
MEASURED = {  # set -> method -> metric -> scores of the four images
    "val": {
        "resshift": {"psnr_y": [20, 21, 22, 23], "niqe": [5, 5, 5, 6]},
        "seesr": {"psnr_y": [21, 22, 23, 24], "niqe": [4, 4, 4, 5]},
        "sinsr": {"psnr_y": [20, 20, 20, 20], "niqe": [3, 3, 3, 3]},
        "ours": {"psnr_y": [22, 23, 24, 25], "niqe": [4, 4, 5, 5]},
    },
    "test": {"ours": {"niqe": [4, 4, 4, 4]}},
}


def identity(name: str) -> dict:
    metric = METRICS[name]
    return {
        "variant": metric.variant,
        "library": "pyiqa",
        "version": "0.1.16",
        "weights_sha256": "ab" * 32 if name == "niqe" else None,
        "color": metric.color,
        "border": 0,
        "higher_is_better": metric.higher_is_better,
    }


def write_scores(output: Path, set_: str, method: str, scores: dict, **changes) -> None:
    """The two files of one measured folder; FID is one number, LPIPS could not be had."""
    folder = output / "scores" / set_
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {name: {"mean": 0.0, "judged": 4} | identity(name) for name in scores}
    metrics |= {"lpips": {"unavailable": "its weights cannot be had"}, "fid": {"mean": 17.5} | identity("fid")}
    said = {"set": set_, "method": method, "images": 4, "digest": method, "inputs_digest": set_ * 8, "metrics": metrics}
    (folder / f"{method}.json").write_text(json.dumps(said | changes))
    frame = pl.DataFrame({"file": IMAGES, **scores}, strict=False)
    frame.with_columns(pl.exclude("file").cast(pl.Float64)).write_parquet(folder / f"{method}.parquet")


def config(tmp_path: Path, **changes) -> EvalConfig:
    one, multi = "One-Step Diffusion", "Multi-Step Diffusion"
    values = {
        "output": tmp_path,
        "sets": {
            "val": {"lq": "lq", "hq": "hq", "title": "PERSONA-Val", "paper": "val", "note": "of the OSDHuman paper"},
            "test": {"lq": "lq", "title": "PERSONA-Test", "paper": "test"},
        },
        "methods": {
            "resshift": {"title": "ResShift*", "paper": "ResShift*", "group": multi},
            "seesr": {"title": "SeeSR", "paper": "SeeSR", "group": multi},
            "pasd": {"title": "PASD", "paper": "PASD", "group": multi, "note": "no restorer here yet"},
            "sinsr": {"title": "SinSR", "paper": "SinSR", "group": one},
            "ours": {"title": "OSDHuman", "paper": "OSDHuman", "group": one, "tiny": True},
        },
        "metrics": ["psnr_y", "lpips", "fid", "niqe"],
        "against": "ours",
    }
    return parse_config(EvalConfig, values | changes)


@pytest.fixture
def settings(tmp_path: Path) -> EvalConfig:
    for set_, methods in MEASURED.items():
        for method, scores in methods.items():
            write_scores(tmp_path, set_, method, scores)
    return config(tmp_path)


@pytest.fixture
def table(settings: EvalConfig) -> Table:
    return build_table(settings)


def cell(table: Table, method: str, key: str):
    return next(row for row in table.rows if row.method == method).cells[key]


def test_a_cell_is_the_mean_of_the_images(table):
    assert cell(table, "ours", "val/psnr_y").value == 23.5


def test_a_cell_has_an_interval_over_the_images(table):
    measured = cell(table, "ours", "val/psnr_y")
    assert 22 <= measured.low < 23.5 < measured.high <= 25


def test_a_number_of_a_whole_set_has_no_interval(table):
    measured = cell(table, "ours", "val/fid")
    assert (measured.value, measured.low) == (17.5, None)


def test_the_papers_value_stands_beside(table):
    assert cell(table, "ours", "val/psnr_y").paper == paper.TABLE_2["OSDHuman"]["val"]["psnr_y"] == 22.41


def test_the_difference_is_measured_minus_paper(table):
    assert cell(table, "ours", "val/psnr_y").difference == pytest.approx(23.5 - 22.41)


def test_a_row_that_was_not_run_stays_empty(table):
    assert [c.value for c in next(row for row in table.rows if row.method == "pasd").cells.values()] == [None] * 5


def test_a_row_that_was_not_run_says_why(table):
    assert "PASD not run: no restorer here yet." in table.footnotes


def test_a_reason_from_the_run_goes_before_the_note(settings, tmp_path):
    (tmp_path / "not_run.json").write_text('{"pasd": "out of reach"}')
    assert "PASD not run: out of reach." in build_table(settings).footnotes


def test_an_unavailable_metric_keeps_its_column_and_gives_the_reason(table):
    assert cell(table, "ours", "val/lpips").reason == "unavailable: its weights cannot be had"


def test_an_unavailable_metric_is_a_footnote(table):
    assert any("LPIPS unavailable: its weights cannot be had" in note for note in table.footnotes)


def test_metrics_with_a_reference_have_no_column_on_a_set_without(table):
    assert [c.metric.name for c in table.columns if c.set == "test"] == ["niqe"]


def test_other_pictures_than_the_papers_get_no_value_of_the_paper(settings, tmp_path):
    sets = {"val": {"lq": "lq", "hq": "hq", "title": "My photographs"}}
    table = build_table(config(tmp_path, sets=sets))
    assert cell(table, "ours", "val/psnr_y").paper is None


def test_best_and_second_are_marked_within_their_group(table):
    marks = {row.method: row.cells["val/psnr_y"].mark for row in table.rows}
    assert marks == {"resshift": "second", "seesr": "best", "pasd": None, "sinsr": "second", "ours": "best"}


def test_lower_is_better_for_niqe(table):
    assert cell(table, "sinsr", "val/niqe").mark == "best"


def test_the_name_of_a_tiny_model_says_so(table):
    assert table.rows[-1].title == "OSDHuman (tiny)"


def test_difference_to_the_reference_method_is_paired(table):
    difference = cell(table, "seesr", "val/psnr_y").difference_to
    assert (difference.mean, difference.low, difference.high) == (-1, -1, -1)


def test_average_rank_is_over_the_columns_that_all_measured_methods_have(table):
    # PSNR: ours, seesr, resshift, sinsr; NIQE: sinsr, seesr, ours, resshift; FID: all alike, rank 2.5
    assert next(row for row in table.rows if row.method == "ours").average_rank == pytest.approx((1 + 2.5 + 3) / 3)


def test_pictures_that_a_metric_cannot_judge_are_counted(settings, tmp_path):
    write_scores(tmp_path, "test", "ours", {"niqe": [4.0, None, 6.0, float("nan")]})
    table = build_table(settings)
    assert (cell(table, "ours", "test/niqe").value, cell(table, "ours", "test/niqe").judged) == (5, 2)


def test_the_infinite_psnr_of_equal_pictures_is_no_mean(settings, tmp_path):
    write_scores(tmp_path, "val", "ours", {"psnr_y": [20.0, 21.0, float("inf"), 22.0]})
    table = build_table(settings)
    assert (cell(table, "ours", "val/psnr_y").value, "Infinity" in as_json(table)) == (None, False)


def test_rows_of_other_pictures_are_refused(settings, tmp_path):
    write_scores(tmp_path, "val", "ours", MEASURED["val"]["ours"], inputs_digest="others")
    with pytest.raises(ValueError, match=r"resshift and ours: inputs_digest"):
        build_table(settings)


def test_rows_of_another_variant_are_refused(settings, tmp_path, monkeypatch):
    path = tmp_path / "scores" / "val" / "ours.json"
    path.write_text(path.read_text().replace('"psnr_y", "library"', '"psnr_matlab", "library"'))
    with pytest.raises(ValueError, match=r"psnr_y variant"):
        build_table(settings)


def test_footnotes_say_count_and_digest(table):
    assert any(
        "PERSONA-Val: 4 of the paper's 4216 images, digest valvalvalvalvalv; of the OSDHuman paper" in note
        for note in table.footnotes
    )


def test_footnotes_say_variant_version_and_weights(table):
    assert "NIQE: niqe, pyiqa 0.1.16, weights sha256 abababababab, on gray." in table.footnotes


# -- formats


def test_markdown_prints_the_papers_row_and_the_difference(table):
    lines = markdown(table).splitlines()
    start = next(i for i, line in enumerate(lines) if "OSDHuman (tiny)" in line)
    assert ("OSDHuman (paper)" in lines[start + 1], "measured - paper" in lines[start + 2]) == (True, True)


def test_markdown_prints_digits_as_the_paper_and_the_best_in_bold(table):
    assert "| **23.50** [" in markdown(table)


def test_markdown_of_an_empty_row_has_no_number(table):
    line = next(line for line in markdown(table).splitlines() if "| PASD |" in line)
    assert not any(character.isdigit() for character in line)


def test_latex_groups_rows(table):
    assert r"\multirow{6}{*}{\begin{tabular}{@{}l@{}}One-Step \\ Diffusion\end{tabular}}" in latex(table)


def test_latex_has_the_best_in_red_and_the_second_in_cyan(table):
    assert r"\textcolor{red}{23.50}" in latex(table) and r"\textcolor{cyan}{21.50}" in latex(table)


def test_latex_separates_the_sets_as_the_paper(table):
    assert r"\begin{tabular}{ll|cccc|c}" in latex(table)


def test_latex_escapes_names(settings, tmp_path):
    methods = {"ours": {"title": "50 % of_all"}}
    assert r"50 \% of\_all" in latex(build_table(config(tmp_path, methods=methods, against=None)))


def test_csv_has_one_line_for_each_cell(table):
    assert len(list(csv.DictReader(io.StringIO(as_csv(table))))) == 5 * 5


def test_json_keeps_measured_and_paper_apart(table):
    cells = json.loads(as_json(table))["cells"]
    found = next(c for c in cells if (c["method"], c["metric"], c["set"]) == ("pasd", "psnr_y", "val"))
    assert (found["measured"], found["paper"]) == (None, 22.17)


def test_all_four_formats_are_written(settings, tmp_path):
    names = sorted(path.name for path in write_table(build_table(settings), tmp_path))
    assert names == ["table2.csv", "table2.json", "table2.md", "table2.tex"]


def test_tables_repeat_bit_for_bit(settings, tmp_path):
    first = [path.read_bytes() for path in write_table(build_table(settings), tmp_path)]
    assert [path.read_bytes() for path in write_table(build_table(settings), tmp_path)] == first


# -- Tables 3 and 4


def test_table_3_has_the_training_data_as_rows(settings, tmp_path):
    methods = {"ours": {"title": "PERSONA", "paper": "PERSONA"}, "sinsr": {"title": "LSDIR", "paper": "LSDIR"}}
    table = build_table(config(tmp_path, table=3, methods=methods))
    assert [(row.heads, row.cells["val/niqe"].paper) for row in table.rows] == [
        (("PERSONA",), 3.575),
        (("LSDIR",), 3.6461),
    ]


def test_table_4_says_what_the_extractor_read(settings, tmp_path):
    methods = {
        "ours": {"title": "Null", "paper": "null"},
        "hq": {"title": "HFIE", "paper": "hfie_hq", "prompt_from": "hq"},
        "lq": {"title": "HFIE", "paper": "hfie_lq", "prompt_from": "lq"},
    }
    table = build_table(config(tmp_path, table=4, methods=methods, against="ours"))
    assert [row.heads for row in table.rows] == [("Null", "", ""), ("HFIE", "✓", ""), ("HFIE", "", "✓")]


def test_table_4_of_the_paper_is_of_the_test_set_alone(settings, tmp_path):
    table = build_table(config(tmp_path, table=4, methods={"ours": {"paper": "hfie_lq"}}))
    assert (cell(table, "ours", "test/niqe").paper, cell(table, "ours", "val/niqe").paper) == (4.1287, None)


def test_a_row_that_the_paper_lacks_is_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match="Table 2 of the paper has no row LSDIR"):
        config(tmp_path, methods={"ours": {"paper": "LSDIR"}}, against=None)


def test_null_takes_an_entry_away(tmp_path):
    sets = {"val": {"lq": "lq", "hq": "hq"}, "test": None}
    assert list(config(tmp_path, sets=sets).sets) == ["val"]


def test_two_origins_of_a_method_are_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match="either restorer or images"):
        config(tmp_path, methods={"ours": {"restorer": "input", "images": {"val": "folder"}}}, against=None)


def test_every_default_metric_is_known():
    assert set(EvalConfig.model_fields["metrics"].default) <= set(METRICS)
