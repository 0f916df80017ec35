"""Annotation files that were once read wrongly: what each must give. The inputs lie in tests/cases."""

import io
import json
from pathlib import Path

import pytest

from osdhuman.config import parse_config
from osdhuman.curate.sources import Faults, SourceConfig, read_source

CASES = Path(__file__).parent / "cases"
IMAGES = CASES / "coco" / "images"


def read(format, *files, **settings):
    """(records, faults) of annotation files below tests/cases."""
    annotations = [CASES / format / file for file in files]
    values = {"name": "case", "format": format, "images": IMAGES, "annotations": annotations, **settings}
    if format == "openimages":
        values["classes"] = CASES / "openimages" / "cls.csv"
    stream = io.StringIO()
    records = list(read_source(parse_config(SourceConfig, values), Faults(stream)))
    return records, [json.loads(line)["fault"] for line in stream.getvalue().splitlines()]


def files_and_boxes(format, file):
    records, faults = read(format, file)
    assert not faults
    return [(record.file, len(record.boxes), len(record.ignored)) for record in records]


@pytest.mark.parametrize(
    ("format", "file", "image"),
    [
        ("coco", "cat_str_in_ann.json", "1.jpg"),  # a category id as text in one table only
        ("coco", "cat_two.json", "1.jpg"),  # `person` and `Person`
        ("coco", "crowd_str0.json", "1.jpg"),  # iscrowd "0"
        ("coco", "utf16.json", "1.jpg"),
        ("coco", "huge_int.json", "1.jpg"),  # an id beyond 64 bits
        ("coco", "caseext.json", "5.JPG"),
        ("coco", "backslash.json", "sub/3.jpg"),
        ("crowdhuman", "c_ignore0s.odgt", "1.jpg"),  # ignore "0"
        ("crowdhuman", "c_JPG.odgt", "5.JPG"),
        ("objects365", "ob_list_bom.json", "1.jpg"),
        ("voc", "2.xml", "2.jpg"),  # the file was renamed after the xml was written
        ("voc", "4.xml", "4.png"),  # no suffix
        ("voc", "v_png.xml", "4.png"),  # a wrong suffix
        ("voc", "v_back.xml", "sub/3.jpg"),
        ("voc", "v_gb.xml", "1.jpg"),  # GB2312
        ("openimages", "o_index.csv", "1.jpg"),  # an index column
        ("openimages", "o_quoted.csv", "1.jpg"),
        ("openimages", "o_reorder13.csv", "1.jpg"),
        ("openimages", "o_space.csv", "1.jpg"),
        ("openimages", "o_over.csv", "1.jpg"),  # a fraction of 1.0000001
    ],
)
def test_one_person_in_the_image_that_is_meant(format, file, image):
    assert files_and_boxes(format, file) == [(image, 1, 0)]


@pytest.mark.parametrize("file", ["o_bool.csv", "o_float1.csv"])
def test_a_group_is_an_ignored_region_however_its_flag_is_written(file):
    assert files_and_boxes("openimages", file) == [("1.jpg", 0, 1)]


def test_columns_in_another_order_give_the_box_of_their_names():
    assert read("openimages", "o_reorder13.csv")[0][0].boxes[0][:4] == pytest.approx((64, 48, 384, 432))


@pytest.mark.parametrize("word", [0, 1, True, False, 0.0, 1.0, "0", "1", "true", "False", "TRUE", None, ""])
def test_flags_are_read_alike_in_every_format(tmp_path, word):
    expected = str(word).casefold() in ("1", "1.0", "true")
    coco = {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": word}],
        "categories": [{"id": 1, "name": "person"}],
    }
    crowd = {"ID": "1", "gtboxes": [{"tag": "person", "vbox": [0, 0, 9, 9], "extra": {"ignore": word}}]}
    website = [{"url": "a/1.jpg", "gtboxes": [{"rect": [0, 0, 9, 9], "category": "Person", "isfake": word}]}]
    difficult = "" if word is None else word
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    voc = f"<annotation><object><name>person</name><difficult>{difficult}</difficult>{box}</object></annotation>"
    texts = {
        "coco": ("1.json", json.dumps(coco)),
        "crowdhuman": ("1.odgt", json.dumps(crowd)),
        "objects365": ("1b.json", json.dumps(website)),
        "voc": ("1.xml", voc),
    }
    found = {}
    for format, (name, text) in texts.items():
        (tmp_path / name).write_text(text)
        found[format] = len(read(format, tmp_path / name)[0][0].ignored)
    assert found == dict.fromkeys(texts, int(expected))


