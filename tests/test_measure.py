"""Measuring folders: what is written, what is never done twice, and what is refused."""

import json
import math
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
import torch
from PIL import Image
from torch import Tensor

from osdhuman.images import load_rgb, save_png
from osdhuman.metrics import folder, listing, scoring
from osdhuman.metrics.folder import Folder, comparable, measure, measure_set
from osdhuman.metrics.scorers import Scorer, SetScorer
from osdhuman.metrics.table import METRICS
from osdhuman.metrics.weights import MetricUnavailable

# The metrics stand in for those of pyiqa: niqe is the mean of an image (NaN for black), psnr_y its mean distance from
# the reference, fid the number of pictures. `calls` notes how many images each has seen.


class Mean(torch.nn.Module):
    def __init__(self, calls: list[int]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, image: Tensor, reference: Tensor | None = None) -> Tensor:
        self.calls.append(len(image))
        return (image if reference is None else (image - reference).abs()).mean((1, 2, 3))


class Count:
    def __init__(self, calls: list[int]) -> None:
        self.calls = calls

    def __call__(self, images: str, reference: str, **_: object) -> float:
        self.calls.append(len(list(Path(images).iterdir())))
        return float(self.calls[-1])


Calls = dict[str, list[int]]


@pytest.fixture
def calls(monkeypatch) -> Calls:
    calls: Calls = {"niqe": [], "psnr_y": [], "fid": []}
    stand_in(monkeypatch.setattr, calls)
    return calls


def stand_in(setattr: Callable, calls: Calls, version: str = "1") -> None:
    def identify(name: str) -> dict:
        if name not in calls:
            raise MetricUnavailable(name, "no weights", "get them")
        return {"variant": METRICS[name].variant, "version": version}

    def load_scorer(name: str, device: str = "cpu") -> Scorer | SetScorer:
        if name == "fid":
            return SetScorer(METRICS[name], Count(calls[name]), identify(name))
        return Scorer(METRICS[name], Mean(calls[name]), identify(name), torch.device(device))

    setattr(folder, "identify", identify)
    setattr(scoring, "load_scorer", load_scorer)


def picture(level: float, width: int = 100) -> Tensor:
    """(3,100,width) of this mean grey, with one pixel darker, because a flat picture is not judged."""
    image = torch.full((3, 100, width), level)
    image[:, 0, 0] = 0
    return image


@pytest.fixture
def folders(tmp_path) -> Path:
    """lq and hq with three pictures each, one in a folder of its own and one wider."""
    for i, (name, width) in enumerate({"a": 100, "b": 120, "sub/c": 100}.items()):
        save_png(tmp_path / f"lq/{name}.png", picture((i + 1) * 0.2, width))
        save_png(tmp_path / f"hq/{name}.png", picture(0.2, width))
    return tmp_path


def run(folders: Path, metrics: tuple[str, ...] = ("niqe", "psnr_y"), **options) -> dict:
    reference = folders / "hq" if any(METRICS[name].reference for name in metrics) else None
    return measure(folders / "lq", folders / "scores/set/v1.5", metrics, reference, ("set", "v1.5"), **options)


def rows(folders: Path) -> pl.DataFrame:
    return pl.read_parquet(folders / "scores/set/v1.5.parquet")


# --------------------------------------------------------------------------------------------------- what is written


def test_one_row_per_image_sorted_by_name(folders, calls):
    run(folders)
    assert rows(folders)["file"].to_list() == ["a.png", "b.png", "sub/c.png"]


def test_a_row_holds_the_scores(folders, calls):
    run(folders)
    assert rows(folders)["psnr_y"].to_list() == pytest.approx([0, 0.2, 0.4], abs=1e-4)


def test_the_json_is_what_is_returned(folders, calls):
    assert run(folders) == json.loads((folders / "scores/set/v1.5.json").read_text())


def test_the_mean_comes_with_the_identity_and_direction_of_its_metric(folders, calls):
    assert run(folders)["metrics"]["psnr_y"] == {
        "mean": pytest.approx(0.2, abs=1e-4),
        "judged": 3,
        "variant": "psnr_y",
        "version": "1",
        "higher_is_better": True,
    }


