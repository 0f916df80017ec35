"""Tagging a folder with RAM++ and counting what it found: the rules, on a tiny RAM in the official layout."""

import polars as pl
import pytest
import torch
from ram_toys import TINY_TAGGING, parameter, swin_config, tiny_ram_state

from osdhuman.curate import tags as module
from osdhuman.curate.tags import OWN_MAP, TagConfig, category_of, count_tags, load_tagger, read_categories, tag_folder
from osdhuman.images import ImageError, load_rgb, save_png

WORDS = ["man", "woman", "dog", "red", "shirt", "tree", "house", "ball", "run", "apple", "car", "quux"]


@pytest.fixture
def config(tmp_path):
    """A tiny RAM++ (two descriptions per tag) in the layout of the official files."""
    labels = {"label_embed": parameter("label_embed", (24, 32)), "reweight_scale": parameter("reweight_scale", ())}
    torch.save({"model": tiny_ram_state() | labels}, tmp_path / "ram_plus.pth")
    (tmp_path / "tags.txt").write_text("\n".join(WORDS))
    (tmp_path / "thresholds.txt").write_text("\n".join(["0.5"] * 12))
    return TagConfig(
        checkpoint=tmp_path / "ram_plus.pth",
        tag_list=tmp_path / "tags.txt",
        thresholds=tmp_path / "thresholds.txt",
        encoder=swin_config("b"),
        head=TINY_TAGGING.model_copy(update={"descriptions": 2}),
        batch=2,
        chunk=2,
        readers=1,
    )