def test_a_flag_that_is_neither_is_a_fault_of_its_box(tmp_path):
    crowd = {"ID": "1", "gtboxes": [{"tag": "person", "vbox": [0, 0, 9, 9], "extra": {"ignore": "maybe"}}]}
    (tmp_path / "1.odgt").write_text(json.dumps(crowd))
    assert read("crowdhuman", tmp_path / "1.odgt")[1] == ["ignore must be 0 or 1, got 'maybe'"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize(
    ("format", "file"),
    [
        ("coco", "crowd_str0.json"),
        ("crowdhuman", "c_JPG.odgt"),
        ("openimages", "o_quoted.csv"),
        ("objects365", "ob_list_bom.json"),
    ],
)
def test_text_may_be_in_any_unicode_encoding(tmp_path, format, file, encoding):
    text = (CASES / format / file).read_text(encoding="utf-8-sig")
    (tmp_path / file).write_bytes(text.encode(encoding))
    records, faults = read(format, tmp_path / file)
    assert [len(record.boxes) for record in records] == [1] and not faults


@pytest.mark.parametrize(
    ("format", "name", "text"),
    [
        ("crowdhuman", "1.odgt", '{"ID": "../1", "gtboxes": []}'),
        ("crowdhuman", "1.odgt", '{"ID": "/etc/1", "gtboxes": []}'),
        ("openimages", "1.csv", "../1,xclick,/m/01g317,1,0.1,0.6,0.1,0.9,0,0,0,0,0\n"),
    ],
)
def test_a_name_that_leaves_the_folder_of_images_is_refused(tmp_path, format, name, text):
    (tmp_path / name).write_text(text)
    records, faults = read(format, tmp_path / name)
    assert not records and "not below the folder of images" in faults[0]


def test_a_coco_name_with_dots_is_looked_for_inside_the_folder_only(tmp_path):
    rows = {"images": [{"id": 1, "file_name": "../../1.jpg"}], "annotations": []}
    (tmp_path / "1.json").write_text(json.dumps(rows | {"categories": [{"id": 1, "name": "person"}]}))
    assert read("coco", tmp_path / "1.json")[0][0].file == "1.jpg"


def test_a_name_that_fits_two_files_is_a_fault(tmp_path):
    for name in ("7.png", "7.webp"):
        (tmp_path / name).touch()
    (tmp_path / "1.odgt").write_text('{"ID": "7", "gtboxes": []}')
    records, faults = read("crowdhuman", tmp_path / "1.odgt", images=tmp_path)
    assert not records and "fits 2 files: 7.png, 7.webp" in faults[0]


def test_the_suffix_in_another_case_is_preferred_to_another_suffix(tmp_path):
    for name in ("7.JPG", "7.png"):
        (tmp_path / name).touch()
    (tmp_path / "1.odgt").write_text('{"ID": "7", "gtboxes": []}')
    assert read("crowdhuman", tmp_path / "1.odgt", images=tmp_path)[0][0].file == "7.JPG"


def test_hidden_xml_files_are_passed_over_and_folders_searched(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("deep/4.xml", "._4.xml"):
        (tmp_path / name).write_text("<annotation/>")
    assert [record.image_id for record in read("voc", tmp_path)[0]] == ["4"]


def test_a_number_beyond_64_bits_costs_nothing_else(tmp_path):
    rows = [{"id": 10**30, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 9, 9.5]} for i in (10**30, 2)]
    table = {"images": rows, "annotations": boxes, "categories": [{"id": 1, "name": "person"}]}
    (tmp_path / "1.json").write_text(json.dumps(table))
    records, faults = read("coco", tmp_path / "1.json")
    assert [(record.image_id, len(record.boxes)) for record in records] == [("2", 1), (str(10**30), 1)] and not faults


def test_a_name_too_long_for_a_file_ends_nothing(tmp_path):
    (tmp_path / "1.odgt").write_text(json.dumps({"ID": "x" * 5000, "gtboxes": []}))
    assert len(read("crowdhuman", tmp_path / "1.odgt")[0]) == 1


def test_a_header_that_lacks_a_column_is_named(tmp_path):
    (tmp_path / "1.csv").write_text("ImageID,LabelName,XMin,XMax,YMin,IsGroupOf,IsDepiction\n1,/m/01g317,0,1,0,0,0\n")
    assert "has no YMax" in read("openimages", tmp_path / "1.csv")[1][0]
