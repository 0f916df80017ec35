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

from osdhuman.models.ram import load_strictly, read_checkpoint

WEIGHTS, SETTINGS = "diffusion_pytorch_model.safetensors", "config.json"
WRAPPERS = ("state_dict", "params_ema", "params")
Network = TypeVar("Network", bound=nn.Module)

# Part of a name that only this network has, in the order in which they are tried.
SIGNS = {
    "input_hint_block.": "a plain ControlNet in CompVis layout",
    ".image_attentions.": "SeeSR's {part}",
    ".pixel_attentions.": "PASD's UNet",
    ".attn2_plus.": "PASD-light's UNet",
    "controlnet_cond_embedding.preprocesser.": "PASD's ControlNet with RRDB",
    "controlnet_cond_embedding.to_rgbs.": "PASD's ControlNet",
    "controlnet_cond_embedding.": "a plain ControlNet",
    "controlnet_mid_block.": "DiffBIR's ControlNet",
    "down_blocks.0.resnets.0.time_emb_proj.": "a plain UNet",
    "control_model.": "a DiffBIR v1 checkpoint of 2023, with all its networks",
    "model.diffusion_model.": "a whole Stable Diffusion checkpoint in CompVis layout",
    "zero_convs.": "DiffBIR's ControlNet",
    "output_blocks.": "a UNet in CompVis layout",
    "RRDB_trunk.": "BSRNet",
    "m_body.": "SCUNet",
    ".residual_group.": "SwinIR",
    ".lora_A": "a LoRA file",
    "visual_encoder.": "RAM",
    "post_quant_conv.": "a VAE",
    "growth_factor": "the state of a gradient scaler",
}
FIRST_CONVOLUTIONS = ("conv_in.weight", "input_blocks.0.0.weight", "conv_first.weight", "conv_first.1.weight")
FIRST_CONVOLUTIONS += ("m_head.0.weight",)


def seems_to_be(state: Mapping[str, Tensor]) -> str:
    """What network these tensors are of, with its width where a name tells it; in words for an error."""
    for sign, network in SIGNS.items():
        if any(sign in name for name in state):
            part = "ControlNet" if any(name.startswith("controlnet_") for name in state) else "UNet"
            return network.format(part=part) + _sizes(state)
    return f"an unknown network ({', '.join([*state][:3])}, ...)" if state else "an empty checkpoint"


def _sizes(state: Mapping[str, Tensor]) -> str:
    """Channels of the first convolution and width of the first text attention: " (4 to 320 channels, ...)"."""
    found = [
        f"{state[name].shape[1]} to {state[name].shape[0]} channels" for name in FIRST_CONVOLUTIONS if name in state
    ]
    text = (t for name, t in state.items() if name.endswith("attn2.to_k.weight") and not _is_extra(name))
    found += [f"text width {tensor.shape[1]}" for tensor in [*text][:1]]
    return f" ({', '.join(found)})" if found else ""


def _is_extra(name: str) -> bool:
    return ".image_attentions." in name or ".pixel_attentions." in name


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
    path = Path(path)
    state = (_read_safetensors if path.suffix == ".safetensors" else _read_torch)(path, published)
    if state and next(iter(state)).startswith("module."):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _read_torch(path: Path, published: str) -> dict[str, Tensor]:
    return read_checkpoint(path, published, WRAPPERS)


def _read_safetensors(path: Path, published: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. {published}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}. {published}") from error


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
