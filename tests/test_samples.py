"""Which images a training run reads: what a manifest may look like, and which images are pairs."""

from pathlib import Path

import polars as pl
import pytest
from toy_training import draw_images

from osdhuman.config import ConfigError, parse_config
from osdhuman.data.samples import DataConfig, find_pairs, read_manifest

CASES = Path(__file__).parent / "cases" / "manifests"


def listed(folder: Path, name: str, content: str | bytes, **settings) -> list[str]:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return [path.relative_to(folder).as_posix() for path in read_manifest(folder / name, **settings)]


def fault(folder: Path, name: str, content: str | bytes, **settings) -> str:
    with pytest.raises(ValueError, match=r"^manifest ") as error:
        listed(folder, name, content, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "hq/0.png\n\nhq/1.png\n"),
        ("list.csv", "score,path\n1,hq/0.png\n2,hq/1.png\n"),
        ("list.csv", 'score, path\n1, "hq/0.png"\n2, hq/1.png'),
        ("list.tsv", "score\tpath\n1\thq/0.png\n2\thq/1.png\n"),
        ("list.jsonl", '{"path": "hq/0.png"}\n{"path": "hq/1.png"}\n'),
        ("list.jsonl", '"hq/0.png"\n"hq/1.png"'),
        ("list.json", '["hq/0.png", {"path": "hq/1.png"}]'),
        ("LIST.TXT", "hq/0.png\r\nhq/1.png\r\n"),
    ],
)
def test_a_manifest_lists_paths_from_its_own_folder(tmp_path, name, text):
    assert listed(tmp_path, name, text) == ["hq/0.png", "hq/1.png"]


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("bom.csv", ["a.png", "b.png"]),
        ("bom.jsonl", ["a.png", "b.png"]),
        ("upper.CSV", ["a.png"]),
        ("m.parquet", ["a.png"]),
        ("u85.txt", ["n\x85y.png", "a.png"]),
        ("u2028.jsonl", ["n\u2028x.png"]),
    ],
)
def test_a_manifest_of_another_program_is_read(name, names):
    assert [path.name for path in read_manifest(CASES / name)] == names


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_utf_16_is_read(tmp_path, name):
    text = {"a.txt": "é.png", "a.csv": "path\né.png", "a.jsonl": '{"path": "é.png"}'}[name]
    assert listed(tmp_path, name, text.encode("utf-16")) == ["é.png"]


@pytest.mark.parametrize("text", ["n\x85.png\na.png", "n\u2028.png\na.png"])
def test_only_a_line_feed_ends_a_line(tmp_path, text):
    assert len(listed(tmp_path, "a.csv", f"path\n{text}")) == 2


def test_a_quoted_field_may_hold_a_comma(tmp_path):
    assert listed(tmp_path, "a.csv", 'path,score\n"a, b.png",1\n') == ["a, b.png"]


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_an_empty_manifest_is_an_error(tmp_path, name):
    assert fault(tmp_path, name, "").endswith("lists no image")


def test_the_empty_case_is_an_error():
    with pytest.raises(ValueError, match=r"manifest .*empty\.txt lists no image"):
        read_manifest(CASES / "empty.txt")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"path": "a.png"}\n{"path": null}', "line 2: expected a path, got null"),
        ("a.jsonl", "\n7", "line 2: expected an object with a column of paths, or a path, got 7"),
        (
            "a.jsonl",
            '{"path": "a.png"}\nnull',
            "line 2: expected an object with a column of paths, or a path, got null",
        ),
        ("a.jsonl", '{"path": "a.png"', "line 1: is not JSON"),
        ("a.jsonl", '{"path": 3}', "line 1: expected a path, got 3"),
        ("a.jsonl", '{"path": ""}', 'line 1: expected a path, got ""'),
        ("a.json", '{"path": "a.png"}', "expected a list of paths or rows"),
        ("a.csv", "path,score\na.png,1\nb.png\n", "line 3: has 1 field(s), expected 2 as in the header"),
        ("a.csv", "path,score\na,b.png,1\n", "line 2: has 3 field(s), expected 2 as in the header"),
        ("a.csv", "file\na.png\n", "line 1: has no column 'path' (found: file); name it with data.column=..."),
        ("a.parquet", "no", "is not a parquet file that can be read"),
        ("a.txt", b"a.png\ncaf\xe9.png", "line 2 is not UTF-8"),
        ("a.txt", "a.png\n../b.png", "line 2: '../b.png' leaves the folder of the manifest; give the absolute path"),
        ("a.txt", "x/../../b.png", "leaves the folder of the manifest"),
        ("a.xlsx", "", "expected a file that ends in .txt, .lst, .jsonl"),
    ],
)
def test_a_faulty_manifest_says_in_one_line_where_and_what(tmp_path, name, text, message):
    assert message in fault(tmp_path, name, text)


