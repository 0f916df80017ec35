"""A whole run on drawn pictures: what is made, what is not done twice, and what a failing method leaves."""

import json
import os
import re
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from osdhuman.config import load_config, parse_config
from osdhuman.evaluation import run
from osdhuman.evaluation.ablation import evaluation_of, training_of
from osdhuman.evaluation.config import AblationConfig, EvalConfig
from osdhuman.evaluation.cost_table import cost_table
from osdhuman.evaluation.image_folders import evenly_spaced
from osdhuman.evaluation.report import write_page
from osdhuman.evaluation.strips import draw_strip, most_different_box
from osdhuman.evaluation.tables import build_table
from osdhuman.images import save_png

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
    machine = {"device": "cpu", "device_name": "Some CPU", "dtype": "float32", "threads": 2}
    (tmp_path / "cost" / "input.json").write_text(json.dumps(measured | machine))
    heads, line = cost_table(config)
    found = dict(zip(heads, line, strict=True))
    assert (found["Seconds, median"], found["MACs, G"], found["Parameters, M"]) == ("0.25", "18.4", "")


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


def test_the_page_needs_nothing_from_outside(page):
    sources = [a.get("src") or a.get("href") for _, a in Tags(page).found if "src" in a or "href" in a]
    assert all(source.startswith("data:image/webp;base64,") for source in sources)


def test_no_name_becomes_markup(page):
    assert not any("onerror" in attributes for _, attributes in Tags(page).found)


def test_the_page_holds_every_score(page):
    counts = {(part["set"], part["method"]): len(part["rows"]) for part in page_data(page)["scores"]}
    assert counts == {("pairs", "input"): 3, ("pairs", "gaussian"): 3, ("real", "input"): 2, ("real", "gaussian"): 2}


def test_the_page_shows_lq_methods_and_hq(page):
    assert list(page_data(page)["images"]["pairs"]["0.png"]) == [":lq", ":hq", "input", "gaussian"]


def test_the_slider_has_a_name_for_screen_readers(page):
    assert any(tag == "input" and a.get("type") == "range" and a.get("aria-label") for tag, a in Tags(page).found)


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
