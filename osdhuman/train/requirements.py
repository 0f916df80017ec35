"""Everything a run needs, checked before the first long step and reported at once."""

import os
from collections.abc import Callable
from typing import TypeVar

from osdhuman.data.dataset import Positions
from osdhuman.data.samples import Pair, find_pairs, list_samples
from osdhuman.resume import exclusive
from osdhuman.train.config import TrainConfig
from osdhuman.train.recipe import Recipe

REMEDY = "wait until it ends, or choose another folder with run="

T = TypeVar("T")


def require(config: TrainConfig, recipe: type[Recipe], processes: int = 1) -> list[Pair]:
    """List the training images; raise ValueError naming all that is missing: data, validation pairs, run, weights."""
    faults: list[str] = []
    samples = _attempt(faults, lambda: list_samples(config.data))
    _attempt(faults, lambda: Positions(config.batch_size, config.accumulation, processes))
    if config.validation is not None:
        _attempt(faults, lambda: find_pairs(config.validation), "validation: ")
    _attempt(faults, lambda: _check_run_folder(config))
    faults += recipe.missing(config)
    if len(faults) > 1:
        faults.insert(0, f"{len(faults)} things are missing before the training can begin:")
    if faults:
        raise ValueError("\n  ".join(faults))
    return samples


def _check_run_folder(config: TrainConfig) -> None:
    try:
        config.run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the run folder {config.run} cannot be made: {error.strerror}") from error
    if not os.access(config.run, os.W_OK | os.X_OK):
        raise OSError(f"the run folder {config.run} cannot be written to")
    with exclusive(config.run, REMEDY):
        pass


def _attempt(faults: list[str], check: Callable[[], T], prefix: str = "") -> T | None:
    """The result of `check`, or its error as a line of `faults`."""
    try:
        return check()
    except (ValueError, OSError) as error:
        faults.append(f"{prefix}{error}")
        return None