def test_set_method_and_number_of_images_are_noted(folders, calls):
    measurement = run(folders)
    assert [measurement[label] for label in ("set", "method", "images")] == ["set", "v1.5", 3]


def test_a_metric_of_sets_is_one_number(folders, calls):
    assert run(folders, ("fid",))["metrics"]["fid"]["mean"] == 3


def test_an_image_that_cannot_be_judged_counts_in_no_mean(folders, calls):
    save_png(folders / "lq/a.png", torch.zeros(3, 100, 100))
    measured = run(folders, ("niqe",))["metrics"]["niqe"]
    assert (measured["judged"], measured["mean"]) == (2, pytest.approx(0.5, abs=1e-3))


def test_and_stands_in_the_rows_as_nan(folders, calls):
    save_png(folders / "lq/a.png", torch.zeros(3, 100, 100))
    run(folders, ("niqe",))
    assert math.isnan(rows(folders)["niqe"][0])


def test_a_metric_that_cannot_be_had_is_listed_with_the_reason(folders, calls):
    assert run(folders, ("niqe", "musiq"))["metrics"]["musiq"] == {"unavailable": "no weights"}


def test_a_metric_that_can_judge_nothing_is_listed_with_the_reason(folders, calls):
    for path in (folders / "lq").rglob("*.png"):
        save_png(path, torch.zeros(3, 100, 100))
    assert "can judge none" in run(folders, ("niqe",))["metrics"]["niqe"]["unavailable"]


def test_the_digest_follows_the_images_and_the_inputs_digest_does_not(folders, calls):
    before = run(folders)
    save_png(folders / "lq/a.png", picture(0.9))
    after = run(folders)
    assert before["digest"] != after["digest"] and before["inputs_digest"] == after["inputs_digest"]


def test_both_digests_follow_the_references(folders, calls):
    before = run(folders)
    save_png(folders / "hq/a.png", picture(0.9))
    after = run(folders)
    assert before["digest"] != after["digest"] and before["inputs_digest"] != after["inputs_digest"]


# ------------------------------------------------------------------------------------------------ nothing done twice


def forget(calls: Calls) -> None:
    for seen in calls.values():
        seen.clear()


def test_a_second_run_measures_nothing(folders, calls):
    first = run(folders, ("niqe", "psnr_y", "fid"))
    forget(calls)
    assert run(folders, ("niqe", "psnr_y", "fid")) == first and calls == {"niqe": [], "psnr_y": [], "fid": []}


def test_only_an_image_that_changed_is_measured_anew(folders, calls):
    run(folders)
    save_png(folders / "lq/b.png", picture(0.9, 120))
    forget(calls)
    run(folders)
    assert sum(calls["niqe"]) == 1 and rows(folders)["niqe"][1] == pytest.approx(0.9, abs=1e-2)


def test_a_reference_that_changed_concerns_the_metrics_that_saw_it(folders, calls):
    run(folders)
    save_png(folders / "hq/b.png", picture(0.9, 120))
    forget(calls)
    run(folders)
    assert (sum(calls["niqe"]), sum(calls["psnr_y"])) == (0, 1)


def test_a_set_that_changed_is_measured_anew(folders, calls):
    run(folders, ("fid",))
    save_png(folders / "lq/b.png", picture(0.9, 120))
    run(folders, ("fid",))
    assert len(calls["fid"]) == 2


def test_a_metric_that_comes_later_is_measured_alone(folders, calls):
    run(folders, ("niqe",))
    forget(calls)
    run(folders, ("niqe", "psnr_y"))
    assert (sum(calls["niqe"]), sum(calls["psnr_y"])) == (0, 3)


def test_another_version_of_a_metric_is_measured_anew(folders, calls, monkeypatch):
    run(folders, ("niqe",))
    forget(calls)
    stand_in(monkeypatch.setattr, calls, version="2")
    run(folders, ("niqe",))
    assert sum(calls["niqe"]) == 3


