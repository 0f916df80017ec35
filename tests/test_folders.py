"""Which files of a folder are given as images."""

import os
from pathlib import Path

import pytest
from PIL import Image

from osdhuman.folders import Unlisted, find_images, list_images, walk_images
from osdhuman.images import read_image

CASES = Path(__file__).parent / "cases"


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name, "PNG")
    return folder


def names(folder: Path, **settings) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in list_images(folder, **settings)[0]]


def test_images_come_sorted_by_the_parts_of_their_path(tmp_path):
    images(tmp_path, "b.png", "a/z.png", "a-b.png", "a.png", "c/a.png")
    assert names(tmp_path) == ["a/z.png", "a-b.png", "a.png", "b.png", "c/a.png"]


def test_every_kind_of_file_that_is_read_is_listed():
    assert len(names(CASES / "ext")) == 12


@pytest.mark.parametrize("path", sorted((CASES / "ext").iterdir()), ids=lambda path: path.name)
def test_every_kind_of_file_that_is_listed_is_read(path):
    assert read_image(path).rgb.shape[0] == 3


@pytest.mark.parametrize("name", ["photo", "photo.jpg_large", "photo.jpg!d", "photo.dat", "photo.txt", "photo.jpg~"])
def test_an_image_under_any_other_suffix_is_known_by_its_first_bytes(tmp_path, name):
    assert names(images(tmp_path, name)) == [name]


@pytest.mark.parametrize(
    "content", [b"", b"a note", b"BM", b"P5 is a model", b"%PDF-1.7", b"%!PS-Adobe", b"\x89HDF\r\n"]
)
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    (tmp_path / "notes").write_bytes(content)
    assert list_images(tmp_path) == ([], [Unlisted(tmp_path / "notes", "not an image")])


def test_a_text_beside_the_images_costs_no_image(tmp_path):
    (images(tmp_path, "a.png") / "a.txt").write_text("a person")
    with pytest.warns(UserWarning, match=r"not listed: 1 x not an image \(a\.txt\)"):
        assert find_images(tmp_path) == [tmp_path / "a.png"]


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "a.txt").write_text("a person")
    with pytest.raises(FileNotFoundError, match=r"no image in .*; not listed: 1 x not an image \(a\.txt\)"):
        find_images(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder of images"):
        find_images(tmp_path / "gone")


def test_a_named_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert list_images(tmp_path)[1] == [Unlisted(tmp_path / "a.png", "not a regular file")]


# ------------------------------------------------------------------------------------------------------------- hidden


def test_hidden_files_and_folders_are_passed_over():
    assert list_images(CASES / "names" / "hidden") == (
        [CASES / "names" / "hidden" / "a.png", CASES / "names" / "hidden" / "sub" / "c.png"],
        [],
    )


@pytest.mark.parametrize("name", [".a.png", "._a.png", "@eaDir/a.png", "__MACOSX/a.png", "$RECYCLE.BIN/a.png"])
def test_what_systems_keep_for_themselves_is_hidden(tmp_path, name):
    assert names(images(tmp_path, name)) == []


def test_a_hidden_folder_is_searched_when_it_is_named_itself(tmp_path):
    assert names(images(tmp_path / ".cache", "a.png")) == ["a.png"]


# -------------------------------------------------------------------------------------------------------------- links


def test_a_linked_folder_is_searched(tmp_path):
    images(tmp_path / "elsewhere", "a.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "root") == ["link/a.png"]


def test_a_linked_file_keeps_the_name_of_the_link(tmp_path):
    images(tmp_path / "blobs", "3f2a")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.png").symlink_to(tmp_path / "blobs" / "3f2a")
    assert names(tmp_path / "root") == ["a.png"]


def test_three_folders_that_link_to_each_other_are_each_searched_once(tmp_path):
    for here in "abc":
        images(tmp_path, f"{here}/{here}.png")
        for there in set("abc") - {here}:
            (tmp_path / here / there).symlink_to(tmp_path / there)
    assert names(tmp_path) == ["a/a.png", "b/b.png", "c/c.png"]


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_to_a_folder_above_ends(tmp_path, target):
    images(tmp_path, "root/a/b/c.png")
    (tmp_path / "root" / "a" / "b" / "up").symlink_to(target)
    assert names(tmp_path / "root") == ["a/b/c.png"]


def test_two_links_to_one_folder_list_it_once(tmp_path):
    images(tmp_path / "elsewhere", "a.png")
    (tmp_path / "root").mkdir()
    for link in ("x", "y"):
        (tmp_path / "root" / link).symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "root") == ["x/a.png"]


def test_a_link_into_a_hidden_folder_is_followed(tmp_path):
    images(tmp_path, ".store/photos/a.png")
    (tmp_path / "photos").symlink_to(tmp_path / ".store" / "photos")
    assert names(tmp_path) == ["photos/a.png"]


@pytest.mark.parametrize("name", ["a.png", "folder"])
def test_a_dangling_link_is_named(tmp_path, name):
    (tmp_path / name).symlink_to(tmp_path / "gone")
    assert list_images(tmp_path)[1] == [Unlisted(tmp_path / name, "link to a file that does not exist")]


def test_a_link_to_itself_is_named(tmp_path):
    (tmp_path / "a").symlink_to("a")
    assert list_images(tmp_path)[1] == [Unlisted(tmp_path / "a", "link to a file that does not exist")]


def test_a_folder_to_skip_is_not_entered(tmp_path):
    images(tmp_path, "a.png", "out/b.png")
    assert names(tmp_path, skip=[tmp_path / "out", tmp_path / "gone"]) == ["a.png"]


def test_the_walk_gives_the_first_image_before_it_has_seen_the_last_folder(tmp_path):
    images(tmp_path, "a/a.png", "b/b.png")
    walk = walk_images(tmp_path)
    assert next(walk) == tmp_path / "a" / "a.png"
    images(tmp_path, "b/later.png")
    assert len(list(walk)) == 2
