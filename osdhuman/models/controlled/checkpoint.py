"""Official checkpoints of SeeSR, PASD and DiffBIR, read strictly: every tensor is used, or the file is refused by name.

diffusers' own `from_pretrained` accepts the folders of SeeSR and PASD and drops what makes them SeeSR and PASD.
"""

import inspect
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from osdhuman.models.checkpoint import load_strictly, read_checkpoint, read_safetensors
from osdhuman.models.known_files import seems_to_be

WEIGHTS, SETTINGS = "diffusion_pytorch_model.safetensors", "config.json"
WRAPPERS = ("state_dict", "params_ema", "params")
Network = TypeVar("Network", bound=nn.Module)


def load_exactly(network: Network, state: Mapping[str, Tensor], published: str) -> Network:
    """Give `network`, built on the meta device, all tensors of `state`, in float32; evaluation mode, frozen.

    Raises ValueError: what the tensors seem to be if they are of another method or size, else the names that are
    missing, unknown or of another shape. `published` ends it.
    """
    expected, found = seems_to_be(network.state_dict()), seems_to_be(state)
    if found != expected:
        raise ValueError(f"expected {expected}, but these weights seem to be {found}. {published}")
    load_strictly(network, state, expected, published)
    return network.eval().requires_grad_(False)


def load_folder(
    kind: Callable[..., Network], folder: str | Path, defaults: Mapping[str, Any], known: set[str], published: str
) -> Network:
    """Build and load the network of a folder in diffusers' layout: config.json and diffusion_pytorch_model.safetensors.

    `defaults` are the official settings, for a folder without config.json. Keys of config.json that are in `known`
    belong to the method and are left out; others that diffusers does not know are named in a warning. Raises
    FileNotFoundError and ValueError (see `load_exactly`).
    """
    folder = Path(folder)
    settings = known_settings(kind, _read_settings(folder / SETTINGS, defaults, published), known)
    with torch.device("meta"):
        network = kind(**settings)
    return load_exactly(network, read_state(folder / WEIGHTS, published), published)


def known_settings(kind: Callable[..., Any], settings: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """The settings that the constructor `kind` takes; warns of those that it does not, but for `known` and `_...`."""
    accepted = inspect.signature(kind).parameters
    unknown = [name for name in settings if name not in accepted and name not in known and not name.startswith("_")]
    if unknown:
        warnings.warn(f"settings of {kind.__name__} that are unknown and have no effect: {unknown}", stacklevel=3)
    return {name: value for name, value in settings.items() if name in accepted}


def read_state(path: str | Path, published: str) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .pth, .pt or .ckpt file, without a wrapping dictionary and without `module.`.

    Raises FileNotFoundError, and ValueError for a file that cannot be read; `published` ends each.
    """
    if Path(path).suffix == ".safetensors":
        state = read_safetensors(path, published)
    else:
        state = read_checkpoint(path, published, WRAPPERS)
    if state and next(iter(state)).startswith("module."):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _read_settings(path: Path, defaults: Mapping[str, Any], published: str) -> Mapping[str, Any]:
    if not path.is_file():
        return defaults
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}. {published}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a dictionary of settings, but holds a {type(settings).__name__}")
    return settings