def test_scores_stay_where_their_metric_can_no_longer_be_had(folders, calls):
    first = run(folders, ("niqe",))
    del calls["niqe"]
    assert run(folders, ("niqe",)) == first


def test_unless_an_image_has_changed(folders, calls):
    run(folders, ("niqe",))
    save_png(folders / "lq/a.png", picture(0.9))
    del calls["niqe"]
    assert run(folders, ("niqe",))["metrics"]["niqe"] == {"unavailable": "no weights"}


def test_the_files_are_the_same_bit_for_bit_after_a_detour(folders, calls):
    run(folders)
    straight = [path.read_bytes() for path in sorted((folders / "scores/set").iterdir())]
    for path in (folders / "scores/set").iterdir():
        path.unlink()
    run(folders, ("psnr_y",))
    run(folders, batch=1)
    assert [path.read_bytes() for path in sorted((folders / "scores/set").iterdir())] == straight


def measure_until_killed(folders: Path, images: int) -> None:
    calls: Calls = {"niqe": []}
    stand_in(setattr, calls)
    forward = Mean.forward

    def killing(self: Mean, image: Tensor) -> Tensor:
        if sum(calls["niqe"]) == images:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, image)

    Mean.forward = killing
    run(folders, ("niqe",), batch=1)


def killed(folders: Path, images: int) -> None:
    process = multiprocessing.get_context("spawn").Process(target=measure_until_killed, args=(folders, images))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_run_is_taken_up_where_it_was(folders, calls):
    killed(folders, images=2)
    run(folders, ("niqe",), batch=1)
    assert sum(calls["niqe"]) == 1 and rows(folders)["niqe"].to_list() == pytest.approx([0.2, 0.4, 0.6], abs=1e-3)


def test_a_line_that_was_half_written_is_measured_again(folders, calls):
    killed(folders, images=2)
    partial = folders / "scores/set/v1.5.partial.jsonl"
    partial.write_bytes(partial.read_bytes()[:-5])
    run(folders, ("niqe",))
    assert sum(calls["niqe"]) == 2


def test_nothing_partial_is_left(folders, calls):
    killed(folders, images=1)
    run(folders, ("niqe",))
    assert sorted(path.name for path in (folders / "scores/set").iterdir()) == ["v1.5.json", "v1.5.parquet"]


# --------------------------------------------------------------------------------------------------- what is refused


def refused(folders: Path, metrics: tuple[str, ...] = ("psnr_y",)) -> str:
    with pytest.raises(ValueError) as error:
        run(folders, metrics)
    return str(error.value)


def test_names_without_a_partner_are_listed(folders, calls):
    save_png(folders / "lq/x.png", picture(0.5))
    save_png(folders / "hq/y.png", picture(0.5))
    lines = refused(folders).splitlines()
    assert lines[1:] == [f"  x: only in {folders / 'lq'}", f"  y: only in {folders / 'hq'}"]


def test_sizes_that_differ_are_listed(folders, calls):
    save_png(folders / "lq/a.png", picture(0.5, 50))
    assert refused(folders).splitlines()[1:] == ["  a.png: is 50x100, its reference 100x100"]


def test_a_jpeg_is_refused_with_the_reason(folders, calls):
    Image.new("RGB", (100, 100)).save(folders / "lq/x.jpg")
    assert "x.jpg: is a JPEG, but its compression would be measured too" in refused(folders, ("niqe",))


def test_so_is_one_that_is_named_png(folders, calls):
    Image.new("RGB", (100, 100)).save(folders / "lq/a.png", "JPEG")
    assert "a.png: is a JPEG" in refused(folders)


def test_photographs_as_they_were_found_can_be_allowed(folders, calls):
    Image.new("RGB", (100, 100)).save(folders / "lq/x.jpg")
    assert run(folders, ("niqe",), png_only=False)["images"] == 4


def test_a_reference_may_have_another_suffix(folders, calls):
    Image.open(folders / "hq/a.png").save(folders / "hq/a.bmp")
    (folders / "hq/a.png").unlink()
    assert run(folders)["metrics"]["psnr_y"]["judged"] == 3


