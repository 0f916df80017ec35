"""The report on a run of HQ-ACF: its numbers by hand, what it says where something is missing, the same bytes twice."""

import json
import re
import shutil

import numpy as np
import polars as pl
import pytest
from curated import FLOOR, write_run
from PIL import Image

from osdhuman import page, paper
from osdhuman.curate.report import contact_sheet as sheets
from osdhuman.curate.report import table_1 as tables
from osdhuman.curate.report import whole_images as whole_module
from osdhuman.curate.report.contact_sheet import contact_sheet
from osdhuman.curate.report.figures import Scores, plain, spread_apart
from osdhuman.curate.report.histograms import histogram, image_sharpness, score_histogram
from osdhuman.curate.report.report import report
from osdhuman.curate.report.run import read_run
from osdhuman.curate.report.sections import limits_section
from osdhuman.curate.report.table_1 import crop_rows, fault_lines, measure_folder, paper_name, table_1, write_table_1
from osdhuman.curate.report.tags_section import category_table, tags_section, totals_table
from osdhuman.curate.report.whole_images import draw_samples, score_whole_images
from osdhuman.curate.tags import CHUNK, count_tags
from osdhuman.images import load_rgb
from osdhuman.metrics import folder as benchmark
from osdhuman.metrics.scorers import load_scorer

SOURCES = {"openimages": 60, "coco_val": 90}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), SOURCES)


@pytest.fixture
def run(out):
    return read_run(out)


