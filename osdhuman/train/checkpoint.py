"""Checkpoints: written whole or not at all, and complete, so that a run killed at any moment continues exactly.

`RUN/checkpoints/step-00000500/` holds, after 500 steps, one safetensors file for each part of the state (trained
parameters with the optimizer's moments beside them), `state.json` (the step and plain numbers), `config.yaml`, the
random state of every process, and `model/`, the model as the recipe saves it.
The data position is the step: the order of the images, their crops, degradations and all noise are functions of it.
"""

import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from osdhuman.config import Config, dump_config
from osdhuman.files import to_disk
from osdhuman.resume import differences

NAME = re.compile(r"step-(\d{8,})")
DAMAGE = (  # what reading a truncated, empty or missing file raises
    SafetensorError,
    yaml.YAMLError,
    pickle.UnpicklingError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    RuntimeError,
    OSError,
)


class Part(Protocol):
    """One part of a run's state: tensors by name, and plain numbers that JSON can hold."""

    def state(self) -> tuple[dict[str, Tensor], dict]: ...

    def load_state(self, tensors: dict[str, Tensor], numbers: dict) -> None: ...


class Checkpoint(NamedTuple):
    """A checkpoint folder, read: every file of it that a run needs to continue."""

    folder: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]  # by part
    numbers: dict[str, dict]  # by part
    random: dict[int, dict]  # by process
    settings: dict[str, Any]


class DamagedCheckpoint(ValueError):
    """A file of a checkpoint is missing, truncated or not what it should be."""


def find_checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first; anything else beside them is ignored."""
    found = [path for path in (run / "checkpoints").glob("step-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of the latest step, or None."""
    return next(reversed(find_checkpoints(run)), None)


def read_newest(run: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest checkpoint that can be read whole, and the newer ones that are damaged, with the reason.

    Raises DamagedCheckpoint if there are checkpoints and all of them are damaged.
    """
    damaged: dict[Path, str] = {}
    for folder in reversed(find_checkpoints(run)):
        try:
            return read_checkpoint(folder), damaged
        except DamagedCheckpoint as error:
            damaged[folder] = str(error)
    if damaged:
        reasons = "; ".join(damaged.values())
        raise DamagedCheckpoint(f"no checkpoint of {run} can be read: {reasons}. Remove them to begin again")
    return None, {}


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read every file of a checkpoint; raises DamagedCheckpoint naming the first that cannot be read."""
    file = folder / "state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        step, numbers = int(state["step"]), dict(state["parts"])
        file = folder / "config.yaml"
        settings = dict(yaml.safe_load(file.read_text(encoding="utf-8")))
        tensors = {}
        for name in numbers:
            file = folder / f"{name}.safetensors"
            tensors[name] = load_file(file)
        states = {}
        for rank in range(state.get("processes", 1)):
            file = folder / f"random-{rank}.pt"
            states[rank] = torch.load(file, weights_only=True)
    except DAMAGE as error:
        raise DamagedCheckpoint(f"{file} is damaged or missing ({_first_line(error)})") from error
    return Checkpoint(folder, step, tensors, numbers, states, settings)


def restore_checkpoint(checkpoint: Checkpoint, parts: Mapping[str, Part], config: Config, rank: int = 0) -> None:
    """Put the state back; ValueError naming the changed settings if it is not the state of this run.

    A run that continues on more processes has no random state for the new ones, which keep theirs.
    """
    if checkpoint.tensors.keys() != parts.keys():
        raise _misfit(checkpoint, config, f"it holds {', '.join(checkpoint.tensors)}, this run has {', '.join(parts)}")
    for name, part in parts.items():
        try:
            part.load_state(checkpoint.tensors[name], checkpoint.numbers[name])
        except ValueError as error:
            raise _misfit(checkpoint, config, f"{name}: {error}") from error
    if rank in checkpoint.random:
        _set_random_state(checkpoint.random[rank])


def changed_settings(checkpoint: Checkpoint, config: Config) -> list[str]:
    """What differs from the settings stored in a checkpoint, one line `key: old -> new` each."""
    now = config.model_dump(mode="json")
    return [f"{key}: {old!r} -> {new!r}" for key, old, new in differences(checkpoint.settings, now)]


def set_aside(damaged: Mapping[Path, str]) -> None:
    """Rename damaged checkpoints to `step-N.damaged`, so that neither a later run nor `keep_last` counts them."""
    for folder in damaged:
        target = folder.with_suffix(".damaged")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(folder, target)


def save_checkpoint(
    run: Path,
    step: int,
    parts: Mapping[str, Part],
    config: Config,
    save_model: Callable[[Path], object],
    keep_last: int,
    rank: int = 0,
    processes: int = 1,
    barrier: Callable[[], None] = lambda: None,
) -> Path:
    """Write the state after `step` steps and remove all but the newest `keep_last`; called by every process.

    Everything goes to `step-N.part`, is flushed to disk and then renamed. Rank 0 writes the parts, each process its
    random state. `save_model(folder)` writes the model. Raises OSError, leaving nothing behind, if the disk is full.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    part = folder.with_suffix(".part")
    try:
        if rank == 0:
            remove_unfinished(run)
            part.mkdir(parents=True, exist_ok=True)
        barrier()
        torch.save(_random_state(), part / f"random-{rank}.pt")
        if rank == 0:
            _write_parts(part, step, parts, processes)
            (part / "config.yaml").write_text(dump_config(config), encoding="utf-8")
            save_model(part / "model")
        barrier()
        if rank == 0:
            _flush(part)
            _replace(part, folder)
            for old in find_checkpoints(run)[:-keep_last]:
                _remove(old)
        barrier()
    except BaseException as error:
        if rank == 0:
            shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, SafetensorError | RuntimeError):  # how these two libraries report a full disk
            raise OSError(f"{folder} could not be written: {_first_line(error)}") from error
        raise
    return folder


def remove_unfinished(run: Path) -> None:
    """Remove what a killed run had begun to write or to delete."""
    for part in (run / "checkpoints").glob("step-*.part"):
        if NAME.fullmatch(part.stem):
            shutil.rmtree(part)


def _misfit(checkpoint: Checkpoint, config: Config, reason: str) -> ValueError:
    changes = "; ".join(changed_settings(checkpoint, config)) or "none"
    return ValueError(
        f"{checkpoint.folder} does not fit these settings ({reason}). Changed since it was written: {changes}. "
        "Change that back, or choose another run folder"
    )


def _write_parts(folder: Path, step: int, parts: Mapping[str, Part], processes: int) -> None:
    numbers = {}
    for name, part in parts.items():
        tensors, numbers[name] = part.state()
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
    state = {"step": step, "processes": processes, "parts": numbers}
    (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")


def _replace(source: Path, target: Path) -> None:
    """Rename and make the new name durable. A checkpoint of the same step holds the same state and may go."""
    if target.exists():
        shutil.rmtree(target)
    os.replace(source, target)
    to_disk(target.parent)


def _remove(folder: Path) -> None:
    """Delete a checkpoint; renamed first, so that half of one is never taken for a whole one."""
    part = folder.with_suffix(".part")
    os.replace(folder, part)
    shutil.rmtree(part)


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        to_disk(path)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _random_state() -> dict:
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
