"""Sizes of images (height, width), and images brought to them."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def at_least(size: tuple[int, int], side: int) -> tuple[int, int]:
    """`size`, enlarged so that its shorter side is `side` where it is smaller; sides are truncated to whole pixels."""
    short = min(size)
    return size if short >= side else (side * size[0] // short, side * size[1] // short)


def multiple_of(size: tuple[int, int], unit: int) -> tuple[int, int]:
    """`size` with both sides reduced to multiples of `unit`."""
    return size[0] // unit * unit, size[1] // unit * unit


def resized(image: Tensor, size: tuple[int, int], kernel: Literal["bicubic", "bilinear"] = "bicubic") -> Tensor:
    """(B,C,H,W) -> (B,C,*size), antialiased; not clamped. As Pillow's resize, without its rounding to 8 bits."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, size=size, mode=kernel, antialias=True)


def padded(image: Tensor, unit: int, mode: Literal["constant", "replicate"] = "constant") -> Tensor:
    """(B,C,H,W) with zeros, or its border repeated, on the right and below, up to multiples of `unit`."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % unit, 0, -height % unit), mode=mode)
