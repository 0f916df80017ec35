"""The smallest recipe: what `osdhuman.train` asks of a method, in full; and ways in which a training can fail."""

import errno
import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn

from osdhuman import recipes
from osdhuman.cli.train import main  # noqa: F401  (for the scripts that train this recipe)
from osdhuman.train.config import TrainConfig
from osdhuman.train.learner import Learner
from osdhuman.train.recipe import Recipe


class ToySettings(TrainConfig):
    recipe: str = "toy"
    fail: str = "never"  # how the second step fails


class ToyRecipe(Recipe):
    """One convolution that learns to undo the degradation."""

    Settings = ToySettings
    averaged = "network"

    def __init__(self, config: ToySettings):
        self.config, self.network = config, nn.Conv2d(3, 3, 1)
        self.learners = {"network": Learner(self.network, config.optimizer)}

    @classmethod
    def build(cls, config: ToySettings) -> "ToyRecipe":
        return cls(config)

    def iterate(self) -> dict[str, Tensor]:
        if self.run.step == 1:
            fail(self)
        learner = self.learners["network"]
        for batch in self.run.micro_batches(learner):
            loss = nn.functional.mse_loss(learner.network(batch.lq), batch.hq)
            learner.backward(loss)
        return {"mse": loss, "gradient": learner.step()}

    def save_model(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.network.state_dict(), folder / "toy.pt")

    def restore(self, lq: Tensor) -> Tensor:
        return self.network(lq).clamp(0, 1)


recipes.RECIPES["toy"] = "toy_recipe:ToyRecipe"


def fail(recipe: ToyRecipe) -> None:
    """Fail as the settings say; the file `failing` in the run folder notes the time."""
    kind = recipe.config.fail
    if kind != "never":
        (recipe.config.run / "failing").touch()
    if kind == "exception" or (kind == "rank 0" and recipe.run.accelerator.is_main_process):
        raise RuntimeError("a step that fails")
    if kind == "nan":
        nn.init.constant_(recipe.network.weight, torch.nan)
    if kind == "full disk":
        recipe.save_model = _full_disk
    if kind.startswith("SIG"):
        os.killpg(0, signal.Signals[kind])


def _full_disk(folder: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
