"""Checkpoints: written whole or not at all, and complete, so that a run killed at any moment continues exactly.

`RUN/checkpoints/step-00000500/` holds, after 500 steps, one safetensors file for each part of the state (trained
parameters with the optimizer's moments beside them), `state.json` (the step and plain numbers), `config.yaml`, the
random state of every process, and `model/`, the model folder that `restore.py` and `OSDHuman.from_pretrained` take.
The data position is the step: the order of the images, their crops, degradations and all noise are functions of it.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from osdhuman.config import Config, dump_config
from osdhuman.files import to_disk


class Part(Protocol):
    """One part of a run's state: tensors by name, and plain numbers that JSON can hold."""

    def state(self) -> tuple[dict[str, Tensor], dict]: ...

    def load_state(self, tensors: dict[str, Tensor], numbers: dict) -> None: ...


def newest_checkpoint(run: Path) -> Path | None:
    """The complete checkpoint of the latest step, or None."""
    return max(_complete(run), default=None)


def save_checkpoint(
    run: Path,
    step: int,
    parts: Mapping[str, Part],
    config: Config,
    save_model: Callable[[Path], object],
    keep_last: int,
    rank: int = 0,
    barrier: Callable[[], None] = lambda: None,
) -> Path:
    """Write the state after `step` steps and remove all but the newest `keep_last`; called by every process.

    Everything goes to `step-N.part`, is flushed to disk and then renamed. Rank 0 writes the parts, each process its
    random state. `save_model(folder)` writes the model folder.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    part = folder.with_suffix(".part")
    if rank == 0:
        remove_unfinished(run)
        part.mkdir(parents=True, exist_ok=True)
    barrier()
    torch.save(_random_state(), part / f"random-{rank}.pt")
    if rank == 0:
        _write_parts(part, step, parts)
        (part / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        save_model(part / "model")
    barrier()
    if rank == 0:
        _flush(part)
        _replace(part, folder)
        for old in _complete(run)[:-keep_last]:
            _remove(old)
    barrier()
    return folder


def load_checkpoint(folder: Path, parts: Mapping[str, Part], rank: int = 0) -> int:
    """Put the state back and return the number of steps done; ValueError if the parts are not those of the run."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if state["parts"].keys() != parts.keys():
        raise ValueError(
            f"{folder} holds the state of {', '.join(state['parts'])}, but this run has {', '.join(parts)}; "
            "continue with the settings it began with, or choose another run folder"
        )
    for name, part in parts.items():
        part.load_state(load_file(folder / f"{name}.safetensors"), state["parts"][name])
    if (own := folder / f"random-{rank}.pt").exists():  # a run continued on more processes has none for the new ones
        _set_random_state(torch.load(own, weights_only=True))
    return state["step"]


def remove_unfinished(run: Path) -> None:
    """Remove what a killed run had begun to write or to delete."""
    for part in (run / "checkpoints").glob("step-*.part"):
        shutil.rmtree(part)


def config_changes(folder: Path, config: Config) -> list[str]:
    """What differs from the settings stored in a checkpoint or run folder, one line `key: old -> new` each."""
    old = _flat(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    new = _flat(config.model_dump(mode="json"))
    keys = [*new, *(key for key in old if key not in new)]
    return [f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in keys if old.get(k) != new.get(k)]


def _complete(run: Path) -> list[Path]:
    return sorted(path for path in (run / "checkpoints").glob("step-*") if path.suffix != ".part")


def _write_parts(folder: Path, step: int, parts: Mapping[str, Part]) -> None:
    numbers = {}
    for name, part in parts.items():
        tensors, numbers[name] = part.state()
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
    (folder / "state.json").write_text(json.dumps({"step": step, "parts": numbers}, indent=2), encoding="utf-8")


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


def _flat(values: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {k: v for name, value in values.items() for k, v in _flat(value, f"{prefix}.{name}".lstrip(".")).items()}
