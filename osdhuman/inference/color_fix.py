"""Colour fix: give the restored image the colours of its input and keep its own detail.

Images are float32 (B,3,H,W) in [0,1], both of the same size. `adain` and `wavelet` are the two used by one-step
restorers (OSEDiff and its relatives); neither clamps its result, `fix_color` does.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ColorFix = Literal["off", "adain", "wavelet"]

LEVELS = 5  # blurs with dilation 1, 2, 4, 8, 16: about 60 pixels wide together
STD_EPSILON = 1e-5


def fix_color(image: Tensor, lq: Tensor, kind: ColorFix = "wavelet", strength: float = 1.0) -> Tensor:
    """Blend `image` towards its colour-fixed version by `strength` (0 leaves it, 1 replaces it); clamped to [0,1].

    Raises ValueError for images of different size and for an unknown kind.
    """
    if kind == "off" or strength == 0:
        return image.clamp(0, 1)
    if kind not in ("adain", "wavelet"):
        raise ValueError(f"color fix must be 'off', 'adain' or 'wavelet', got {kind!r}")
    if image.shape != lq.shape:
        raise ValueError(f"color fix needs two images of one size, got {tuple(image.shape)} and {tuple(lq.shape)}")
    fixed = adain(image, lq) if kind == "adain" else wavelet(image, lq)
    return torch.lerp(image.float(), fixed, strength).clamp(0, 1)


def adain(image: Tensor, lq: Tensor) -> Tensor:
    """Give each channel of `image` the mean and standard deviation that it has in `lq`, over all pixels."""
    mean, std = _mean_std(image.float())
    lq_mean, lq_std = _mean_std(lq.float())
    return (image.float() - mean) / std * lq_std + lq_mean


def wavelet(image: Tensor, lq: Tensor) -> Tensor:
    """Replace the low frequencies of `image` by those of `lq`: `image - low(image) + low(lq)`."""
    return image.float() - low_frequencies(image) + low_frequencies(lq)


def low_frequencies(image: Tensor) -> Tensor:
    """Five successive 3x3 binomial blurs of (B,C,H,W) with dilation 1, 2, 4, 8, 16 and replicated borders."""
    channels = image.shape[1]
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]], device=image.device) / 16
    kernel = kernel.expand(channels, 1, 3, 3)
    low = image.float()
    for dilation in (2**level for level in range(LEVELS)):
        padded = F.pad(low, (dilation,) * 4, mode="replicate")
        low = F.conv2d(padded, kernel, groups=channels, dilation=dilation)
    return low


def _mean_std(image: Tensor) -> tuple[Tensor, Tensor]:
    """Per image and channel (B,3,1,1); unbiased variance, which is zero by definition for a single pixel."""
    mean = image.mean(dim=(2, 3), keepdim=True)
    pixels = image.shape[2] * image.shape[3]
    variance = image.sub(mean).square().sum(dim=(2, 3), keepdim=True) / max(pixels - 1, 1)
    return mean, (variance + STD_EPSILON).sqrt()
