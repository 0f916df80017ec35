"""What the training engine asks of a method: the contract between `osdhuman.train` and `osdhuman.recipes`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from osdhuman.data.degradation import Degradation
from osdhuman.train.config import TrainConfig
from osdhuman.train.learner import Learner

if TYPE_CHECKING:
    from osdhuman.train.loop import Trainer


class MicroBatch(NamedTuple):
    """One micro-batch on the device: `hq` and `lq` (B,3,size,size) in [0,1].

    `extra` holds what else the recipe's degradation returned, by name. `rng` is the source of all further randomness of
    this micro-batch; it depends on (seed, counter of the first sample) only.
    """

    hq: Tensor
    lq: Tensor
    extra: dict[str, Tensor]
    rng: torch.Generator


class Recipe(ABC):
    """One training algorithm: its networks and learners, one iteration, and how its model is saved.

    The engine (`Trainer`) moves the networks to the device, restores and stores their state, averages weights,
    validates, logs and stops; a recipe does none of this. `learners` may be any number, each with its own optimizer.
    """

    Settings: ClassVar[type[TrainConfig]]

    config: TrainConfig
    learners: dict[str, Learner]  # everything that is trained; a checkpoint has one file for each
    averaged: str  # the learner whose weights `ema` averages
    frozen: Sequence[nn.Module] = ()  # networks without a learner, such as a teacher; the engine moves them
    run: "Trainer"  # set by the engine before the first iteration

    @classmethod
    @abstractmethod
    def build(cls, config: TrainConfig) -> "Recipe":
        """Load what the settings name and build the networks; PyTorch's seed is `config.seed` when it is called."""

    @classmethod
    def missing(cls, config: TrainConfig) -> list[str]:
        """What the settings name but this machine lacks (weights, say), one line each; asked before `build`."""
        return []

    @abstractmethod
    def iterate(self) -> dict[str, Tensor]:
        """One iteration: every learner's step. Returns losses and gradient norms by name, on the device.

        Micro-batches come from `self.run.micro_batches(learner)`; the gradient of each goes to `learner.backward`.
        """

    @abstractmethod
    def save_model(self, folder: Path) -> object:
        """Write the model as it is now; the engine puts the averaged weights in place first."""

    def restore(self, lq: Tensor) -> Tensor:
        """Restore (1,3,H,W) in [0,1] as the finished model would, for validation: same size, same range."""
        raise NotImplementedError(f"{type(self).__name__} cannot validate; set validation=null")

    def degradation(self) -> Callable[[Tensor, int, Sequence[int]], Tensor | dict[str, Tensor]]:
        """`(hq (B,3,H,W), seed, counters)` -> LQ of the same size, or a dict with `lq` and further tensors.

        It may run in the loader's workers, so it must be picklable and depend on its arguments only.
        """
        return Degradation(self.config.degradation)