@pytest.fixture(scope="module")
def written(out, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    report(out, folder)
    return folder


# Table 1


def test_a_source_has_the_means_of_all_its_scored_crops(out, run):
    rows, _ = table_1(run, {}, [], out, "cpu")
    scored = pl.read_parquet(out / "manifest.parquet").filter(source="coco_val")["niqe"].drop_nulls()
    row = next(row for row in rows if row.name == "coco_val")
    assert (row.images, row.measured["niqe"]) == (len(scored), pytest.approx(scored.mean(), rel=1e-12))


def test_persona_has_the_means_of_the_training_set_and_stands_last(out, run):
    rows, _ = table_1(run, {}, [], out, "cpu")
    train = pl.read_parquet(out / "manifest.parquet").filter(split="train")["niqe"]
    assert rows[-1].name == "PERSONA train"
    assert (rows[-1].images, rows[-1].measured["niqe"]) == (len(train), pytest.approx(train.mean(), rel=1e-12))


def test_the_papers_values_stand_beside(out, run):
    rows, _ = table_1(run, {}, [], out, "cpu")
    assert {row.name: row.paper for row in rows}["openimages"] == paper.TABLE_1["OID"]


def test_a_data_set_of_the_paper_that_was_not_read_keeps_its_row(out, run):
    rows, _ = table_1(run, {}, [], out, "cpu")
    assert [row.name for row in rows] == [
        "openimages",
        "VOC",
        "coco_val",
        "Object365",
        "CrowdHuman",
        "DeepFashion",
        "iDesigner",
        "PERSONA train",
    ]


def test_a_metric_that_was_not_scored_says_why(out, run):
    _, missing = table_1(run, {}, [], out, "cpu")
    assert missing == dict.fromkeys(["clipiqa", "maniqa", "musiq"], tables.NOT_SCORED)


@pytest.mark.parametrize(
    ("source", "row"),
    [
        ("OpenImages-V6", "OID"),
        ("coco_val2017", "COCO"),
        ("objects365", "Object365"),
        ("VOC 2007", "VOC"),
        ("my", None),
    ],
)
def test_the_row_of_a_source_is_found_by_how_its_name_begins(source, row):
    assert paper_name(source) == row


def test_an_empty_training_set_leaves_the_papers_row(tmp_path):
    rows, _ = table_1(read_run(write_run(tmp_path, {"coco": 1})), {}, [], tmp_path, "cpu")
    assert (rows[-1].images, rows[-1].measured, rows[-1].paper) == (0, {}, paper.TABLE_1["PERSONA"])


def test_table_1_as_markdown_has_the_paper_in_brackets(out, run, tmp_path):
    write_table_1(table_1(run, {}, [], tmp_path, "cpu")[0], tmp_path)
    lines = (tmp_path / "table1.md").read_text().splitlines()
    assert lines[0] == "| data set | measured on | images | BRISQUE ↓ | NIQE ↓ | CLIPIQA ↑ | MANIQA ↑ | MUSIQ ↑ |"
    assert re.fullmatch(
        r"\| PERSONA train \| crops of the training set \| \d+ \| [\d.]+ \(10\.3758\) .* \| — \(74\.7808\) \|",
        lines[-1],
    )


def test_table_1_as_csv_has_measured_and_paper_in_columns(out, run, tmp_path):
    rows, _ = table_1(run, {}, [], tmp_path, "cpu")
    write_table_1(rows, tmp_path)
    table = pl.read_csv(tmp_path / "table1.csv")
    assert table["niqe"].to_list()[-1] == pytest.approx(rows[-1].measured["niqe"], abs=1e-6)
    assert table["niqe_paper"].to_list()[-1] == 2.8659


def test_a_folder_is_measured_by_the_benchmark(tmp_path, monkeypatch):
    def measure(images, output, metrics, **others):
        return {"images": 7, "metrics": {"niqe": {"mean": 3.5}, "musiq": {"unavailable": "no weights"}}}

    monkeypatch.setattr(benchmark, "measure", measure)
    row, missing = measure_folder("iDesigner", tmp_path, tmp_path / "scores", "cpu")
    assert (row.images, row.measured, row.paper["niqe"], missing) == (7, {"niqe": 3.5}, 4.6227, {"musiq": "no weights"})


def test_jpegs_are_measured_as_they_are(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).resize((128, 128)).save(tmp_path / "a.jpg")
    row, _ = measure_folder("mine", tmp_path, tmp_path / "scores", "cpu")
    assert row.images == 1 and row.measured["niqe"] > 0


def test_a_crop_that_a_metric_cannot_judge_does_not_count(out):
    rows = pl.LazyFrame({"source": "a", "niqe": [4.0, float("nan"), None, 5.0]})
    assert crop_rows(rows, ["niqe"], pl.col("source"), "crops")[0].measured == {"niqe": 4.5}


# Histograms


def test_a_histogram_counts_by_group():
    rows = pl.LazyFrame({"v": [0.0, 1.0, 1.0, 2.0, None], "g": ["a", "a", "b", "b", "b"]})
    found = histogram(rows, pl.col("v"), pl.col("g"))  # four values: three bins
    assert {name: counts.tolist() for name, counts in found.counts.items()} == {"a": [1, 1, 0], "b": [0, 1, 1]}


def test_equal_values_are_a_histogram_too():
    found = histogram(pl.LazyFrame({"v": [3.0, 3.0]}), pl.col("v"), pl.lit("all"))
    assert (found.edges.tolist()[0], found.edges.tolist()[-1], found.counts["all"].sum()) == (3.0, 4.0, 2)


def test_no_values_are_no_histogram():
    assert histogram(pl.LazyFrame({"v": [None, float("nan")]}), pl.col("v"), pl.lit("all")) is None


def test_train_is_a_part_of_all_crops(run):
    found = score_histogram(run, "niqe").counts
    assert (found["train"] <= found["all crops"]).all()
    assert found["train"].sum() == run.account["splits"]["train"]


def test_the_sharpness_of_an_image_counts_once_whatever_its_boxes(out, run):
    table = pl.read_parquet(out / "manifest.parquet").filter(pl.col("sharpness").is_not_null())
    assert image_sharpness(run).collect().height == table.n_unique(["source", "file"]) < table.height


# Figures


def test_labels_are_pushed_apart_and_stay_within_the_limit():
    placed = spread_apart([0.9, 0.88, 0.0, -0.99], gap=0.2, limit=1.0)
    assert placed == pytest.approx([0.9, 0.7, 0.0, -0.99])


def test_a_contact_sheet_has_eight_images_in_a_row(tmp_path):
    Image.new("RGB", (512, 512), (10, 20, 30)).save(tmp_path / "a.png")
    sheet = contact_sheet([tmp_path / "a.png"] * 9)
    assert sheet.shape == (2 * sheets.TILE + 6, 8 * sheets.TILE + 7 * 6, 3)
    assert (sheet[0, 0].tolist(), sheet[-1, -1].tolist()) == ([10, 20, 30], [255, 255, 255])


def test_every_figure_is_there_as_png_and_pdf(written):
    names = {path.name for path in (written / "figures").iterdir()}
    drawn = ("figure1", "figure6", "persons", "scores", "sharpness", "survivors")
    assert names == {f"{name}.{kind}" for name in drawn for kind in ("png", "pdf")}


# The page


def test_the_page_needs_nothing_but_itself(written):
    html = (written / "report.html").read_text()
    links = re.findall(r'(?:src|srcset|href)="([^"]{0,5})', html)
    assert links and set(links) == {"data:"}


def test_the_page_says_how_tags_are_made(written):
    assert "No tags were computed" in (written / "report.html").read_text()


def test_the_page_names_missing_metrics(written):
    words = f"Not measured: CLIPIQA, MANIQA, MUSIQ. Why: {tables.NOT_SCORED}."
    assert words in (written / "report.html").read_text()


def test_the_same_run_gives_the_same_files(run, written, tmp_path):
    section = limits_section(run, tmp_path)
    assert section in (written / "report.html").read_text()
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (written / "figures" / path.name).read_bytes()


def test_names_of_sources_cannot_break_the_page():
    assert page.table(["<i>"], [["<b>"], [page.Cell("<u>")]]).count("&lt;") == 3


def test_an_unfinished_run_is_an_error_that_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not a finished run of HQ-ACF: manifest\.parquet is missing"):
        report(tmp_path, tmp_path / "report")


# Tags


def test_tags_stand_beside_the_papers(run, tmp_path):
    rows = [("a", ["man", "shirt"], None), ("b", ["man"], None)]
    (tmp_path / "tags").mkdir()
    pl.DataFrame(rows, schema=CHUNK, orient="row").write_parquet(tmp_path / "tags/00000.parquet")
    html = tags_section(run, tmp_path / "tags", None, tmp_path)
    assert "<tr><td>tags in all</td><td>3</td><td>1,452,088</td></tr>" in html
    assert (tmp_path / "tags.csv").read_text() == "tag,category,count\nman,People,2\nshirt,Clothing,1\n"


def test_a_folder_of_tags_that_holds_none_is_an_error(out, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no tags"):
        tags_section(read_run(out), tmp_path, None, tmp_path)


def test_shares_of_categories_are_of_all_tags():
    _, rows = category_table({"People": (3, 2), "Unsorted": (1, 1)})
    assert rows == [["People", "3", "75.0 %", "34.1 %", "2", "585"], ["Unsorted", "1", "25.0 %", "—", "1", "—"]]


# The miniature itself


def test_the_miniature_has_every_outcome(out):
    table = pl.read_parquet(out / "manifest.parquet")
    assert table.filter(split="train")["niqe"].max() <= FLOOR
    assert set(table["reason"].drop_nulls()) >= {"no person", "blurred", "not in the top third"}
    assert np.isfinite(table["niqe"].drop_nulls().to_numpy()).all()


# Whole images


WHOLE = {"coco": 10}


def write_sources(out, count):
    """Noise of different sizes as the images of `coco`, and the config.yaml that names their folder."""
    random = np.random.default_rng(0)
    (out / "coco").mkdir()
    for number in range(count):
        noise = random.integers(0, 255, (30, 40 + number, 3), np.uint8)
        Image.fromarray(noise).resize((150, 140 + number)).save(out / "coco" / f"{number:06d}.jpg")
    sources = [{"name": "coco", "format": "folder", "images": str(out / "coco")}]
    (out / "config.yaml").write_text(json.dumps({"sources": sources}))


@pytest.fixture
def whole_run(tmp_path):
    (tmp_path / "run").mkdir()
    write_sources(write_run(tmp_path / "run", WHOLE), WHOLE["coco"])
    return read_run(tmp_path / "run")


def images_with_persons(run):
    return run.rows.filter(pl.col("box_id").is_not_null()).collect()["file"].unique().to_list()


def test_only_images_with_a_box_of_a_person_are_drawn(whole_run):
    (sample,) = draw_samples(whole_run, 1000, seed=0)
    assert sorted(sample.files) == sorted(images_with_persons(whole_run)) and sample.among == len(sample.files)


def test_a_larger_sample_begins_with_the_smaller_one(run):
    few, more = (draw_samples(run, number, seed=0)[0].files for number in (3, 9))
    assert more[:3] == few and len(more) == 9


def test_another_seed_draws_other_images(run):
    assert draw_samples(run, 5, seed=0)[0].files != draw_samples(run, 5, seed=1)[0].files


def test_an_image_is_scored_whole(whole_run, tmp_path):
    (scored,), _ = score_whole_images(whole_run, ["niqe"], 1, tmp_path / "report")
    file = scored.sample.files[0]
    expected = load_scorer("niqe")(load_rgb(whole_run.out / "coco" / file)[None]).item()
    assert scored.values == {file: {"niqe": expected}}


def test_a_second_report_scores_nothing_again(whole_run, tmp_path, monkeypatch):
    first, _ = score_whole_images(whole_run, ["niqe"], 2, tmp_path / "report")
    monkeypatch.setattr(whole_module, "load_rgb", lambda path: pytest.fail(f"{path} was read again"))
    assert score_whole_images(whole_run, ["niqe"], 2, tmp_path / "report") == (first, {})


def test_a_killed_report_loses_the_torn_line_alone(whole_run, tmp_path, monkeypatch):
    (first,), _ = score_whole_images(whole_run, ["niqe"], 2, tmp_path / "report")
    kept = tmp_path / "report/whole/coco.jsonl"
    kept.write_bytes(kept.read_bytes()[:-7])
    read = []
    monkeypatch.setattr(whole_module, "load_rgb", lambda path: read.append(path.name) or load_rgb(path))
    assert score_whole_images(whole_run, ["niqe"], 2, tmp_path / "report")[0] == [first]
    assert read == [first.sample.files[1]]


def test_scores_of_other_weights_are_made_again(whole_run, tmp_path, monkeypatch):
    score_whole_images(whole_run, ["niqe"], 1, tmp_path / "report")
    kept = tmp_path / "report/whole/coco.jsonl"
    kept.write_text(kept.read_text().replace('"version": "', '"version": "0'))
    read = []
    monkeypatch.setattr(whole_module, "load_rgb", lambda path: read.append(path) or load_rgb(path))
    score_whole_images(whole_run, ["niqe"], 1, tmp_path / "report")
    assert len(read) == 1


def test_an_image_that_cannot_be_read_is_counted_and_named(whole_run, tmp_path):
    (sample,) = draw_samples(whole_run, 2, seed=0)
    (whole_run.out / "coco" / sample.files[0]).write_bytes(b"")
    scored, _ = score_whole_images(whole_run, ["niqe"], 2, tmp_path / "report")
    (line,) = fault_lines(scored)
    assert line.startswith(f"1 of 2 drawn images of coco could not be scored, the first is {sample.files[0]} (")
    table = pl.read_csv(tmp_path / "report/whole_images.csv")
    assert table.filter(pl.col("fault").is_not_null())["file"].to_list() == [sample.files[0]]


def test_whole_images_stand_beside_the_paper_and_crops_do_not(whole_run, tmp_path):
    scored, _ = score_whole_images(whole_run, ["niqe"], 1, tmp_path / "report")
    rows, _ = table_1(whole_run, {}, scored, tmp_path, "cpu")
    found = {row.name: (row.unit, bool(row.paper)) for row in rows if row.name.startswith("coco")}
    among = scored[0].sample.among
    assert found == {
        "coco": (f"whole images, drawn from {among}", True),
        "coco, crops": ("crops before selection", False),
    }


def test_the_section_says_that_its_sources_are_whole_images(whole_run, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "save", lambda *drawing: ("data:light", "data:dark"))
    scored, _ = score_whole_images(whole_run, ["niqe"], 1, tmp_path / "report")
    rows, missing = table_1(whole_run, {}, scored, tmp_path, "cpu")
    html = tables.table_section(rows, missing, scored, tmp_path)
    assert tables.WITH_WHOLE.split(",")[0] in html and "whole images, drawn from" in html


def test_a_sources_folder_that_is_gone_is_one_line(whole_run, tmp_path):
    shutil.rmtree(whole_run.out / "coco")
    with pytest.raises(ValueError, match=r"^whole images of source coco need its folder .* does not exist$"):
        score_whole_images(whole_run, ["niqe"], 1, tmp_path / "report")


# Damaged runs


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("account.json", ""),
        ("account.json", "{}"),
        ("account.json", '{"images": 3}'),
        ("thresholds.json", "{"),
        ("thresholds.json", '{"coco": "sharp"}'),
        ("selection/selection.json", "[]"),
        ("selection/selection.json", '{"floors": 3}'),
    ],
)
def test_a_damaged_product_is_one_line_that_says_what_to_delete(tmp_path, name, text):
    write_run(tmp_path, {"coco": 5})
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"^[^\n]*{name} is damaged [^\n]* delete [^\n]* and run HQ-ACF again[^\n]*$"):
        read_run(tmp_path)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no parquet at all"])