def test_what_is_no_picture_is_listed(folders, calls):
    (folders / "lq/a.png").write_text("no picture")
    assert "a.png: cannot be read" in refused(folders)


def test_an_empty_folder_is_refused(folders, calls):
    (folders / "empty").mkdir()
    with pytest.raises(ValueError, match="no image"):
        measure(folders / "empty", folders / "x", ("niqe",))


def test_a_metric_that_lacks_its_reference_is_refused(folders, calls):
    with pytest.raises(ValueError, match="psnr_y: give a folder of references"):
        measure(folders / "lq", folders / "x", ("niqe", "psnr_y"))


def test_an_unknown_metric_is_refused(folders, calls):
    with pytest.raises(ValueError, match="unknown metrics: nique"):
        measure(folders / "lq", folders / "x", ("nique",))


# -------------------------------------------------------------------------------------------------- what is comparable


def test_methods_measured_alike_are_comparable(folders, calls):
    before = run(folders)
    save_png(folders / "lq/a.png", picture(0.9))
    assert comparable(before, run(folders)) == []


def test_other_references_are_not(folders, calls):
    before = run(folders)
    save_png(folders / "hq/a.png", picture(0.9))
    assert [reason.partition(":")[0] for reason in comparable(before, run(folders))] == ["inputs_digest"]


def test_fewer_images_are_not(folders, calls):
    before = run(folders)
    for side in ("lq", "hq"):
        (folders / side / "a.png").unlink()
    assert comparable(before, run(folders))[0] == "images: 3 and 2"


@pytest.mark.parametrize("label", ["variant", "version", "weights_sha256", "color", "border"])
def test_other_identities_are_not(folders, calls, label):
    ours, theirs = run(folders), run(folders)
    theirs["metrics"]["niqe"][label] = "other"
    assert [reason.partition(":")[0] for reason in comparable(ours, theirs)] == [f"niqe {label}"]


def test_a_metric_that_one_lacks_is_no_reason(folders, calls):
    ours, theirs = run(folders), run(folders)
    theirs["metrics"]["niqe"] = {"unavailable": "no weights"}
    assert comparable(ours, theirs) == []


# --------------------------------------------------------------------------------- several methods, one set, one pass

METHODS = ("one", "two", "three")


def measure_methods(folders: Path, metrics: tuple[str, ...] = ("psnr_y",), **options) -> dict:
    """Three methods whose images are copies of lq."""
    for method in METHODS:
        if not (folders / method).exists():
            shutil.copytree(folders / "lq", folders / method)
    jobs = {method: Folder(folders / method, folders / "scores/set" / method) for method in METHODS}
    return measure_set("set", jobs, metrics, folders / "hq", **options)


@pytest.fixture
def reads(monkeypatch) -> Counter:
    """How often each file is hashed ("read") and decoded."""
    reads: Counter = Counter()

    def counting(function: Callable, what: str) -> Callable:
        def count(path: Path) -> object:
            reads[what, path.parent.name, path.name] += 1
            return function(path)

        return count

    monkeypatch.setattr(listing.Path, "read_bytes", counting(Path.read_bytes, "read"))
    monkeypatch.setattr(scoring, "load_rgb", counting(scoring.load_rgb, "decoded"))
    return reads


def test_a_reference_is_read_and_decoded_once_for_all_methods(folders, calls, reads):
    measure_methods(folders)
    assert {key: n for key, n in reads.items() if key[1:] == ("hq", "a.png")} == {
        ("read", "hq", "a.png"): 1,
        ("decoded", "hq", "a.png"): 1,
    }


def test_nothing_is_decoded_where_every_score_is_known(folders, calls, reads):
    measure_methods(folders)
    reads.clear()
    measure_methods(folders)
    assert not [key for key in reads if key[0] == "decoded"]


def test_methods_together_have_the_scores_of_each_alone(folders, calls):
    together = measure_methods(folders, ("niqe", "psnr_y"))
    alone = measure(folders / "one", folders / "alone/one", ("niqe", "psnr_y"), folders / "hq", ("set", "one"))
    assert together["one"] == alone


