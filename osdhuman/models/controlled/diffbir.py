"""DiffBIR's networks (Lin et al., ECCV 2024): Stable Diffusion 2.1-base and a ControlNet that sees a latent.

DiffBIR's files have CompVis's names; here they become diffusers' names, and the networks are diffusers' own. The
ControlNet has no image encoder: the latent of the cleaned image is joined to the noisy one, 8 channels in all. v1, v2
and v2.1 have one structure, and differ in weights; v2.1 also has its own UNet, which predicts v on a schedule that
ends in pure noise.
"""

import re
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from osdhuman.models.base import SD21_UNET
from osdhuman.models.controlled.checkpoint import load_exactly, read_state

PUBLISHED = (
    "DiffBIR's weights are at huggingface.co/lxq007/DiffBIR-v2 (Apache-2.0): v2.pth for v2; DiffBIR_v2.1.pt with "
    "sd2.1-base-zsnr-laionaes5.ckpt for v2.1"
)
Version = Literal["v2", "v2.1"]
CONTROLNET_FILES: dict[Version, str] = {"v2": "v2.pth", "v2.1": "DiffBIR_v2.1.pt"}
UNET_FILES: dict[Version, str] = {"v2": "v2-1_512-ema-pruned.ckpt", "v2.1": "sd2.1-base-zsnr-laionaes5.ckpt"}
OTHER_FILES = {
    "v1_general.pth": "DiffBIR v1's ControlNet",
    "v1_face.pth": "DiffBIR v1's ControlNet for faces",
    "v2-1_768-ema-pruned.ckpt": "Stable Diffusion 2.1 for 768 pixels",
}
CONTROLNET = {name: value for name, value in SD21_UNET.items() if name != "sample_size"}
LDM_UNET = "model.diffusion_model."  # the UNet's prefix in a whole Stable Diffusion checkpoint


class IRControlNet(ControlNetModel):
    """The ControlNet; settings as those of `ControlNetModel`. The latent takes the place of the image encoder."""

    @wraps(ControlNetModel.__init__)
    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **{"in_channels": 8, **settings})
        self.controlnet_cond_embedding = Nothing()

    def forward(self, sample: Tensor, *args: Any, controlnet_cond: Tensor, **inputs: Any) -> Any:
        """As `ControlNetModel.forward`; `controlnet_cond` is the cleaned image's latent (B,4,h,w), as `sample`."""
        joined = torch.cat([sample, controlnet_cond], dim=1)
        return super().forward(joined, *args, controlnet_cond=controlnet_cond, **inputs)


class Nothing(nn.Module):
    """An image encoder that adds nothing."""

    def forward(self, condition: Tensor) -> Tensor:
        """Anything -> 0."""
        return condition.new_zeros(())


def load_controlnet(path: str | Path, version: Version) -> IRControlNet:
    """Read the 324 tensors of v2.pth or DiffBIR_v2.1.pt, in float32, frozen, in evaluation mode.

    The two have equal names and shapes: a file of the other version is noticed by its official name only, so keep it.
    Raises FileNotFoundError if there is no such file, and ValueError for another version, method or size, which says
    what the file seems to be, and for tensors that are missing, unknown or of another shape, which names them.
    """
    _check_file_name(Path(path).name, version, CONTROLNET_FILES)
    return controlnet_from_state(read_state(path, PUBLISHED))


def controlnet_from_state(state: Mapping[str, Tensor], **settings: Any) -> IRControlNet:
    """Build a ControlNet from tensors under their official names; without `settings`, of the official sizes."""
    with torch.device("meta"):
        network = IRControlNet(**(settings or CONTROLNET))
    return load_exactly(network, to_diffusers(state), PUBLISHED)


def load_unet(path: str | Path, version: Version) -> UNet2DConditionModel:
    """Read the UNet's 686 tensors out of a whole Stable Diffusion checkpoint of the version (see `UNET_FILES`).

    Its VAE and text encoder are not read: those of Stable Diffusion 2.1-base are used. v2's UNet is the one of
    Stable Diffusion 2.1-base in diffusers' layout, too. Errors as in `load_controlnet`.
    """
    _check_file_name(Path(path).name, version, UNET_FILES)
    return unet_from_state(read_state(path, PUBLISHED))


def unet_from_state(state: Mapping[str, Tensor], **settings: Any) -> UNet2DConditionModel:
    """Build a UNet from tensors under CompVis's names, of the UNet alone or of a whole checkpoint; see `load_unet`."""
    with torch.device("meta"):
        network = UNet2DConditionModel(**(settings or SD21_UNET))
    inside = {name.removeprefix(LDM_UNET): tensor for name, tensor in state.items() if name.startswith(LDM_UNET)}
    return load_exactly(network, to_diffusers(inside or state), PUBLISHED)


RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
FIXED = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "middle_block_out.0": "controlnet_mid_block",
}


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a UNet or ControlNet under diffusers' names; a name that CompVis's layout does not have stays."""
    return {_diffusers_name(name): tensor for name, tensor in state.items()}


def _diffusers_name(name: str) -> str:
    for old, new in FIXED.items():
        if name.startswith(old + "."):
            return _inner(new + name.removeprefix(old))
    match = re.match(r"(input_blocks|output_blocks|zero_convs)\.(\d+)\.(\d+)\.(.+)", name)
    if match is None:
        return name
    side, block, part, rest = match[1], int(match[2]), int(match[3]), match[4]
    if side == "zero_convs":
        return f"controlnet_down_blocks.{block}.{rest}"
    return _inner(_down(block, part, rest) if side == "input_blocks" else _up(block, part, rest))


def _down(block: int, part: int, rest: str) -> str:
    """Each level has two layers (resnet, transformer) and a halving; block 0 is the first convolution."""
    level, layer = divmod(block - 1, 3)
    if layer == 2:
        return f"down_blocks.{level}.downsamplers.0.{rest.replace('op.', 'conv.', 1)}"
    return f"down_blocks.{level}.{('resnets', 'attentions')[part]}.{layer}.{rest}"


def _up(block: int, part: int, rest: str) -> str:
    """Each level has three layers, the last with a doubling after its resnet and, if there is one, its transformer."""
    level, layer = divmod(block, 3)
    if rest.startswith("conv."):
        return f"up_blocks.{level}.upsamplers.0.{rest}"
    return f"up_blocks.{level}.{('resnets', 'attentions')[part]}.{layer}.{rest}"


def _inner(name: str) -> str:
    """Names inside a resnet; those inside a transformer are equal in both layouts."""
    for old, new in RESNET.items():
        name = name.replace(f".{old}.", f".{new}.") if ".resnets." in name else name
    return name


def _check_file_name(name: str, version: Version, files: Mapping[Version, str]) -> None:
    if version not in files:
        raise ValueError(f"unknown version {version!r} of DiffBIR; known: {', '.join(files)}")
    others = {file: f"DiffBIR {other}'s" for other, file in files.items() if other != version} | OTHER_FILES
    if name in others:
        raise ValueError(f"{name} is {others[name]}; {version} is {files[version]}. {PUBLISHED}")