def test_a_manifest_that_is_no_parquet_is_one_line(tmp_path, data):
    write_run(tmp_path, {"coco": 5})
    (tmp_path / "manifest.parquet").write_bytes(data)
    with pytest.raises(ValueError, match=r"^[^\n]*manifest.parquet cannot be read [^\n]*$"):
        report(tmp_path, tmp_path / "report")


def test_a_manifest_without_a_column_is_one_line(tmp_path):
    write_run(tmp_path, {"coco": 5})
    pl.read_parquet(tmp_path / "manifest.parquet").drop("persons").write_parquet(tmp_path / "manifest.parquet")
    with pytest.raises(ValueError, match="has no column persons"):
        report(tmp_path, tmp_path / "report")


# Names from outside


def test_a_name_cannot_break_table_1(tmp_path):
    write_table_1([Scores("a|b\n<i>`x`", 1, {"niqe": 3.0}, {}, "crops")], tmp_path)
    assert r"| a\|b &lt;i&gt;\`x\` | crops | 1 |" in (tmp_path / "table1.md").read_text()


def test_a_name_cannot_break_the_csv(tmp_path):
    write_table_1([Scores('a,"b"\nc', 1, {"niqe": 3.0}, {}, "crops")], tmp_path)
    assert pl.read_csv(tmp_path / "table1.csv")["name"].to_list() == ['a,"b"\nc']


def test_a_dollar_begins_no_formula():
    assert plain("$x$") == r"\$x\$"


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a\nb"])
def test_a_name_of_a_folder_is_a_plain_one(tmp_path, name):
    with pytest.raises(ValueError, match="expected a name of letters, digits, blanks, dots and hyphens"):
        measure_folder(name, tmp_path, tmp_path / "scores", "cpu")


# Fig. 7's totals


def test_the_papers_totals_of_figure_7_are_those_of_its_text(tmp_path):
    pl.DataFrame([("a", ["man"], None)], schema=CHUNK, orient="row").write_parquet(tmp_path / "00000.parquet")
    _, rows = totals_table(count_tags(tmp_path))
    assert [(ours, theirs) for _, ours, theirs in rows] == [
        ("1", "109,053"),
        ("1", "1,452,088"),
        ("1", "3,365"),
        ("1.00", "13.32"),
    ]
