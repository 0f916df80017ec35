"""A latent in tiles: one noise prediction per tile, blended with Gaussian weights."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """First positions of tiles along one axis: a fixed step, and the last tile moved back to end at `length`."""
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap must be at least 0 and smaller than the tile of {tile}, got {overlap}")
    if length <= tile:
        return [0]
    step = tile - overlap
    count = math.ceil((length - tile) / step) + 1
    return [i * step for i in range(count - 1)] + [length - tile]


def gaussian_weights(height: int, width: int) -> Tensor:
    """Weights (height,width), float64, largest in the middle, of variance 0.01 in units of the tile.

    The vertical centre is half a pixel low, as in every published one-step restorer: kept for equal results.
    """

    def bell(length: int, centre: float) -> Tensor:
        x = torch.arange(length, dtype=torch.float64)
        return torch.exp(-((x - centre) ** 2) / (length**2 * 2 * 0.01)) / math.sqrt(2 * math.pi * 0.01)

    return torch.outer(bell(height, height / 2), bell(width, (width - 1) / 2))


def blend_latent(noise_fn: Callable[[Tensor], Tensor], z: Tensor, tile: int, overlap: int) -> Tensor:
    """Noise prediction (B,C,h,w) float32 for a latent of any size, one call of `noise_fn` per tile.

    Latents of at most `tile * tile` positions are predicted whole. `noise_fn` maps (B,C,th,tw) to the same shape.
    """
    height, width = z.shape[-2:]
    if height * width <= tile * tile:
        return noise_fn(z).float()
    tile = min(tile, height, width)
    overlap = min(overlap, tile - 1)
    weights = gaussian_weights(tile, tile).to(z.device, torch.float32)
    noise = torch.zeros(z.shape, device=z.device)
    total = torch.zeros((height, width), device=z.device)
    for y in starts(height, tile, overlap):
        for x in starts(width, tile, overlap):
            here = (..., slice(y, y + tile), slice(x, x + tile))
            noise[here] += noise_fn(z[here]).float() * weights
            total[here] += weights
    return noise / total
