"""Sources: what each format says of a picture, and how a malformed annotation is reported."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from osdhuman.config import ConfigError, parse_config
from osdhuman.curate.record import Box
from osdhuman.curate.sources import Faults, SourceConfig, read_source

CLASSES = "/m/01g317,Person\n/m/04yx4,Man\n/m/03bt1vf,Woman\n/m/01bl7v,Boy\n/m/05r655,Girl\n/m/02p0tk3,Human body\n"
HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"


def draw(path, width=100, height=80, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path, **options)


class Source:
    """One source in a folder: `read` gives its records, `faults` then says what was malformed."""

    def __init__(self, root):
        self.root = root
        (root / "pictures").mkdir()

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
        return path

    def read(self, format, *annotations, **settings):
        values = {"name": "toy", "format": format, "images": self.root / "pictures", "annotations": annotations}
        stream = io.StringIO()
        records = list(read_source(parse_config(SourceConfig, {**values, **settings}), Faults(stream)))
        self.faults = [(line["record"], line["fault"]) for line in map(json.loads, stream.getvalue().splitlines())]
        return records


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path)


def coco(images=1, annotations=(), **tables):
    """A COCO file of pictures 1.jpg, 2.jpg, ... of 100 x 80."""
    rows = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 80} for i in range(1, images + 1)]
    people = [{"id": 1, "name": "person"}, {"id": 2, "name": "horse"}]
    return {"images": rows, "annotations": list(annotations), "categories": people, **tables}


def person(bbox=(10, 20, 30, 40), image=1, id=7, **more):
    return {"id": id, "image_id": image, "category_id": 1, "bbox": bbox, "iscrowd": 0, **more}


def read_coco(source, *annotations, images=1, **settings):
    return source.read("coco", source.write("coco.json", coco(images, annotations)), **settings)


# ------------------------------------------------------------------------------------------------------------- COCO


def test_a_coco_box_is_corner_and_size(source):
    assert read_coco(source, person([10, 20, 30, 40]))[0].boxes == (Box(10, 20, 40, 60, "7"),)


def test_a_crowd_is_an_ignored_region(source):
    record = read_coco(source, person(iscrowd=1))[0]
    assert (record.boxes, record.ignored) == ((), (Box(10, 20, 40, 60, "7"),))


def test_other_categories_are_no_persons(source):
    assert read_coco(source, person(category_id=2))[0].boxes == ()


def test_pictures_without_a_person_are_there_too(source):
    assert [record.boxes for record in read_coco(source, person(image=2), images=3)][::2] == [(), ()]


def test_pictures_come_by_the_number_of_their_id(source):
    rows = [{"id": i, "file_name": f"{i}.jpg"} for i in (10, 9, 100)]
    path = source.write("coco.json", coco(images=0) | {"images": rows})
    assert [record.image_id for record in source.read("coco", path)] == ["9", "10", "100"]


def test_licence_and_address_come_from_the_tables(source):
    licences = [{"id": 5, "name": "BY-SA", "url": "http://by-sa/2.0/"}]
    rows = [{"id": 1, "file_name": "1.jpg", "license": 5, "coco_url": "http://images/val2017/1.jpg"}]
    record = source.read("coco", source.write("coco.json", coco(images=0) | {"images": rows, "licenses": licences}))[0]
    assert (record.licence, record.url) == ("http://by-sa/2.0/", "http://images/val2017/1.jpg")


def test_a_picture_without_licence_has_the_one_of_the_config(source):
    assert read_coco(source, licence="CC BY 4.0")[0].licence == "CC BY 4.0"


def test_pictures_may_lie_in_the_folder_that_their_address_names(source):
    draw(source.root / "pictures" / "val2017" / "1.jpg")
    rows = [{"id": 1, "file_name": "1.jpg", "coco_url": "http://images.cocodataset.org/val2017/1.jpg"}]
    path = source.write("coco.json", coco(images=0) | {"images": rows})
    assert source.read("coco", path)[0].file == "val2017/1.jpg"


def test_boxes_are_clipped_to_the_picture(source):
    assert read_coco(source, person([-5, 70, 200, 40]))[0].boxes[0][:4] == (0, 70, 100, 80)


def test_a_box_outside_the_picture_is_left_for_the_cut(source):
    assert read_coco(source, person([200, 20, 30, 40]))[0].boxes[0][:4] == (200, 20, 230, 60)


def test_max_images_ends_the_source(source):
    assert len(read_coco(source, images=5, max_images=2)) == 2


@pytest.mark.parametrize("block", [7, 10, 120])  # rows on disk at a time; 120 there are
def test_blocks_on_disk_lose_and_repeat_nothing(source, monkeypatch, block):
    everybody = [person(image=i % 20 + 1, id=i) for i in range(100)]
    whole = read_coco(source, *everybody, images=20)
    monkeypatch.setattr("osdhuman.curate.sources.spool.BLOCK", block)
    assert read_coco(source, *everybody, images=20) == whole


# ------------------------------------------------------------------------------------------------ malformed annotations


@pytest.mark.parametrize(
    ("annotation", "fault"),
    [
        (person([10, 20, -30, 40]), "positive width"),
        (person([10, 20, float("nan"), 40]), "four numbers"),
        (person([10, 20, 30]), "four numbers"),
        (person([10, 20, 1e999, 40]), "four numbers"),
        ({"id": 7, "image_id": 1, "category_id": 1}, "has no 'bbox'"),
        ({"id": 7, "bbox": [1, 2, 3, 4], "category_id": 1}, "has no 'image_id'"),
        (person(image=99), "image_id 99 is not among the images"),
    ],
)
def test_a_malformed_annotation_is_named_and_the_next_is_read(source, annotation, fault):
    record = read_coco(source, annotation, person(id=8))[0]
    assert [box.id for box in record.boxes] == ["8"]
    assert [(where, fault in what) for where, what in source.faults] == [("annotation 7", True)]


def test_a_fault_names_source_and_file(source):
    stream = io.StringIO()
    Faults(stream).add("toy", source.root / "a.json", "annotation 7", "has no 'bbox'")
    expected = {
        "source": "toy",
        "file": str(source.root / "a.json"),
        "record": "annotation 7",
        "fault": "has no 'bbox'",
    }
    assert json.loads(stream.getvalue()) == expected


def test_the_list_of_faults_is_there_even_when_empty(tmp_path):
    with Faults.written_to(tmp_path / "faults.jsonl"):
        pass
    assert (tmp_path / "faults.jsonl").read_text() == ""


def test_a_box_id_counts_once_in_its_picture(source):
    assert len(read_coco(source, person(), person())[0].boxes) == 1
    assert source.faults == [("image 1, box 7", "id repeats within its image")]


def test_an_image_without_a_name_is_named_by_its_place(source):
    path = source.write("coco.json", coco(images=0) | {"images": [{"id": 1}]})
    assert (source.read("coco", path), source.faults) == ([], [("images[0]", "has no 'file_name'")])


def truncated(source, cut_at):
    """A COCO file with its categories first, cut off within its annotations."""
    tables = coco(images=3, annotations=[person(image=1, id=1), person(image=2, id=2)])
    text = json.dumps({name: tables[name] for name in ("categories", "images", "annotations")})
    return source.write("coco.json", text[: text.index(cut_at)]), text.index(cut_at)


def test_what_stands_before_the_end_of_a_truncated_file_is_kept(source):
    path, _ = truncated(source, '"id": 2, "image_id"')
    assert [record.image_id for record in source.read("coco", path)] == ["1"]


def test_a_truncated_file_is_reported_once_with_its_byte(source):
    path, byte = truncated(source, '"id": 2, "image_id"')
    source.read("coco", path)
    assert [f"breaks off at byte {byte}" in what for _, what in source.faults] == [True, False]


def test_pictures_whose_boxes_may_be_lost_are_counted(source):
    path, _ = truncated(source, '"id": 2, "image_id"')
    source.read("coco", path)
    assert source.faults[1][1].startswith("2 images without a person left out")


def test_a_file_that_loses_its_categories_gives_nothing_and_says_so(source):
    text = json.dumps(coco(annotations=[person()]))
    assert source.read("coco", source.write("coco.json", text[: text.index('"categories"')])) == []
    assert "its categories are lost" in source.faults[1][1]


def test_a_file_that_is_no_json_names_the_bytes(source):
    source.read("coco", source.write("coco.json", '{"images": [oops]}'))
    assert "not JSON from somewhere between the bytes 0 and 18" in source.faults[0][1]


# ------------------------------------------------------------------------------------------------------------- labels


def test_labels_choose_the_categories(source):
    assert read_coco(source, person(category_id=2), labels=["Horse"])[0].boxes[0].id == "7"


def test_an_unknown_label_is_an_error_with_the_nearest(source):
    with pytest.raises(ValueError, match=r"no label 'persn' \(nearest: person\)"):
        read_coco(source, labels=["persn"])


def test_a_label_that_no_object_has_is_an_error_after_the_last_picture(source):
    with pytest.raises(ValueError, match=r"no label 'persn' \(nearest: person\)"):
        voc(source, voc_object(), labels=["persn"])


def test_one_label_that_is_met_is_enough(source):
    assert len(voc(source, voc_object(), labels=["person", "rider"])) == 1


def test_a_label_that_the_website_layout_lacks_is_an_error(source):
    with pytest.raises(ValueError, match=r"no label 'Persn' \(nearest: Person\)"):
        website(source, {"rect": [1, 2, 3, 4], "category": "Person"}, labels=["Persn"])


# --------------------------------------------------------------------------------------------------------- Objects365


def objects365(source, **flags):
    image = {"id": 420917, "file_name": "images/v1/patch8/a.jpg", "width": 100, "height": 80, "license": 5, "url": ""}
    boxes = [{"id": 3, "image_id": 420917, "category_id": 1, "bbox": [1, 2, 3, 4], **flags}]
    tables = {"images": [image], "annotations": boxes, "categories": [{"id": 1, "name": "Person"}]}
    return source.read("objects365", source.write("zhiyuan_objv2_val.json", tables))


@pytest.mark.parametrize("place", ["images/v1/patch8/a.jpg", "v1/patch8/a.jpg", "patch8/a.jpg", "a.jpg"])
def test_objects365_pictures_are_found_from_any_folder_of_theirs(source, place):
    draw(source.root / "pictures" / place)
    assert objects365(source)[0].file == place


@pytest.mark.parametrize("flag", ["iscrowd", "isfake", "isreflected"])
def test_objects365_flags_make_an_ignored_region(source, flag):
    assert objects365(source, **{flag: 1})[0].ignored == (Box(1, 2, 4, 6, "3"),)


def website(source, *boxes, **settings):
    records = [{"url": "http://images.org/7217,4f1a.jpg", "gtboxes": list(boxes)}]
    return source.read("objects365", source.write("samples.json", "\n " + json.dumps(records)), **settings)


def test_the_website_layout_gives_corners_and_names_the_picture_by_its_address(source):
    record = website(source, {"rect": [1, 2, 30, 40], "iscrowd": 0, "category": "Person"})[0]
    assert (record.file, record.boxes) == ("7217,4f1a.jpg", (Box(1, 2, 30, 40, "0"),))


def test_a_website_box_without_rect_is_named(source):
    website(source, {"category": "Sneakers"}, {"category": "Person"})
    assert source.faults == [("record 0, gtboxes[1]", "has no 'rect'")]


# -------------------------------------------------------------------------------------------------------- Open Images


def box_row(image="0a", label="/m/01g317", edges="0.1,0.5,0.25,0.75", group=0, depiction=0):
    return f"{image},xclick,{label},1,{edges},0,0,{group},{depiction},0"


def open_images(source, *rows, classes=CLASSES, draw_it=True, **settings):
    if draw_it:
        draw(source.root / "pictures" / "0a.jpg")
    path = source.write("boxes.csv", "\n".join(rows) + "\n")
    return source.read("openimages", path, classes=source.write("classes.csv", classes), **settings)


def test_fractions_become_pixels_by_the_size_of_the_picture(source):
    assert open_images(source, box_row())[0].boxes == (Box(10, 20, 50, 60, "1"),)


def test_a_header_line_is_no_box(source):
    assert [record.boxes for record in open_images(source, HEADER, box_row())] == [(Box(10, 20, 50, 60, "2"),)]


def test_the_columns_of_v6_behind_the_common_ones_are_passed_over(source):
    columns = ",XClick1X,XClick2X,XClick3X,XClick4X,XClick1Y,XClick2Y,XClick3Y,XClick4Y"
    record = open_images(source, HEADER + columns, box_row() + ",0.1,0.2,0.5,0.3,0.4,0.25,0.4,0.75")[0]
    assert record.boxes == (Box(10, 20, 50, 60, "2"),)


def test_class_descriptions_may_have_a_header(source):
    assert len(open_images(source, box_row(), classes="LabelName,DisplayName\n" + CLASSES)[0].boxes) == 1


def test_parts_of_a_body_are_no_persons(source):
    assert open_images(source, box_row(label="/m/0dzct"), classes=CLASSES + "/m/0dzct,Human face\n")[0].boxes == ()


@pytest.mark.parametrize("flag", ["group", "depiction"])
def test_groups_and_depictions_are_ignored_regions(source, flag):
    record = open_images(source, box_row(**{flag: 1}))[0]
    assert (len(record.boxes), len(record.ignored)) == (0, 1)


def test_an_unknown_flag_leaves_a_person(source):
    assert len(open_images(source, box_row(group=-1, depiction=-1))[0].boxes) == 1


def test_the_same_body_under_two_classes_counts_once(source):
    man = box_row(label="/m/04yx4", edges="0.1,0.5,0.25,0.76")
    assert [box.id for box in open_images(source, box_row(), man)[0].boxes] == ["1"]


def test_two_boxes_of_one_class_stay(source):
    assert len(open_images(source, box_row(), box_row(edges="0.1,0.5,0.25,0.76"))[0].boxes) == 2


def test_boxes_of_two_classes_that_differ_stay(source):
    assert len(open_images(source, box_row(), box_row(label="/m/04yx4", edges="0.1,0.3,0.25,0.75"))[0].boxes) == 2


def test_rows_of_a_picture_need_not_stand_together(source):
    draw(source.root / "pictures" / "0b.jpg")
    records = open_images(source, box_row(), box_row(image="0b"), box_row(edges="0.6,0.9,0.1,0.2"))
    assert [(record.image_id, len(record.boxes)) for record in records] == [("0a", 2), ("0b", 1)]


def test_a_picture_whose_size_cannot_be_read_has_unknown_boxes(source):
    assert open_images(source, box_row(), draw_it=False)[0].boxes is None


def test_the_size_is_that_of_the_file_before_rotation(source):
    turned = Image.Exif()
    turned[274] = 6
    draw(source.root / "pictures" / "0a.jpg", exif=turned)
    record = open_images(source, box_row(), draw_it=False)[0]
    assert (record.width, record.height) == (100, 80)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("0a,xclick", "2 columns, expected ImageID"),
        (box_row(edges="0.1,nan,0.2,0.3"), "finite"),
        (box_row(edges="0.5,0.1,0.2,0.3"), "positive width"),
        (box_row(edges="10,50,20,30"), "fractions from 0 to 1"),
        (box_row(edges="a,0.5,0.2,0.3"), "four numbers"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(source, row, fault):
    assert len(open_images(source, row, box_row())[0].boxes) == 1
    assert [(where, fault in what) for where, what in source.faults] == [("line 1", True)]


def test_an_unknown_label_of_open_images_is_an_error_with_the_nearest(source):
    with pytest.raises(ValueError, match=r"no label 'Wooman' \(nearest: Woman"):
        open_images(source, box_row(), labels=["Wooman"])


# --------------------------------------------------------------------------------------------------------- CrowdHuman


def crowd_box(**changes):
    edges = {"fbox": [-5, 10, 60, 90], "vbox": [10, 10, 30, 40], "hbox": [20, 10, 8, 9]}
    return {"tag": "person", **edges, "head_attr": {"ignore": 0}, "extra": {"box_id": 4}, **changes}


def crowdhuman(source, *boxes, lines=(), **settings):
    draw(source.root / "pictures" / "27,a.jpg")
    lines = [*lines, json.dumps({"ID": "27,a", "gtboxes": boxes})]
    return source.read("crowdhuman", source.write("train.odgt", "\n".join(lines) + "\n"), **settings)


@pytest.mark.parametrize(
    ("extent", "box"),
    [
        ("visible", Box(10, 10, 40, 50, "4")),
        ("full", Box(0, 10, 55, 80, "4")),  # clipped to the picture of 100 x 80
        ("head", Box(20, 10, 28, 19, "4")),
    ],
)
def test_crowdhuman_gives_the_box_of_the_config(source, extent, box):
    assert crowdhuman(source, crowd_box(), extent=extent)[0].boxes == (box,)


@pytest.mark.parametrize("change", [{"tag": "mask"}, {"extra": {"ignore": 1}}])
def test_masks_and_ignored_boxes_are_ignored_regions(source, change):
    record = crowdhuman(source, crowd_box(**change))[0]
    assert (len(record.boxes), len(record.ignored)) == (0, 1)


def test_an_ignored_head_is_ignored_where_heads_are_asked_for(source):
    head = crowd_box(head_attr={"ignore": 1})
    assert [len(crowdhuman(source, head, extent=extent)[0].boxes) for extent in ("visible", "head")] == [1, 0]


@pytest.mark.parametrize(
    ("line", "fault"),
    [("oops", "no JSON"), ('{"ID": "1"}', "has no 'gtboxes'"), ('{"ID": "1", "gtboxes": 3}', "list of gtboxes")],
)
def test_a_malformed_line_is_named_and_the_next_is_read(source, line, fault):
    assert len(crowdhuman(source, crowd_box(), lines=[line])) == 1
    assert [(where, fault in what) for where, what in source.faults] == [("line 1", True)]


def test_a_crowdhuman_box_without_its_edges_is_named(source):
    assert crowdhuman(source, {"tag": "person"})[0].boxes == ()
    assert source.faults == [("line 1, gtboxes[0]", "has no 'vbox'")]


def test_a_name_that_no_file_can_hold_is_made_plain(source):
    lines = ['{"ID": "a\\ud800", "gtboxes": []}']
    assert crowdhuman(source, lines=lines)[0].image_id == "a?"


# ---------------------------------------------------------------------------------------------------------------- VOC


def voc_object(name="person", edges=(11, 21, 40, 60), more=""):
    box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def voc(source, *objects, size="<size><width>100</width><height>80</height></size>", **settings):
    xml = f"<annotation><filename>a.jpg</filename>{''.join(objects)}{size}</annotation>"
    source.write("xml/a.xml", xml)
    return source.read("voc", source.root / "xml", **settings)


def test_voc_counts_from_one_and_includes_the_last_pixel(source):
    assert voc(source, voc_object(edges=(11, 21, 40, 60)))[0].boxes == (Box(10, 20, 40, 60, "0"),)


def test_voc_edges_may_be_decimal(source):
    assert voc(source, voc_object(edges=(11.5, 21, 40, 60)))[0].boxes[0].x0 == 10.5


def test_the_parts_of_a_person_are_no_objects(source):
    head = "<part><name>person</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
    assert voc(source, voc_object(more=head))[0].boxes == (Box(10, 20, 40, 60, "0"),)


def test_difficult_objects_are_ignored_regions(source):
    record = voc(source, voc_object(more="<difficult>1</difficult>"))[0]
    assert (len(record.boxes), len(record.ignored)) == (0, 1)


def test_the_size_may_follow_the_objects_or_be_missing(source):
    assert [voc(source, voc_object(), size=size)[0].width for size in ("<size><width>7</width></size>", "")] == [
        7,
        None,
    ]


def test_an_object_without_a_box_is_named(source):
    assert len(voc(source, "<object><name>person</name></object>", voc_object())[0].boxes) == 1
    assert source.faults == [("object 0", "has no <bndbox/xmin>")]


@pytest.mark.parametrize(("xml", "fault"), [("<annotation>", "no element found"), ("<html/>", "expected <annotation>")])
def test_an_xml_that_is_no_annotation_is_named(source, xml, fault):
    source.write("xml/b.xml", xml)
    assert len(voc(source, voc_object())) == 1
    assert [(where, fault in what) for where, what in source.faults] == [("", True)]


# ------------------------------------------------------------------------------------------------------------- folder


def test_a_folder_gives_its_pictures_by_path_with_boxes_unknown(source):
    for name in ("b.png", "a/z.JPG", "a/x.webp", ".hidden.png", "notes.txt"):
        source.write(f"pictures/{name}", "")
    expected = [("a/x.webp", None), ("a/z.JPG", None), ("b.png", None)]
    assert [(record.file, record.boxes) for record in source.read("folder")] == expected


def test_a_link_back_to_a_folder_above_is_not_followed(source):
    draw(source.root / "pictures" / "a" / "x.png")
    (source.root / "pictures" / "a" / "up").symlink_to(source.root / "pictures")
    assert [record.file for record in source.read("folder")] == ["a/x.png"]


def test_a_name_that_is_not_utf8_is_reported(source):
    with open(os.fsencode(source.root / "pictures") + b"/caf\xe9.png", "wb"):
        pass
    assert (source.read("folder"), source.faults[0][1]) == ([], "file name is not UTF-8: rename it")


# ------------------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "coco"}, "needs annotations"),
        ({"format": "folder", "annotations": ["a.json"]}, "takes no annotations"),
        ({"format": "openimages", "annotations": ["a.csv"]}, "`classes` must be given for openimages"),
        ({"format": "folder", "labels": ["person"]}, "a format that has labels"),
        ({"format": "folder", "name": "a/b"}, "pattern"),
    ],
)
def test_settings_that_do_not_fit_the_format_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(SourceConfig, {"name": "toy", "images": ".", **settings})


def test_a_path_that_does_not_exist_is_an_error_before_anything_is_read(source):
    with pytest.raises(ValueError, match=r"gone\.json does not exist"):
        source.read("coco", source.root / "gone.json")