def test_every_faulty_line_is_named(tmp_path):
    assert fault(tmp_path, "a.jsonl", '1\n"a.png"\nnull').count("line ") == 2


def test_absolute_names_are_taken_as_they_are(tmp_path):
    (tmp_path / "a.txt").write_text("/data/a.png\n")
    assert read_manifest(tmp_path / "a.txt") == [Path("/data/a.png")]


def test_a_name_may_go_up_and_down_below_the_manifest(tmp_path):
    assert listed(tmp_path, "a.txt", "x/../a.png") == ["x/../a.png"]


def test_the_manifest_of_hq_acf_gives_its_training_crops(tmp_path):
    rows = {"id": ["a", "b", "c"], "split": ["train", "val", None], "crop_sha256": ["1", "2", None]}
    pl.DataFrame(rows).write_parquet(tmp_path / "manifest.parquet")
    assert read_manifest(tmp_path / "manifest.parquet") == [tmp_path / "persona" / "train" / "a.png"]


def test_a_row_of_parquet_without_a_path_is_named(tmp_path):
    pl.DataFrame({"path": ["a.png", None]}).write_parquet(tmp_path / "a.parquet")
    assert "row 2: expected a path, got null" in fault(tmp_path, "a.parquet", (tmp_path / "a.parquet").read_bytes())


@pytest.mark.parametrize("settings", [{}, {"kind": "pairs"}, {"kind": "manifest", "paths": "a.txt"}])
def test_a_column_that_cannot_act_is_refused(settings):
    with pytest.raises(ConfigError, match="column=file has no effect"):
        parse_config(DataConfig, {"column": "file", **settings})


def test_a_column_of_a_table_is_accepted():
    assert parse_config(DataConfig, {"column": "file", "kind": "manifest", "paths": "a.csv"}).column == "file"


# -------------------------------------------------------------------------------------------------------------- pairs


def test_pairs_match_without_their_suffix(tmp_path):
    draw_images(tmp_path / "hq", 2)
    draw_images(tmp_path / "lq", 2)
    (tmp_path / "lq" / "0.png").rename(tmp_path / "lq" / "0.jpg")
    assert find_pairs(tmp_path)[0] == (tmp_path / "hq" / "0.png", tmp_path / "lq" / "0.jpg")


def test_pairs_name_the_image_without_a_partner(tmp_path):
    draw_images(tmp_path / "hq", 3)
    draw_images(tmp_path / "lq", 2)
    with pytest.raises(FileNotFoundError, match=r"1 image\(s\) lack a partner.*: 2$"):
        find_pairs(tmp_path)


def test_two_images_of_one_name_make_no_pair(tmp_path):
    draw_images(tmp_path / "hq", 1)
    draw_images(tmp_path / "lq", 1)
    (tmp_path / "hq" / "0.jpg").write_bytes((tmp_path / "hq" / "0.png").read_bytes())
    with pytest.raises(ValueError, match=r"0\.jpg and .*0\.png differ in their suffix only"):
        find_pairs(tmp_path)
