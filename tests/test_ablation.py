"""DAPE's stand-in on the tiny base, and what an ablation does not do twice."""

from pathlib import Path

import pytest
import torch

from osdhuman.config import dump_config, parse_config
from osdhuman.evaluation import ablation
from osdhuman.evaluation.config import AblationConfig
from osdhuman.images import save_png
from osdhuman.models.prompts import DAPEPrompt, build_prompt_extractor
from osdhuman.recipes.osdhuman import OSDHumanTraining
from osdhuman.tiny.stand_in import WORDS, with_dape_stand_in
from osdhuman.train.loop import TrainResult

CONFIGS = Path(__file__).parents[1] / "configs"


def pictures(count: int) -> torch.Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, 128, mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> OSDHumanTraining:
    folder = tmp_path_factory.mktemp("stand_in")
    for i, picture in enumerate(pictures(16)):
        save_png(folder / "photographs" / f"{i:02}.png", picture)
    values = {"run": folder / "training" / "dape", "data": {"paths": [folder / "photographs"]}}
    model = {"base": str(CONFIGS.parent / "osdhuman" / "tiny" / "base"), "timestep": 99}
    return with_dape_stand_in(parse_config(OSDHumanTraining, values | {"model": model}))


@pytest.fixture(scope="module")
def extractor(training) -> DAPEPrompt:
    from osdhuman.models.base import load_base

    return build_prompt_extractor(training.model.prompt, load_base(training.model.base, text=True)).eval()


def test_the_stand_in_takes_the_road_of_dape(training):
    assert training.model.prompt.kind == "dape"


def test_its_words_depend_on_the_picture(extractor):
    assert len(set(extractor.captions(pictures(16)))) > 8


def test_about_half_of_its_words_are_given(extractor):
    given = sum(caption.count(word) for caption in extractor.captions(pictures(16)) for word in WORDS)
    assert 0.3 < given / (16 * len(WORDS)) < 0.7


def test_its_prompts_depend_on_the_words(extractor):
    first, second = extractor.encode_text(["a, b, ,", "a, c, ,"])
    assert not torch.equal(first, second)


def test_nothing_in_it_is_trained(extractor):
    assert extractor.trainable_state() == {}


def test_the_same_command_takes_the_files_that_are_there(training):
    before = (training.run.parent / "stand_in" / "thresholds.txt").stat().st_mtime_ns
    with_dape_stand_in(training)
    assert (training.run.parent / "stand_in" / "thresholds.txt").stat().st_mtime_ns == before


# -- the rows


@pytest.fixture
def rows(tmp_path, monkeypatch) -> AblationConfig:
    monkeypatch.setattr(ablation, "run", lambda config: {})
    row = {"title": "HFIE", "config": str(CONFIGS / "train" / "tiny.yaml"), "overrides": ["max_steps=2"]}
    evaluation = {"output": str(tmp_path), "table": 4, "sets": {"pairs": {"lq": "lq"}}}
    return parse_config(AblationConfig, {"rows": {"one": row, "two": row}, "tiny": True, "eval": evaluation})


def finish(training: OSDHumanTraining) -> TrainResult:
    """What a training leaves, without training."""
    model = training.run / "model"
    model.mkdir(parents=True)
    (model / "config.json").touch()
    (training.run / "config.yaml").write_text(dump_config(training))
    return TrainResult(model, 2, finished=True)


def test_a_trained_row_is_not_trained_again(rows, monkeypatch):
    done = []
    monkeypatch.setattr(
        "osdhuman.train.loop.train", lambda training, recipe: done.append(training.run.name) or finish(training)
    )
    ablation.run_ablation(rows)
    ablation.run_ablation(rows)
    assert done == ["one", "two"]


def test_a_row_with_other_settings_is_trained(rows, monkeypatch):
    done = []
    finish(ablation.training_of(rows, "one"))
    monkeypatch.setattr(
        "osdhuman.train.loop.train", lambda training, recipe: done.append(training.run.name) or finish(training)
    )
    ablation.run_ablation(rows.model_copy(update={"overrides": ("seed=1",)}))
    assert done == ["one", "two"]


def test_a_row_that_cannot_be_trained_stops_no_other(rows, monkeypatch):
    def train(training: OSDHumanTraining, recipe: type) -> TrainResult:
        if training.run.name == "one":
            raise FileNotFoundError("no weights")
        return finish(training)

    monkeypatch.setattr("osdhuman.train.loop.train", train)
    evaluation, failures = ablation.run_ablation(rows)
    found = {name: method.restorer for name, method in evaluation.methods.items()}
    assert (found, failures) == ({"one": None, "two": "osdhuman"}, {"one": "not trained: no weights"})


def test_a_stopped_training_stops_the_ablation(rows, monkeypatch):
    stopped = TrainResult(Path("checkpoints/step-00000001"), 1, finished=False)
    monkeypatch.setattr("osdhuman.train.loop.train", lambda training, recipe: stopped)
    with pytest.raises(ablation.Stopped, match="stopped at step 1; the same command continues"):
        ablation.run_ablation(rows)
