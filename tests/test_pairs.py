"""Freezing a set of pairs: what is written, what a second run keeps, and what becomes of images without a pair."""

import errno
import json
import os

import pytest
import torch

from osdhuman.cli import degrade as command
from osdhuman.cli.before_after import main as before_after
from osdhuman.data import pairs
from osdhuman.images import load_rgb, save_png

OTHER = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def photos(tmp_path):
    """A folder with one image in a sub-folder."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 80), indexing="ij")
    save_png(tmp_path / "photos" / "sub" / "one.png", torch.stack([x, y, x * y]))
    return tmp_path / "photos"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def degrade(photos, out):
    """Runs the command on `photos`; returns its exit code."""
    return lambda *options: command.main([str(photos), "--output", str(out), "--size", "48", *options])


def records(out):
    return json.loads((out / "manifest.json").read_text(encoding="utf-8"))["pairs"]


def not_frozen(out):
    return [json.loads(line) for line in (out / "not_frozen.jsonl").read_text().splitlines()]


# What is written


def test_freezing_writes_pairs_that_verify(degrade):
    assert (degrade(), degrade("--verify")) == (0, 0)


def test_frozen_pairs_have_the_asked_size(degrade, out):
    degrade()
    assert [load_rgb(out / kind / "sub" / "one.png").shape for kind in ("hq", "lq")] == [(3, 48, 48)] * 2


def test_the_png_keeps_the_name_that_two_images_would_share(degrade, photos, out):
    save_png(photos / "a.png", OTHER)
    os.link(photos / "a.png", photos / "a.jpg")
    degrade()
    assert {name: record["source"] for name, record in records(out).items()} == {
        "a.png": "a.png",
        "a.jpg.png": "a.jpg",
        "sub/one.png": "sub/one.png",
    }


def test_an_output_inside_the_folder_of_images_is_not_read_again(photos):
    arguments = [str(photos), "--output", str(photos / "out"), "--size", "48"]
    assert [command.main(arguments) for _ in range(2)] == [0, 0]
    assert records(photos / "out").keys() == {"sub/one.png"}


@pytest.mark.skipif(os.name == "nt", reason="names are text on Windows")
def test_a_name_that_is_not_utf_8_is_frozen_and_verifies(degrade, photos, out):
    (photos / "sub" / "one.png").rename(os.fsdecode(os.fsencode(photos) + b"/caf\xe9.png"))
    assert (degrade(), degrade("--verify")) == (0, 0)
    assert [name.encode("utf-8", "surrogateescape") for name in records(out)] == [b"caf\xe9.png"]


# A second run


def test_adding_images_changes_no_pair(degrade, photos, out):
    degrade()
    before = records(out)["sub/one.png"]
    save_png(photos / "another.png", OTHER)
    (out / "lq" / "sub" / "one.png").unlink()
    degrade()
    assert records(out)["sub/one.png"] == before


def test_existing_pairs_are_not_written_again(degrade, out):
    degrade()
    before = (out / "lq" / "sub" / "one.png").stat().st_mtime_ns
    degrade()
    assert (out / "lq" / "sub" / "one.png").stat().st_mtime_ns == before


def test_other_settings_need_another_folder(degrade, capsys):
    degrade()
    assert (degrade("--seed", "1"), "other settings (seed: 0 -> 1)" in capsys.readouterr().err) == (2, True)


def test_a_folder_without_a_pair_takes_other_settings(degrade):
    assert (degrade("--size", "4096"), degrade("--size", "48")) == (1, 0)


def test_an_output_that_is_a_file_is_named(degrade, out, capsys):
    out.touch()
    assert (degrade(), "is a file, but a folder is needed" in capsys.readouterr().err) == (2, True)


def test_a_pair_of_another_image_is_not_taken_for_a_new_one(degrade, photos, capsys):
    os.link(photos / "sub" / "one.png", photos / "a.jpg")
    degrade()
    save_png(photos / "a.png", OTHER)
    assert (degrade(), "a.png was made from a.jpg; choose another output" in capsys.readouterr().err) == (1, True)


@pytest.mark.parametrize("content", ["{", "{}", '{"pairs": {"a.png": {}}}', '{"pairs": [1]}'])
def test_a_damaged_manifest_is_one_line_that_names_it(degrade, out, capsys, content):
    out.mkdir()
    (out / "manifest.json").write_text(content)
    code, message = degrade(), capsys.readouterr().err
    assert (code, message.count("\n"), "manifest.json is damaged" in message) == (2, 1, True)


# Verifying


def test_a_changed_file_does_not_verify(degrade, out, capsys):
    degrade()
    save_png(out / "lq" / "sub" / "one.png", torch.zeros(3, 48, 48))
    assert (degrade("--verify"), "differs from the manifest" in capsys.readouterr().err) == (1, True)


def test_a_damaged_file_does_not_end_verifying(degrade, photos, out, capsys):
    save_png(photos / "another.png", OTHER)
    degrade()
    (out / "lq" / "another.png").write_bytes(b"no image")
    save_png(out / "lq" / "sub" / "one.png", torch.zeros(3, 48, 48))
    assert degrade("--verify") == 1
    assert "one.png: comes out differently" in capsys.readouterr().err


def test_there_is_nothing_to_verify_before_a_run(degrade, capsys):
    assert (degrade("--verify"), "nothing to verify" in capsys.readouterr().err) == (2, True)


# Images without a pair


def test_a_bad_image_stops_nothing(degrade, photos, out):
    (photos / "a_bad.jpg").write_text("no image")
    assert (degrade(), (out / "lq" / "sub" / "one.png").exists()) == (1, True)


def test_a_bad_image_is_named_once_at_the_end(degrade, photos, capsys):
    (photos / "a_bad.jpg").write_text("no image")
    degrade()
    assert capsys.readouterr().err.count("a_bad.jpg") == 1


def test_all_without_a_pair_are_in_a_list_for_programs(degrade, photos, out):
    (photos / "a_bad.jpg").write_text("no image")
    (photos / "notes.txt").write_text("no image")
    degrade()
    assert [entry["path"] for entry in not_frozen(out)] == [str(photos / "a_bad.jpg"), str(photos / "notes.txt")]


def test_a_file_that_is_no_image_is_no_failure(degrade, photos, capsys):
    (photos / "notes.txt").write_text("no image")
    assert (degrade(), "notes.txt: not an image" in capsys.readouterr().out) == (0, True)


def test_a_pair_that_cannot_be_written_is_named_and_later_ones_are_made(degrade, photos, out, capsys):
    save_png(photos / "z.png", OTHER)
    (out / "hq").mkdir(parents=True)
    (out / "hq" / "sub").write_text("in the way")
    assert (degrade(), list(records(out))) == (1, ["z.png"])
    assert "one.png: " in capsys.readouterr().err


def test_a_full_disk_ends_the_run_with_what_is_done(degrade, photos, out, monkeypatch, capsys):
    save_png(photos / "a.png", OTHER)
    save = pairs.save_png

    def full(path, image):
        if path.name == "one.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, image)

    save_png(photos / "z.png", OTHER)
    monkeypatch.setattr(pairs, "save_png", full)
    assert (degrade(), (out / "hq" / "z.png").exists()) == (1, False)
    assert "no space is left on the device; 1 pairs are made; the same command continues" in capsys.readouterr().err


def test_ctrl_c_says_what_is_done(degrade, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pairs, "save_png", interrupted)
    expected = "degrade: interrupted; 0 pairs are made; the same command continues"
    assert (degrade(), expected in capsys.readouterr().err) == (130, True)


def test_two_runs_in_one_folder_are_refused(degrade, out, capsys):
    from osdhuman.resume import exclusive

    out.mkdir()
    with exclusive(out):
        assert (degrade(), "another run is working in" in capsys.readouterr().err) == (2, True)


# Side by side


def test_each_image_is_put_beside_its_restored_version(tmp_path):
    save_png(tmp_path / "lq" / "a.png", torch.zeros(3, 64, 32))
    save_png(tmp_path / "restored" / "a.png", torch.ones(3, 64, 32))
    assert before_after([str(tmp_path / name) for name in ("lq", "restored", "rows.png")]) == 0
    assert load_rgb(tmp_path / "rows.png").shape == (3, 384, 192 + 8 + 192)


def test_images_without_restored_versions_are_one_line(tmp_path, capsys):
    save_png(tmp_path / "lq" / "a.png", torch.zeros(3, 64, 32))
    assert before_after([str(tmp_path / name) for name in ("lq", "nowhere", "rows.png")]) == 2
    assert capsys.readouterr().err.startswith("before_after: no image of ")
