"""Nearest-neighbour doubling folded into the 3x3 convolution behind it; the VAE decoder's costliest layers.

A value of the doubled picture is one of four equal neighbours, so that a 3x3 window over it sees 2x2 distinct values:
four products do for each result where nine were needed, and the doubled picture is never made.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FoldedUpsample(nn.Module):
    """(B,C,h,w) -> (B,C',2h,2w), or (B,C',*size); equal to diffusers' Upsample2D but for rounding.

    The weights stay those of `conv`, under their usual name. Where `conv` is more than a plain convolution (LoRA), or
    another size is asked for, the two operations run one after the other.
    """

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is None and type(self.conv) is nn.Conv2d and self.conv.padding_mode == "zeros":
            kernel = fold(self.conv.weight.float()).to(self.conv.weight.dtype)  # its sums are rounded once
            return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)
        doubled = tuple(2 * side for side in x.shape[-2:])
        return self.conv(F.interpolate(x, size or doubled, mode="nearest"))


def fold(weight: Tensor) -> Tensor:
    """Kernel (out,in,3,3) behind a doubling -> the transposed kernel (in,out,4,4) of stride 2 and padding 1 of both."""
    for axis in (2, 3):
        first, middle, last = weight.unbind(axis)
        weight = torch.stack([last, middle + last, first + middle, first], axis)
    return weight.transpose(0, 1).contiguous(memory_format=torch.channels_last)


def fold_upsampling(decoder: nn.Module) -> None:
    """Replace the upsampling of every block of a diffusers VAE decoder."""
    for block in decoder.up_blocks:
        for i, upsample in enumerate(block.upsamplers or ()):
            block.upsamplers[i] = FoldedUpsample(upsample.conv)
