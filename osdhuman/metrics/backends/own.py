"""Metrics that this package computes itself: nothing to install, no weights."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from osdhuman.metrics.luma import psnr_y, ssim_y
from osdhuman.metrics.table import Metric

library = "osdhuman"
DEFINITIONS = {"psnr_y": psnr_y, "ssim_y": ssim_y}


def version(metric: Metric) -> str:
    """Of the definitions, not of the package: raised when a number changes, so old scores stay valid until then."""
    return "1"


def weights(metric: Metric) -> list[Path]:
    """No files: these metrics are formulas."""
    return []


def load(metric: Metric, device: torch.device) -> Callable[..., Tensor]:
    """A function of images (B,3,H,W) in [0,1] and their references that gives scores (B,)."""
    return DEFINITIONS[metric.variant]
