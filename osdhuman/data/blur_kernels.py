"""Blur kernels of Real-ESRGAN: Gaussian, generalized Gaussian, plateau and sinc.

Every kernel is a float64 tensor (size,size) on the CPU, of odd size, symmetric about its centre, with sum 1. Lengths
are pixels, angles radians. Source: Wang et al., "Real-ESRGAN", ICCVW 2021, section 3.1 and 3.3.
"""

import math

import torch
from torch import Tensor


def gaussian(size: int, sigma_x: float, sigma_y: float, angle: float = 0.0) -> Tensor:
    """Gaussian with standard deviations `sigma_x`, `sigma_y`, turned by `angle`."""
    return _normalize(torch.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, angle)))


def generalized_gaussian(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> Tensor:
    """exp(-d^(2 beta) / 2), d being the distance in standard deviations: Gaussian for `beta` = 1, less is sharper."""
    return _normalize(torch.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, angle) ** beta))


def plateau(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> Tensor:
    """1 / (1 + d^(2 beta)), d being the distance in standard deviations: a flat top with long tails."""
    return _normalize(1 / (1 + _squared_distance(size, sigma_x, sigma_y, angle) ** beta))


def sinc(size: int, cutoff: float) -> Tensor:
    """Ideal circular low-pass filter cut to `size`: it rings and overshoots. `cutoff` in radians per pixel, 0 to pi."""
    x, y = _grid(size)
    radius = torch.hypot(x, y)
    centre = size // 2
    radius[centre, centre] = 1  # any number but 0; the limit is put in below
    kernel = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    kernel[centre, centre] = cutoff**2 / (4 * math.pi)
    return _normalize(kernel)


def _squared_distance(size: int, sigma_x: float, sigma_y: float, angle: float) -> Tensor:
    """Squared distance from the centre, counted in standard deviations along the turned axes."""
    x, y = _grid(size)
    along = math.cos(angle) * x + math.sin(angle) * y
    across = math.cos(angle) * y - math.sin(angle) * x
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def _grid(size: int) -> tuple[Tensor, Tensor]:
    if size % 2 == 0:
        raise ValueError(f"a blur kernel needs an odd size, got {size}")
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def _normalize(kernel: Tensor) -> Tensor:
    return kernel / kernel.sum()
