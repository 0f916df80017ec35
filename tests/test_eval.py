"""A whole run on drawn pictures: what is made, what is not done twice, and what a failing method leaves."""

import errno
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from osdhuman import page as kit
from osdhuman.config import load_config, parse_config
from osdhuman.evaluation import run
from osdhuman.evaluation.ablation import evaluation_of, training_of
from osdhuman.evaluation.config import AblationConfig, EvalConfig
from osdhuman.evaluation.cost_table import cost_table
from osdhuman.evaluation.image_folders import evenly_spaced
from osdhuman.evaluation.report import write_page
from osdhuman.evaluation.strips import draw_strip, file_name, most_different_box
from osdhuman.evaluation.tables import build_table
from osdhuman.images import save_png
from osdhuman.resume import exclusive

CONFIGS = Path(__file__).parents[1] / "configs"
SCRIPT = CONFIGS.parent / "scripts" / "eval.py"


def draw(path: Path, seed: int, noise: float = 0.0) -> None:
    rng = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6, generator=rng), 48, mode="bicubic")[0]
    save_png(path, (smooth + noise * torch.randn(3, 48, 48, generator=rng)).clamp(0, 1))


def settings(folder: Path, **changes) -> EvalConfig:
    values = {
        "output": folder / "run",
        "sets": {
            "pairs": {"lq": folder / "lq", "hq": folder / "hq", "title": "Pairs"},
            "real": {"lq": folder / "real", "title": "Real"},
        },
        "methods": {
            "input": {"restorer": "input", "title": "Input"},
            "gaussian": {"restorer": "gaussian", "title": "Gaussian"},
            "later": {"title": "</script><img onerror=x>", "note": "not written yet"},
        },
        "metrics": ["psnr_y", "brisque"],
        "cost": False,
        "strips_per_set": 1,
    }
    return parse_config(EvalConfig, values | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three pairs and two pictures without ground truth, one of them named to break a page."""
    folder = tmp_path_factory.mktemp("eval")
    for i in range(3):
        draw(folder / "hq" / f"{i}.png", i)
        draw(folder / "lq" / f"{i}.png", i, noise=0.1)
    for name in ("a", "b<img onerror=x>"):
        draw(folder / "real" / f"{name}.png", 7, noise=0.2)
    return folder


@pytest.fixture(scope="module")
def done(folder: Path) -> EvalConfig:
    config = settings(folder)
    assert run.run(config) == {}
    return config


def files(config: EvalConfig) -> dict[str, int]:
    paths = sorted(p for p in config.output.rglob("*") if p.is_file())
    return {p.relative_to(config.output).as_posix(): os.stat(p).st_mtime_ns for p in paths}


def test_a_run_makes_what_it_says(done):
    expected = {"config.yaml", "restored/pairs/gaussian/0.png", "scores/real/input.parquet", "tables/table2.tex"}
    assert expected | {"figures/pairs_1.png", "figures/pairs_1.pdf", "report.html"} <= files(done).keys()


def test_gaussian_raises_the_psnr_of_noisy_pictures(done):
    cells = json.loads((done.output / "tables" / "table2.json").read_text())["cells"]
    psnr = {cell["method"]: cell["measured"] for cell in cells if cell["metric"] == "psnr_y"}
    assert psnr["gaussian"] > psnr["input"] + 3


def test_a_second_run_restores_and_measures_nothing_again(done):
    work = ("restored/", "scores/")
    before = {name: time for name, time in files(done).items() if name.endswith(".png") and name.startswith(work)}
    run.run(done)
    after = files(done)
    assert {name: after[name] for name in before} == before


def test_a_second_run_gives_the_same_bytes(done):
    names = ["tables/table2.json", "figures/pairs_1.pdf", "figures/pairs_1.png", "report.html"]
    before = [(done.output / name).read_bytes() for name in names]
    run.run(done)
    assert [(done.output / name).read_bytes() for name in names] == before


def test_a_run_that_lost_a_picture_goes_on(done):
    lost = done.output / "restored" / "pairs" / "gaussian" / "1.png"
    before = lost.read_bytes()
    lost.unlink()
    run.run(done)
    assert lost.read_bytes() == before


def test_a_method_that_fails_stops_no_other(folder, tmp_path):
    methods = {"bad": {"restorer": "osdhuman", "settings": {"model": str(tmp_path)}}, "input": {"restorer": "input"}}
    config = settings(folder, methods=methods, output=tmp_path / "run")
    failures = run.run(config)
    assert (list(failures), (config.output / "scores" / "pairs" / "input.json").is_file()) == (["bad"], True)


def test_the_table_says_why_a_method_failed(folder, tmp_path):
    config = settings(folder, methods={"bad": {"restorer": "gausian"}, "input": {"restorer": "input"}}, output=tmp_path)
    run.run(config)
    assert "bad not run: unknown restorer 'gausian'" in (tmp_path / "tables" / "table2.md").read_text()


def test_pictures_restored_elsewhere_are_measured_without_a_model(folder, tmp_path):
    methods = {"theirs": {"images": {"pairs": str(folder / "hq")}}}
    config = settings(folder, methods=methods, output=tmp_path, metrics=["ssim_y"])
    run.measure(config)
    measured = json.loads((tmp_path / "scores" / "pairs" / "theirs.json").read_text())
    assert measured["metrics"]["ssim_y"]["mean"] == pytest.approx(1)


def test_missing_folders_are_named_all_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"sets.pairs.lq=.*\n.*sets.real.lq="):
        run.restore(settings(tmp_path))


def test_workers_change_nothing(folder, done, tmp_path):
    run.restore(settings(folder, output=tmp_path, workers=2))
    name = "restored/real/gaussian/a.png"
    assert (tmp_path / name).read_bytes() == (done.output / name).read_bytes()


def test_cost_is_measured_once(folder, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("osdhuman.evaluation.cost.cost", lambda build, size: calls.append(size) or {"macs": 1})
    config = settings(folder, output=tmp_path, methods={"input": {"restorer": "input"}}, cost_size=64)
    run.cost(config)
    run.cost(config)
    assert calls == [64]


def test_the_cost_table_gives_units_and_leaves_out_what_a_method_has_not(folder, tmp_path):
    config = settings(folder, output=tmp_path)
    measured = {
        "seconds_median": 0.25,
        "macs": 18.4e9,
        "parameters": None,
        "size": 512,
        "batch": 1,
        "memory": "resident",
    }
    (tmp_path / "cost").mkdir()
    machine = {"device": "cpu", "device_name": "Some CPU", "dtype": "float32", "threads": 2, "instructions": "AVX2"}
    (tmp_path / "cost" / "input.json").write_text(json.dumps(measured | machine))
    heads, line = cost_table(config)
    found = dict(zip(heads, line, strict=True))
    assert (found["Seconds, median"], found["MACs, G"], found["Parameters, M"]) == ("0.25", "18.4", "")
    assert found["Device"] == "cpu (Some CPU, AVX2, float32, 2 threads)"


# -- strips


def test_the_box_lies_where_the_methods_differ():
    pictures = [np.zeros((64, 64, 3), np.uint8) for _ in range(3)]
    pictures[1][40:48, 16:24] = 200
    x0, y0, x1, y1 = most_different_box(pictures, 16)
    assert (x0 <= 16 and x1 >= 24, y0 <= 40 and y1 >= 48, x1 - x0, y1 - y0) == (True, True, 16, 16)


def test_the_first_of_equal_boxes_is_taken():
    assert most_different_box([np.zeros((64, 64, 3), np.uint8)] * 2, 16) == (0, 0, 16, 16)


def test_a_strip_enlarges_each_pixel_of_a_box_to_a_square(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    png, _ = draw_strip({"LQ": picture}, [(4, 6, 14, 16)], 8, tmp_path / "strip")
    pixels = np.asarray(Image.open(png).convert("RGB"))
    tile = pixels[-80:, :80]  # with a frame of two pixels
    assert (tile[12:76:8, 12:76:8] == picture[7:15, 5:13]).all()


def test_a_box_outside_the_picture_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="does not lie in the image of 32x16"):
        draw_strip({"LQ": np.zeros((16, 32, 3), np.uint8)}, [(0, 0, 8, 20)], 2, tmp_path / "strip")


def test_evenly_spaced_takes_the_middles():
    assert evenly_spaced("abcdef", 2) == ["b", "e"]


# -- the page


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.found.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def page(done) -> str:
    return write_page(done, build_table(done)).read_text(encoding="utf-8")


def page_data(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def sources(page: str) -> list[str]:
    """Everything that a browser would fetch: attributes, images that the script shows, and addresses in styles."""
    fetching = ("src", "srcset", "href", "data", "action")
    attributes = [a[name] for _, a in Tags(page).found for name in fetching if name in a]
    shown = [uri for set_ in page_data(page)["images"].values() for image in set_.values() for uri in image.values()]
    styles = re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", page.partition("</head>")[0])
    return attributes + shown + ["".join(found) for found in styles]


def test_the_page_needs_nothing_from_outside(page):
    found = sources(page)
    assert len(found) >= 3 * 4 + 2 and {source[:23] for source in found} == {"data:image/webp;base64,"}


def test_no_script_of_the_page_fetches(page):
    assert not re.search(r"https?://|fetch\(|XMLHttpRequest|import\(", page.replace("http://www.w3.org", ""))


def test_no_name_becomes_markup(page):
    assert not any("onerror" in attributes for _, attributes in Tags(page).found)


def test_the_page_holds_every_score(page):
    counts = {(part["set"], part["method"]): len(part["rows"]) for part in page_data(page)["scores"]}
    assert counts == {("pairs", "input"): 3, ("pairs", "gaussian"): 3, ("real", "input"): 2, ("real", "gaussian"): 2}


def test_the_page_shows_lq_methods_and_hq(page):
    assert list(page_data(page)["images"]["pairs"]["0.png"]) == [":lq", ":hq", "input", "gaussian"]


def test_the_slider_has_a_name_for_screen_readers(page):
    assert any(tag == "input" and a.get("type") == "range" and a.get("aria-label") for tag, a in Tags(page).found)


def test_every_text_of_a_report_is_escaped():
    parts = [kit.text("<b>"), kit.note("<b>"), kit.tiles([("<b>", "<b>", "<b>")]), kit.photograph("<b>", "<b>")]
    html = kit.render("<b>", [kit.section("<b>", *parts, kit.table(["<b>"], [["<b>"], [kit.Cell("<b>", "<b>")]]))])
    assert (html.count("<b>"), html.count("&lt;b&gt;")) == (1, 2 + 1 + 2 + 3 + 3 + 1 + 3)  # one is the tile's own


def test_a_text_that_no_function_made_is_escaped():
    assert "&lt;script&gt;" in kit.section("title", "<script>")


# -- inputs and outputs that fail


def test_a_method_whose_name_has_a_dot_can_be_measured(folder, tmp_path):
    config = load_config(
        EvalConfig,
        None,
        [
            f"output={tmp_path / 'run'}",
            f"sets={{pairs: {{lq: {folder / 'lq'}, hq: {folder / 'hq'}}}}}",
            f"methods={{OSEDiff-1.0: {{images: {{pairs: {folder / 'hq'}}}}}}}",
            "metrics=[psnr_y]",
        ],
    )
    assert run.measure(config) == {}
    run.tables_and_figures(config)
    assert "| OSEDiff-1.0 | 80.00" in (tmp_path / "run" / "tables" / "table2.md").read_text()


def test_an_image_that_fails_is_counted_and_listed(folder, tmp_path):
    shutil.copytree(folder / "lq", tmp_path / "lq")
    (tmp_path / "lq" / "1.png").write_bytes(b"no image")
    (tmp_path / "lq" / "notes.txt").write_text("x")
    sets = {"pairs": {"lq": tmp_path / "lq"}}
    config = settings(folder, sets=sets, methods={"input": {"restorer": "input"}}, output=tmp_path / "run")
    failures = run.restore(config)
    listed = [json.loads(line) for line in (tmp_path / "run/problems/restore.jsonl").read_text().splitlines()]
    assert failures["input"].startswith("1 images of set pairs failed: 1 x ")
    assert [(Path(entry["file"]).name, entry["failed"]) for entry in listed] == [("1.png", True), ("notes.txt", False)]


def test_the_other_images_of_a_set_are_restored_all_the_same(folder, tmp_path):
    shutil.copytree(folder / "lq", tmp_path / "lq")
    (tmp_path / "lq" / "0.png").write_bytes(b"no image")
    sets = {"pairs": {"lq": tmp_path / "lq"}, "real": {"lq": folder / "real"}}
    config = settings(folder, sets=sets, methods={"input": {"restorer": "input"}}, output=tmp_path / "run")
    run.restore(config)
    assert sum(1 for _ in (tmp_path / "run" / "restored").rglob("*.png")) == 2 + 2


def test_a_file_where_a_folder_is_needed_fails_its_method_alone(folder, tmp_path):
    methods = {"input": {"restorer": "input"}, "gaussian": {"restorer": "gaussian"}}
    config = settings(folder, methods=methods, output=tmp_path / "run")
    blocked = tmp_path / "run" / "restored" / "pairs" / "input"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("in the way")
    failures = run.restore(config)
    assert list(failures) == ["input"] and len(list((tmp_path / "run/restored/pairs/gaussian").glob("*.png"))) == 3


def full_disk(path: Path, image: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_full_disk_ends_the_run_with_one_line(folder, tmp_path, monkeypatch, capsys, done):
    monkeypatch.setattr("osdhuman.evaluation.restored_folder.save_png", full_disk)
    code = script(monkeypatch, "restore", "--config", done.output / "config.yaml", f"output={tmp_path / 'run'}")
    assert code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not re.search(r"\d+%\|", line)]
    assert len(errors) == 1 and "No space left on device" in errors[0]


def test_names_that_are_not_utf_8_go_through_a_whole_run(folder, tmp_path):
    lq = tmp_path / "lq"
    lq.mkdir()
    shutil.copy(folder / "lq" / "0.png", os.fsencode(lq) + b"/caf\xe9.png")
    (lq / os.fsdecode(b"\xe9.png")).write_bytes(b"no image")
    methods = {"input": {"restorer": "input"}}
    config = settings(folder, sets={"real": {"lq": lq}}, methods=methods, output=tmp_path / "run")
    failures = run.run(config)
    shown = page_data((tmp_path / "run" / "report.html").read_text("utf-8"))["images"]["real"]
    assert "(\\xe9.png)" in failures["input"] and list(shown) == ["caf\\xe9.png"]


def test_the_name_of_a_strip_is_never_too_long():
    long = "a" * 250
    assert (file_name("pairs_1"), len(file_name(long)), file_name(long) == file_name(long[:-1])) == (
        "pairs_1",
        200,
        False,
    )


@pytest.mark.parametrize(
    "name", ["restored/pairs/input/restorer.json", "scores/pairs/input.json", "scores/pairs/input.parquet"]
)
def test_a_damaged_record_is_named_with_what_to_do(folder, done, tmp_path, name, monkeypatch, capsys):
    shutil.copytree(done.output, tmp_path / "run")
    damaged = tmp_path / "run" / name
    damaged.write_bytes(damaged.read_bytes()[:20])
    command = "restore" if "restorer" in name else "table"
    code = script(
        monkeypatch, command, "--config", done.output / "config.yaml", f"output={tmp_path / 'run'}", "workers=1"
    )
    errors = capsys.readouterr().err.splitlines()
    assert code in (1, 2) and any(str(damaged) in line and line.endswith("delete it and run again") for line in errors)


def test_two_runs_in_one_folder_are_refused(done, monkeypatch, capsys):
    with exclusive(done.output):
        assert script(monkeypatch, "measure", "--config", done.output / "config.yaml") == 2
    assert "another run is working in" in capsys.readouterr().err


def living(group: int) -> list[list[str]]:
    """The command lines of a process group, without those that have ended but were not waited for."""
    return [
        process.cmdline()
        for process in psutil.process_iter()
        if process.status() != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == group
    ]


@pytest.mark.parametrize(("number", "code", "whole_group"), [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)])
def test_a_stopped_run_ends_its_workers_and_says_so_in_one_line(tmp_path, number, code, whole_group):
    for i in range(30):
        save_png(tmp_path / "lq" / f"{i:02}.png", torch.rand(3, 160, 160))
    methods = "{a: {restorer: nlm}, b: {restorer: nlm}}"
    arguments = [
        f"output={tmp_path / 'run'}",
        f"sets={{x: {{lq: {tmp_path / 'lq'}}}}}",
        f"methods={methods}",
        "workers=2",
    ]
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "restore", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    while not any((tmp_path / "run").rglob("*.png")) and process.poll() is None:
        time.sleep(0.05)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=20)
    lines = [line for line in errors.splitlines() if line.strip() and not re.search(r"\d+%\||\d+image", line)]
    assert (process.returncode, len(lines)) == (code, 1), errors
    assert "the same command continues" in lines[0]
    time.sleep(0.5)  # the tracker of semaphores ends when the last process has closed its pipe
    assert living(process.pid) == []


# -- script and configs


def script(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return end.value.code


def test_a_wrong_setting_ends_with_2_and_the_nearest_name(monkeypatch, capsys):
    assert script(monkeypatch, "run", "--config", CONFIGS / "eval" / "tiny.yaml", "metrix=[niqe]") == 2
    assert "did you mean 'metrics'" in capsys.readouterr().err


def test_table_takes_its_number(monkeypatch, capsys, done):
    code = script(monkeypatch, "table", "2", "--config", done.output / "config.yaml")
    assert (code, capsys.readouterr().out.splitlines()[0]) == (0, "# Table 2")


@pytest.mark.parametrize("path", sorted((CONFIGS / "eval").glob("*.yaml")), ids=lambda path: path.stem)
def test_eval_configs_are_valid(path):
    assert load_config(EvalConfig, path).methods


@pytest.mark.parametrize("path", sorted((CONFIGS / "ablation").glob("*.yaml")), ids=lambda path: path.stem)
def test_ablation_configs_are_valid(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    config = load_config(AblationConfig, path)
    trainings = {name: training_of(config, name) for name in config.rows}
    assert evaluation_of(config, trainings, {}).methods.keys() == config.rows.keys()


def test_table_4_trains_the_papers_four_extractors(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    config = load_config(AblationConfig, CONFIGS / "ablation" / "table4.yaml")
    prompts = [training_of(config, name).model.prompt for name in config.rows]
    assert [(p.kind, p.source) for p in prompts] == [("null", "lq"), ("dape", "hq"), ("hfie", "hq"), ("hfie", "lq")]


def test_a_row_that_was_not_trained_has_no_restorer(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    config = load_config(AblationConfig, CONFIGS / "ablation" / "table4.yaml")
    trainings = {name: training_of(config, name) for name in config.rows}
    dape = evaluation_of(config, trainings, {"dape": "not trained: no weights"}).methods["dape"]
    assert (dape.restorer, dape.note) == (None, "not trained: no weights")
