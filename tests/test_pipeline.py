"""HQ-ACF from end to end on drawn pictures: what is accounted for, what a stop costs, what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest

import osdhuman.curate.passes as passes
import osdhuman.curate.pipeline as pipeline
import osdhuman.curate.score as score
from osdhuman.config import ConfigError, load_config, parse_config
from osdhuman.curate.config import HQACFConfig
from osdhuman.curate.manifest import AccountError, Entry, Tally, make_account, summary
from osdhuman.curate.record import CANDIDATES, Box, ImageRecord, Reason, images_frame
from osdhuman.curate.score import ScoreConfig, score_crops
from osdhuman.curate.sources import Faults

CONFIGS = Path(__file__).parents[1] / "configs" / "hq_acf"
SIZE = 48  # of the toy crops


# ---- a toy run: nine annotated pictures, three for the detector, three for test ----


def picture(seed: int, gray: bool = False) -> np.ndarray:
    """uint8 RGB (120,160,3): blocks of noise, so that it is sharp."""
    blocks = np.random.default_rng(seed).integers(0, 256, (30, 40, 1 if gray else 3), np.uint8)
    return np.broadcast_to(blocks, (30, 40, 3)).repeat(4, 0).repeat(4, 1)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels[..., ::-1])


def coco(folder: Path, files: dict[str, list[tuple]], seed: int) -> None:
    """A data set in COCO's layout: each file with its boxes x, y, width, height."""
    images, annotations = [], []
    for number, (file, boxes) in enumerate(files.items()):
        save(folder / "images" / file, picture(seed + number, gray=file.startswith("gray")))
        images.append({"id": number, "file_name": file, "width": 160, "height": 120})
        for box in boxes:
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": 1, "bbox": box, "iscrowd": 0}
            )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (folder / "instances.json").write_text(json.dumps(content))


def make_sources(root: Path) -> None:
    one, two = (50, 20, 60, 80), (0, 0, 60, 60)
    files = {f"{i}.png": [one, two] for i in range(5)}
    files |= {
        "gray.png": [one],
        "nobody.png": [],
        "torn.png": [one, two],
        "gone.png": [one],
        "small.png": [(0, 0, 9, 9)],
    }
    coco(root / "train", files, seed=0)
    (root / "train/images/gone.png").unlink()
    (root / "train/images/torn.png").write_bytes((root / "train/images/torn.png").read_bytes()[:2000])
    coco(root / "test", {f"{i}.png": [one] for i in range(3)}, seed=50)
    for i in range(2):
        save(root / "loose" / f"{i}.png", picture(90 + i))
    (root / "loose" / "2.png").write_bytes(b"no picture")


def toy_config(root: Path, out: Path, **settings) -> HQACFConfig:
    sources = [
        {"name": name, "format": "coco", "images": f"{name}/images", "annotations": [f"{name}/instances.json"]}
        for name in ("train", "test")
    ]
    sources[1]["split"] = "test"
    sources.append({"name": "loose", "format": "folder", "images": "loose"})
    values = {
        "root": root,
        "out": out,
        "sources": sources,
        "shard_size": 2,
        "cut": {"size": SIZE, "min_side": 20},
        "score": {"metrics": ["niqe", "brisque"], "batch": 2},
        "select": {"metrics": ["niqe", "brisque"], "top": 0.8, "floors": {"share": 0.1}, "val": 1, "test": 2},
        "engine": {"workers": 2},
    }
    return parse_config(HQACFConfig, {**values, **settings})


def toy_scorers(names, device):
    """Mean and spread of a crop instead of NIQE and BRISQUE."""
    measures = {"niqe": lambda x: x.mean((1, 2, 3)).double(), "brisque": lambda x: x.std((1, 2, 3)).double()}
    return {name: measures[name] for name in names}


def toy_detector(config):
    """Finds one person in the middle of every picture."""
    return lambda pictures: [(Box(60, 20, 120, 100, "0"),) for _ in pictures]


