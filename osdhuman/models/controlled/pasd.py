"""PASD's networks (Yang et al., ECCV 2024): Stable Diffusion 1.5 and a ControlNet whose residuals are attended to.

After each of the 12 decoder layers stands a pixel transformer ("PACA" in the paper). Its keys and values are the
ControlNet's residual of that layer, as it is added to the UNet's skip: after the 1x1 convolution and the scale.
"""

from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, silu

from osdhuman.models.controlled.attention import Keys, follow, transformer
from osdhuman.models.controlled.checkpoint import WEIGHTS, load_folder, read_state

PUBLISHED = (
    "PASD's weights are the folders unet and controlnet of pasd/checkpoint-100000 at huggingface.co/yangtao9009/PASD "
    "(Apache-2.0); scaler.pt beside them is not needed"
)
PASD_UNET = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}  # 8 heads at every level
PASD_CONTROLNET = {"cross_attention_dim": 768, "attention_head_dim": 8}
METHOD_SETTINGS = {"use_rrdb", "return_rgbs", "sample_size", "use_pixel_attention"}
RRDB = "controlnet_cond_embedding.preprocesser."  # spelt so in the files


class PASDUNet(UNet2DConditionModel):
    """The UNet with 12 pixel transformers; settings as those of `UNet2DConditionModel`."""

    @wraps(UNet2DConditionModel.__init__)
    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.pixel_keys = _add_pixel_attentions(self)

    def forward(self, *args: Any, down_block_additional_residuals: Sequence[Tensor], **inputs: Any) -> Any:
        """As `UNet2DConditionModel.forward`; the ControlNet's residuals (B,C,h,w) are required.

        They are added to the skips, as everywhere, and are the keys of the pixel transformers, the last one first.
        """
        keys = [residual.flatten(2).transpose(1, 2) for residual in reversed(down_block_additional_residuals)]
        with self.pixel_keys.set(keys):
            return super().forward(
                *args, down_block_additional_residuals=tuple(down_block_additional_residuals), **inputs
            )


class PASDControlNet(ControlNetModel):
    """The ControlNet; settings as those of `ControlNetModel`. It sees RGB in [0,1]."""

    rrdb = False

    @wraps(ControlNetModel.__init__)
    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        channels, widths = self.config.block_out_channels[0], self.config.conditioning_embedding_out_channels
        self.controlnet_cond_embedding = DegradationRemoval(channels, widths, self.rrdb)


class PASDControlNetRRDB(PASDControlNet):
    """With two RRDBs early in its image encoder: the checkpoints `pasd_rrdb`."""

    rrdb = True


class DegradationRemoval(ControlNetConditioningEmbedding):
    """The ControlNet's image encoder, taught to remove the degradation by images that `to_rgbs` read off its features.

    The images do not influence its output.
    """

    def __init__(self, channels: int, widths: Sequence[int], rrdb: bool = False):
        super().__init__(channels, block_out_channels=tuple(widths))
        self.to_rgbs = nn.ModuleList(nn.Conv2d(width, 3, 3, padding=1) for width in widths[1:])
        if rrdb:
            self.preprocesser = nn.Sequential(*(ResidualInResidual(widths[0], widths[0]) for _ in range(2)))

    def forward(self, image: Tensor) -> Tensor:
        """Image (B,3,H,W) in [0,1] -> (B,channels,H/8,W/8)."""
        return self.conv_out(self.features(image)[-1])

    def images(self, image: Tensor) -> list[Tensor]:
        """Images (B,3,h,w) of half, a quarter and an eighth of the size, that training compares with reduced HQ."""
        return [to_rgb(x) for to_rgb, x in zip(self.to_rgbs, self.features(image), strict=True)]

    def features(self, image: Tensor) -> list[Tensor]:
        """The features (B,C,h,w) after each halving of the size."""
        x, found = silu(self.conv_in(image)), []
        if hasattr(self, "preprocesser"):
            x = self.preprocesser(x)
        for same, halving in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            x = silu(halving(silu(same(x))))
            found.append(x)
        return found


class ResidualDense(nn.Module):
    """Five convolutions, each seeing all that the ones before gave; 0.2 of the result is added to the input."""

    def __init__(self, width: int, growth: int):
        super().__init__()
        for i in range(1, 6):
            setattr(self, f"conv{i}", nn.Conv2d(width + (i - 1) * growth, growth if i < 5 else width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B,width,H,W) -> the same shape."""
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat([seen, leaky_relu(conv(seen), 0.2)], dim=1)
        return x + 0.2 * self.conv5(seen)


class ResidualInResidual(nn.Module):
    """Three residual dense blocks; 0.2 of the result is added to the input (ESRGAN's RRDB)."""

    def __init__(self, width: int, growth: int):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (ResidualDense(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """x (B,width,H,W) -> the same shape."""
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


def load_pasd_unet(folder: str | Path) -> PASDUNet:
    """Read the 998 tensors of a `unet` folder, in float32, frozen, in evaluation mode.

    Raises FileNotFoundError if a file is not there, and ValueError for another method's or size's weights (PASD-light
    among them), which says what they seem to be, and for tensors that are missing or unknown, which names them.
    """
    return load_folder(PASDUNet, folder, PASD_UNET, METHOD_SETTINGS, PUBLISHED)


def load_pasd_controlnet(folder: str | Path) -> PASDControlNet:
    """Read the 346 tensors of a `controlnet` folder, or those of the RRDB variant; see `load_pasd_unet`."""
    rrdb = any(name.startswith(RRDB) for name in read_state(Path(folder) / WEIGHTS, PUBLISHED))
    kind = PASDControlNetRRDB if rrdb else PASDControlNet
    return load_folder(kind, folder, PASD_CONTROLNET, METHOD_SETTINGS, PUBLISHED)


def _add_pixel_attentions(unet: nn.Module) -> Keys:
    """Give each up block its `pixel_attentions`, run after the text transformers, or the resnets where there are none.

    The width of a transformer's keys is that of the skip which its resnet takes in.
    """
    keys, widths = Keys(), _skip_widths(unet.config.block_out_channels, unet.config.layers_per_block)
    heads, groups = unet.config.attention_head_dim, unet.config.norm_num_groups  # diffusers' name for number of heads
    index = 0
    for block in unet.up_blocks:
        channels = block.resnets[0].out_channels
        block.pixel_attentions = nn.ModuleList()
        for layer in getattr(block, "attentions", block.resnets):
            block.pixel_attentions.append(transformer(channels, heads, groups, widths[index], linear=False))
            follow(layer, block.pixel_attentions[-1], keys, index)
            index += 1
    return keys


def _skip_widths(channels: Sequence[int], layers: int) -> list[int]:
    """Channels of the skips in the decoder's order: 1280, 1280, 1280, 1280, 1280, 640, ... 320, 320 at full size."""
    skips = [channels[0]]
    for level, width in enumerate(channels):
        skips += [width] * layers + ([width] if level < len(channels) - 1 else [])
    return skips[::-1]