def test_a_method_that_does_not_fit_stops_no_other(folders, calls):
    measure_methods(folders)
    save_png(folders / "two/a.png", picture(0.5, 50))
    found = measure_methods(folders)
    assert "a.png: is 50x100, its reference 100x100" in str(found["two"]) and found["three"]["images"] == 3


def test_a_method_that_does_not_fit_is_scored_no_further(folders, calls):
    measure_methods(folders)
    save_png(folders / "two/a.png", picture(0.5, 50))
    save_png(folders / "two/b.png", picture(0.5, 120))
    forget(calls)
    measure_methods(folders, batch=1)
    assert calls["psnr_y"] == []


def test_an_image_with_damaged_pixels_is_named(folders, calls):
    path = folders / "lq/a.png"
    path.write_bytes(path.read_bytes()[:-40])
    assert "a.png: damaged" in refused(folders).replace(f"{path} ", "")


def test_workers_compute_the_same_files(folders, calls):
    measure_methods(folders)
    expected = (folders / "scores/set/one.parquet").read_bytes()
    shutil.rmtree(folders / "scores")
    with ThreadPoolExecutor(2) as workers:
        measure_methods(folders, batch=1, workers=workers)
    assert (folders / "scores/set/one.parquet").read_bytes() == expected


# -------------------------------------------------------------------------------------------- which files are measured


def test_hidden_files_and_folders_are_no_images_of_a_set(folders, calls):
    for name in (".ipynb_checkpoints/a-checkpoint.png", "._a.png", "@eaDir/a.png"):
        save_png(folders / "lq" / name, picture(0.5))
    assert run(folders)["images"] == 3


def test_other_files_are_named_in_the_record(folders, calls):
    (folders / "lq/notes.txt").write_text("made on Monday")
    assert run(folders)["skipped"] == [{"file": "notes.txt", "reason": "not an image"}]


def test_a_linked_folder_is_measured(folders, calls):
    save_png(folders / "elsewhere/d.png", picture(0.5))
    for side in ("lq", "hq"):
        (folders / side / "linked").symlink_to(folders / "elsewhere")
    assert run(folders)["images"] == 4


@pytest.mark.parametrize("value", range(1, 9))
def test_a_tiff_has_the_size_that_it_has_when_it_is_decoded(tmp_path, value):
    path = tmp_path / "a.tif"
    Image.new("RGB", (30, 20)).save(path, tiffinfo={274: value})
    _, height, width = load_rgb(path).shape
    assert listing.read_header(path).size == (width, height)


@pytest.mark.parametrize("value", [1, 6])
def test_so_has_a_jpeg(tmp_path, value):
    exif = Image.Exif()
    exif[274] = value
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    _, height, width = load_rgb(tmp_path / "a.jpg").shape
    assert listing.read_header(tmp_path / "a.jpg").size == (width, height)


def test_a_name_that_is_not_utf_8_is_measured_and_written_escaped(folders, calls):
    for side in ("lq", "hq"):
        os.rename(folders / side / "a.png", os.fsencode(folders / side) + b"/caf\xe9.png")
    run(folders)
    assert "caf\\xe9.png" in rows(folders)["file"].to_list()


# ------------------------------------------------------------------------------------------- damaged and foreign files


@pytest.mark.parametrize("suffix", ["parquet", "partial.jsonl"])
@pytest.mark.parametrize("content", [b"", b"torn", b"[1]\n", b'{"a": 1}\n'])
def test_a_damaged_file_of_scores_is_named_with_what_to_do(folders, calls, suffix, content):
    path = folders / f"scores/set/v1.5.{suffix}"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    lines = refused(folders).splitlines()
    assert len(lines) == 1 and lines[0].startswith(str(path)) and lines[0].endswith("delete it and run again")


def test_a_parquet_of_another_program_is_named(folders, calls):
    path = folders / "scores/set/v1.5.parquet"
    path.parent.mkdir(parents=True)
    pl.DataFrame({"a": [1]}).write_parquet(path)
    assert refused(folders).startswith(f"{path} is damaged or does not hold scores")