class Inline:
    """An engine that does the shards here and now, last one first."""

    def run(self, shards, work, gpu=False):
        for shard in reversed(shards):
            yield shard, work(shard)

    def close(self):
        pass


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setattr(pipeline, "load_scorers", toy_scorers)
    monkeypatch.setattr(score, "load_scorers", toy_scorers)
    monkeypatch.setattr(pipeline, "build_detector", toy_detector)
    monkeypatch.setattr(passes, "build_detector", toy_detector)
    monkeypatch.setattr(pipeline, "build_engine", lambda config: Inline())
    score._scorers.cache_clear()
    passes._detector.cache_clear()


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    make_sources(root)
    return root


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder and its sha256."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


# ---- the account ----


def test_every_picture_is_kept_or_dropped_by_name(root, tmp_path):
    account = pipeline.run(toy_config(root, tmp_path / "out"))
    train = account["sources"]["train"]["images"]
    assert train["in"] == 10 and train["kept"] + sum(train["dropped"].values()) == 10
    named = {Reason.NO_PERSON: 1, Reason.TRUNCATED: 1, Reason.UNREADABLE: 1, Reason.GRAYSCALE: 1, Reason.TOO_SMALL: 1}
    assert named.items() <= train["dropped"].items()
    assert account["sources"]["loose"]["images"]["dropped"][Reason.UNREADABLE] == 1
    assert account["images"]["in"] == 16 and account["boxes"]["in"] == 15 + 3 + 2
    assert account["splits"]["val"] == 1 and account["splits"]["test"] == 2


def test_the_manifest_names_every_candidate(root, tmp_path):
    pipeline.run(toy_config(root, tmp_path / "out"))
    manifest = pl.read_parquet(tmp_path / "out" / "manifest.parquet")
    assert manifest.columns == [*CANDIDATES, "niqe", "brisque", "normalized", "split", "crop_sha256"]
    assert len(manifest) == 20 + 2  # every box, a picture that shows nobody, and one that no detector could see
    assert (manifest["reason"].is_null() == manifest["split"].is_not_null()).all()
    assert manifest["id"].n_unique() == len(manifest)


def test_the_manifest_has_the_digest_of_each_crop(root, tmp_path):
    pipeline.run(toy_config(root, tmp_path / "out"))
    rows = pl.read_parquet(tmp_path / "out" / "manifest.parquet").filter(split="train")
    for crop, digest in rows.select("id", "crop_sha256").rows():
        assert sha256((tmp_path / "out" / "persona" / "train" / f"{crop}.png").read_bytes()).hexdigest() == digest


def test_a_picture_counts_by_its_box_that_came_furthest():
    rows = pl.DataFrame(
        {
            "source": "a",
            "file": ["1", "1", "2", "2", "3"],
            "image_id": ["1", "1", "2", "2", "3"],
            "box_id": ["0", "1", "0", "1", None],
            "reason": [Reason.TOO_SMALL, Reason.OVERLAP, Reason.OVERLAP, None, Reason.NO_PERSON],
            "split": [None, None, None, "train", None],
        },
        schema_overrides={"reason": pl.String},
    )
    tally = Tally()
    tally.add(Entry("a", images=3, boxes=4), rows)
    assert tally.summary()["images"] == {"in": 3, "kept": 1, "dropped": {Reason.NO_PERSON: 1, Reason.OVERLAP: 1}}


def test_an_account_that_does_not_add_up_is_an_error():
    tally = Tally()
    tally.images_in, tally.images[None] = 3, 2
    with pytest.raises(AccountError, match="images of a do not add up: 3 in, 2 kept"):
        make_account({"a": tally}, faults=0)


def test_the_summary_counts_by_reason_and_names_the_files(tmp_path):
    tally = Tally()
    tally.images_in = 1500
    tally.images.update({None: 1499, "blurred": 1})
    faults = [{"source": "a", "fault": fault} for fault in ("iscrowd must be 0 or 1, got 'x'", "has no 'bbox'")]
    (tmp_path / "faults.jsonl").write_text("".join(json.dumps(fault) + "\n" for fault in [*faults, faults[1]]))
    text = summary(make_account({"a": tally}, faults=3), tmp_path)
    assert "1,500 images" in text and "-1   blurred" in text and "1,499   kept" in text
    assert "3 malformed annotations" in text and "2   a: has no" in text and "1   a: iscrowd must be" in text
    assert str(tmp_path / "faults.jsonl") in text and str(tmp_path / "manifest.parquet") in text