@pytest.fixture
def images(tmp_path):
    for name in ("a", "b", "deeper/c"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(ord(name[-1]))
        save_png(tmp_path / "images" / f"{name}.png", torch.rand(3, 40 + ord(name[-1]) % 7, 64, generator=generator))
    return tmp_path / "images"


def tagged(folder):
    return pl.read_parquet(sorted(folder.glob("*.parquet")))


# Tagging


def test_every_image_of_the_folder_has_its_row(config, images, tmp_path):
    tag_folder(images, tmp_path / "tags", config)
    assert tagged(tmp_path / "tags")["file"].to_list() == ["a.png", "b.png", "deeper/c.png"]


def test_the_tags_are_those_of_the_network_on_that_image(config, images, tmp_path):
    tag_folder(images, tmp_path / "tags", config)
    expected = load_tagger(config)(load_rgb(images / "deeper/c.png")[None])
    assert expected[0] and tagged(tmp_path / "tags")["tags"].to_list()[2:] == expected


def test_a_threshold_of_one_never_fires(config, images, tmp_path):
    config.thresholds.write_text("\n".join(["1.0"] * 12))
    tag_folder(images, tmp_path / "tags", config)
    assert tagged(tmp_path / "tags")["tags"].to_list() == [[], [], []]


def test_an_image_that_cannot_be_read_says_why(config, images, tmp_path):
    (images / "b.png").write_bytes(b"")
    tag_folder(images, tmp_path / "tags", config)
    row = tagged(tmp_path / "tags").row(1, named=True)
    with pytest.raises(ImageError) as error:
        load_rgb(images / "b.png")
    assert (row["tags"], row["fault"]) == (None, error.value.reason)


def test_only_the_chunk_that_is_missing_is_made_again(config, images, tmp_path, monkeypatch):
    tag_folder(images, tmp_path / "tags", config)
    (tmp_path / "tags/00001.parquet").unlink()
    read = []
    monkeypatch.setattr(module, "load_rgb", lambda path: read.append(path.name) or load_rgb(path))
    tag_folder(images, tmp_path / "tags", config)
    assert read == ["c.png"]


def test_an_image_that_came_later_moves_the_chunks(config, images, tmp_path):
    tag_folder(images, tmp_path / "tags", config)
    save_png(images / "aa.png", torch.zeros(3, 8, 8))
    tag_folder(images, tmp_path / "tags", config)
    assert tagged(tmp_path / "tags")["file"].to_list() == ["a.png", "aa.png", "b.png", "deeper/c.png"]


def test_chunks_of_images_that_are_gone_are_removed(config, images, tmp_path):
    tag_folder(images, tmp_path / "tags", config)
    (images / "deeper/c.png").unlink()
    tag_folder(images, tmp_path / "tags", config)
    assert tagged(tmp_path / "tags")["file"].to_list() == ["a.png", "b.png"]


def test_tags_of_other_thresholds_are_not_mixed(config, images, tmp_path):
    tag_folder(images, tmp_path / "tags", config)
    config.thresholds.write_text("\n".join(["0.6"] * 12))
    with pytest.raises(ValueError, match="made with another thresholds: give another folder, or delete it"):
        tag_folder(images, tmp_path / "tags", config)


def test_missing_weights_say_where_they_are_published(config):
    with pytest.raises(FileNotFoundError, match=r"ram_plus_swin_large_14m\.pth of the project"):
        load_tagger(config.model_copy(update={"checkpoint": config.checkpoint.with_name("none.pth")}))


def test_a_folder_without_images_is_an_error(config, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        tag_folder(tmp_path / "empty", tmp_path / "tags", config)


def test_a_damaged_chunk_is_made_again(config, images, tmp_path):
    tag_folder(images, tmp_path / "tags", config)
    whole = (tmp_path / "tags/00000.parquet").read_bytes()
    (tmp_path / "tags/00000.parquet").write_bytes(whole[:50])
    tag_folder(images, tmp_path / "tags", config)
    assert (tmp_path / "tags/00000.parquet").read_bytes() == whole


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_tagger_json_says_what_to_delete(config, images, tmp_path, text):
    (tmp_path / "tags").mkdir()
    (tmp_path / "tags/tagger.json").write_text(text)
    with pytest.raises(ValueError, match=r"tagger\.json is damaged, expected a JSON object; delete the folder"):
        tag_folder(images, tmp_path / "tags", config)


# Counting


@pytest.fixture
def written(tmp_path):
    rows = [("a", ["man", "shirt"], None), ("b", ["man", "quux"], None), ("c", [], None), ("d", None, "damaged")]
    pl.DataFrame(rows, schema=module.CHUNK, orient="row").write_parquet(tmp_path / "00000.parquet")
    return tmp_path


def test_tags_are_counted_the_most_frequent_first(written):
    assert count_tags(written).per_tag.rows() == [
        ("man", "People", 2),
        ("quux", "Unsorted", 1),
        ("shirt", "Clothing", 1),
    ]


def test_categories_have_tags_and_distinct_tags(written):
    rows = {name: counts for name, *counts in count_tags(written).per_category.rows()}
    assert (rows["People"], rows["Clothing"], rows["Food"], rows["Unsorted"]) == ([2, 1], [1, 1], [0, 0], [1, 1])


def test_a_map_that_knows_every_tag_leaves_nothing_unsorted(written):
    counts = count_tags(written, {"man": "People", "shirt": "Clothing", "quux": "Objects"})
    assert counts.per_category["category"].to_list() == list(module.CATEGORIES)


def test_the_mean_is_over_the_images_that_were_read(written):
    assert count_tags(written).per_image == pytest.approx(4 / 3)


def test_counting_nothing_says_what_writes_tags(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no tags; .*tag_folder"):
        count_tags(tmp_path)


def test_a_damaged_file_of_tags_is_one_line(written):
    (written / "00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"^[^\n]* holds a damaged file of tags [^\n]*$"):
        count_tags(written)


# The map


def test_the_whole_tag_goes_before_its_last_word():
    categories = {"dog": "Animals", "hot dog": "Food", "player": "People"}
    tags = ("hot dog", "guard dog", "Baseball player", "player piano")
    assert [category_of(tag, categories) for tag in tags] == ["Food", "Animals", "People", "Unsorted"]


def test_our_own_map_has_words_in_each_of_the_papers_categories():
    assert set(read_categories(OWN_MAP).values()) == set(module.CATEGORIES)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["word,kind", "man,People"], "must begin with the line tag,category"),
        (["tag,category", "man,Humans"], "line 2: unknown category 'Humans'"),
        (["tag,category", "man,People", "Man,Objects"], "line 3: 'man' is already in People"),
    ],
)
def test_a_faulty_map_names_its_line(tmp_path, lines, message):
    (tmp_path / "map.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        read_categories(tmp_path / "map.csv")