def test_the_summary_says_so_where_no_crop_was_selected(tmp_path):
    assert "no crop was selected" in summary(make_account({"a": Tally()}, faults=0), tmp_path)


# ---- stopping and going on ----


def test_a_finished_run_is_not_done_again(root, tmp_path, monkeypatch):
    config = toy_config(root, tmp_path / "out")
    account, before = pipeline.run(config), contents(tmp_path / "out")
    monkeypatch.setattr(passes, "cut", None)
    monkeypatch.setattr(passes, "select", None)
    assert pipeline.run(config) == account and contents(tmp_path / "out") == before


def test_a_run_that_failed_in_the_middle_ends_as_if_it_had_not(root, tmp_path, monkeypatch):
    pipeline.run(toy_config(root, tmp_path / "whole"))
    config, cut = toy_config(root, tmp_path / "out"), passes.cut
    failing = iter(range(7))
    monkeypatch.setattr(passes, "cut", lambda *a: cut(*a) if next(failing, None) is not None else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipeline.run(config)
    assert 0 < len(list((tmp_path / "out" / "crops").glob("*"))) < 8
    monkeypatch.setattr(passes, "cut", cut)
    pipeline.run(config)
    assert same_results(tmp_path / "out", tmp_path / "whole")


def test_the_size_of_shards_and_the_engine_do_not_change_the_selection(root, tmp_path):
    tables = []
    for size in (2, 5):
        pipeline.run(toy_config(root, tmp_path / str(size), shard_size=size))
        tables.append(pl.read_parquet(tmp_path / str(size) / "manifest.parquet"))
    assert tables[0].equals(tables[1])


def test_a_killed_driver_costs_nothing(root, tmp_path):
    """`kill -9` in the middle of the cut; the same command goes on and ends with the same bytes."""
    pipeline.run(toy_config(root, tmp_path / "whole"))
    driver = start_driver(root, tmp_path / "out")
    wait_for(lambda: any((tmp_path / "out" / "crops").glob("0*")), driver)
    driver.kill()
    driver.wait()
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    assert start_driver(root, tmp_path / "out").wait() == 0
    assert same_results(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"])
def test_a_stopped_run_ends_with_one_line_and_leaves_nothing_unfinished(root, tmp_path, number, code):
    driver = start_driver(root, tmp_path / "out")
    wait_for(lambda: any((tmp_path / "out" / "crops").glob("0*")), driver)
    os.killpg(driver.pid, number)  # to driver and workers, as a terminal does
    _, errors = driver.communicate(timeout=30)
    (line,) = errors.decode().splitlines()
    assert driver.returncode == code and "the same command continues" in line and "cut" in line
    assert not list((tmp_path / "out").rglob("*.part"))


def start_driver(root: Path, out: Path) -> subprocess.Popen:
    """A run on local processes in a process of its own. Its worker imports the file too, and so gets the toys."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import osdhuman.curate.pipeline as pipeline, osdhuman.curate.passes as passes, osdhuman.curate.score as score
import test_pipeline as toys
from osdhuman.cli.command import run_command
from pathlib import Path
pipeline.load_scorers = score.load_scorers = toys.toy_scorers
pipeline.build_detector = passes.build_detector = toys.toy_detector
if __name__ == "__main__":
    config = toys.toy_config(Path({str(root)!r}), Path({str(out)!r}), engine={{"workers": 1}})
    work = lambda: pipeline.run(config) and 0
    sys.exit(run_command("hq_acf", work, lambda: pipeline.progress(config.out)))
"""
    (out.parent / "driver.py").write_text(code)
    return subprocess.Popen([sys.executable, out.parent / "driver.py"], stderr=subprocess.PIPE, start_new_session=True)


def wait_for(condition, process: subprocess.Popen, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and process.poll() is None, "the run ended or hung before it could be killed"
        time.sleep(0.01)


def same_results(one: Path, other: Path) -> bool:
    """The manifest, the account and PERSONA agree byte for byte, and nothing else is there."""
    files = [{k: v for k, v in contents(folder).items() if k != "config.yaml"} for folder in (one, other)]
    return files[0] == files[1]


# ---- what is refused ----


def test_other_settings_are_refused_with_what_differs(root, tmp_path):
    pipeline.run(toy_config(root, tmp_path / "out"))
    with pytest.raises(ValueError, match=r"cut\.min_side: 20\.0 there, 30\.0 now") as error:
        pipeline.run(toy_config(root, tmp_path / "out", cut={"size": SIZE, "min_side": 30}))
    assert f"{tmp_path}/out/crops" in str(error.value) and f"{tmp_path}/out/images" not in str(error.value)


def test_what_depends_on_other_settings_may_be_deleted(root, tmp_path):
    pipeline.run(toy_config(root, tmp_path / "out"))
    changed = {"metrics": ["niqe"], "top": 0.5, "floors": {"share": 0}, "val": 1, "test": 1}
    with pytest.raises(ValueError, match="rm -r") as error:
        pipeline.run(toy_config(root, tmp_path / "out", select=changed))
    subprocess.run(str(error.value).splitlines()[-1].strip(), shell=True, check=True)
    assert pipeline.run(toy_config(root, tmp_path / "out", select=changed))["splits"]["test"] == 1


def test_of_an_image_that_a_source_names_twice_the_first_record_is_used(root, tmp_path):
    config = toy_config(root, tmp_path / "once")
    twice = config.sources[0].model_copy(update={"annotations": config.sources[0].annotations * 2})
    again = config.model_copy(update={"out": tmp_path / "twice", "sources": (twice, *config.sources[1:])})
    account = pipeline.run(config)
    assert pipeline.run(again) == {**account, "faults": 10}
    one, two = (pl.read_parquet(tmp_path / name / "manifest.parquet") for name in ("once", "twice"))
    assert one.equals(two)


def test_each_repeated_image_is_a_fault_by_name(tmp_path):
    records = [ImageRecord("a", name, str(i), ()) for i, name in enumerate(["x.png", "y.png", "x.png"])]
    images_frame(records[:2]).write_parquet(tmp_path / "00000.parquet")
    images_frame(records[2:]).write_parquet(tmp_path / "00001.parquet")
    index = [{"source": "a", "images": 2, "boxes": 0}, {"source": "a", "images": 1, "boxes": 0}]
    with Faults.written_to(tmp_path / "faults.jsonl") as faults:
        assert [entry["images"] for entry in passes.drop_repeated(tmp_path, index, faults)] == [2, 0]
    (fault,) = map(json.loads, (tmp_path / "faults.jsonl").read_text().splitlines())
    assert (fault["file"], fault["record"]) == ("x.png", "image 2") and "first record is used" in fault["fault"]


def lone_source(**settings) -> dict:
    return {"sources": [{"name": "lone", "format": "folder", "images": ".", **settings}]}


def test_a_source_without_an_image_ends_the_run_in_a_line_with_its_faults(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("no image")
    config = toy_config(tmp_path / "data", tmp_path / "out", **lone_source())
    with pytest.raises(ValueError, match=r"source 'lone' names no image; its 1 faults are in .*notes\.txt"):
        pipeline.run(config)
    save(tmp_path / "data" / "late.png", picture(1))
    assert pipeline.run(config)["images"]["in"] == 1


def test_a_source_of_broken_images_ends_with_an_account(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "data" / name).write_bytes(b"broken")
    account = pipeline.run(toy_config(tmp_path / "data", tmp_path / "out", **lone_source()))
    assert account["images"] == {"in": 2, "kept": 0, "dropped": {Reason.UNREADABLE: 2}}
    assert account["splits"] == {"train": 0, "val": 0, "test": 0}


def test_a_name_that_is_too_long_is_a_fault_of_its_record(root, tmp_path):
    coco(tmp_path / "data", {"a.png": [(50, 20, 60, 80)]}, seed=0)
    annotations = json.loads((tmp_path / "data" / "instances.json").read_text())
    annotations["images"].append({"id": 9, "file_name": "n" * 300 + ".png", "width": 160, "height": 120})
    annotations["annotations"].append({"id": 9, "image_id": 9, "category_id": 1, "bbox": [50, 20, 60, 80]})
    (tmp_path / "data" / "instances.json").write_text(json.dumps(annotations))
    source = {"format": "coco", "images": "images", "annotations": ["instances.json"], "split": "test"}
    account = pipeline.run(toy_config(tmp_path / "data", tmp_path / "out", **lone_source(**source)))
    assert account["images"] == {"in": 2, "kept": 1, "dropped": {Reason.UNREADABLE: 1}}


def test_a_file_where_the_run_folder_should_be_is_refused(root, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match="out is a file; name a folder"):
        pipeline.run(toy_config(root, tmp_path / "out"))


def test_two_runs_cannot_work_in_one_folder(root, tmp_path):
    (tmp_path / "out").mkdir()
    with pipeline.exclusive(tmp_path / "out"), pytest.raises(ValueError, match="another run is working in"):
        pipeline.run(toy_config(root, tmp_path / "out"))


def test_a_run_killed_between_manifest_and_account_writes_both(root, tmp_path):
    account = pipeline.run(toy_config(root, tmp_path / "out"))
    (tmp_path / "out" / "account.json").unlink()
    assert pipeline.run(toy_config(root, tmp_path / "out")) == account
    assert json.loads((tmp_path / "out" / "account.json").read_text()) == account


def test_workers_and_batches_may_change(root, tmp_path):
    account = pipeline.run(toy_config(root, tmp_path / "out"))
    changed = {"engine": {"workers": 7}, "score": {"metrics": ["niqe", "brisque"], "batch": 5}}
    assert pipeline.run(toy_config(root, tmp_path / "out", **changed)) == account


def test_a_missing_metric_ends_the_run_before_any_work(root, tmp_path, monkeypatch):
    from osdhuman.metrics.weights import MetricUnavailable

    def unavailable(names, device):
        raise MetricUnavailable("musiq", "no weights", "download them")

    monkeypatch.setattr(pipeline, "load_scorers", unavailable)
    with pytest.raises(MetricUnavailable):
        pipeline.run(toy_config(root, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_two_sources_of_one_name_are_a_mistake():
    source = {"name": "a", "format": "folder", "images": "x"}
    with pytest.raises(ConfigError, match="two sources have the name a"):
        parse_config(HQACFConfig, {"sources": [source, source]})


def test_selecting_by_a_metric_that_is_not_scored_is_a_mistake():
    source = {"name": "a", "format": "folder", "images": "x"}
    with pytest.raises(ConfigError, match="select needs clipiqa, maniqa, musiq"):
        parse_config(HQACFConfig, {"sources": [source], "score": {"metrics": ["niqe"]}})


# ---- paths, scores, configs ----


def test_relative_paths_are_taken_from_the_root(root, tmp_path):
    config = toy_config(root, tmp_path / "out").absolute()
    assert config.sources[0].images == root / "train" / "images"
    assert config.sources[0].annotations == (root / "train" / "instances.json",)


def test_the_detector_leaves_annotated_boxes_alone(root, tmp_path):
    config = toy_config(root, tmp_path).absolute()
    known, file = (Box(1, 2, 30, 40, "7"),), next((root / "loose").iterdir()).name
    records = [ImageRecord("loose", file, "a", known), ImageRecord("loose", file, "b", None)]
    (tmp_path / "images").mkdir()
    images_frame(records).write_parquet(tmp_path / "images" / "00000.parquet")
    passes.detect_shard(config, 0)
    assert [record.boxes == known for record in passes.read_records(config, 0)] == [True, False]


def test_scores_stand_in_the_order_of_the_crops(tmp_path):
    for crop, value in (("a", 10), ("b", 200), ("c", 60)):
        save(tmp_path / f"{crop}.png", np.full((8, 8, 3), value, np.uint8))
    scores = score_crops(tmp_path, ["b", "c", "a"], ScoreConfig(metrics=("niqe",), batch=2, device="cpu"))
    assert scores["id"].to_list() == ["b", "c", "a"]
    assert scores["niqe"].to_list() == pytest.approx([200 / 255, 60 / 255, 10 / 255])


def test_a_damaged_crop_says_what_to_delete(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="delete the folder"):
        score_crops(tmp_path, ["a"], ScoreConfig(metrics=("niqe",), device="cpu"))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_load(path):
    load_config(HQACFConfig, path)


def test_the_papers_numbers():
    config = load_config(HQACFConfig, CONFIGS / "persona.yaml")
    assert (config.select.val, config.select.test, config.cut.size) == (4216, 3000, 512)
    assert config.select.metrics == ("clipiqa", "maniqa", "musiq", "niqe")
