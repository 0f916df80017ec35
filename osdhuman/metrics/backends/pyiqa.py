"""Metrics that pyiqa computes (PolyForm Noncommercial: an extra, `osdhuman[iqa]`)."""

import math
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from osdhuman.metrics.table import Metric
from osdhuman.metrics.weights import PACKAGED, MetricUnavailable, hub_offline, obtain, packaged_parameters

library = "pyiqa"


def version(metric: Metric) -> str:
    """The installed version; MetricUnavailable where pyiqa is missing."""
    try:
        return metadata.version("pyiqa")
    except metadata.PackageNotFoundError:
        remedy = "pip install 'osdhuman[iqa]' (pyiqa's licence allows noncommercial use)"
        raise MetricUnavailable(metric.name, "pyiqa is not installed", remedy) from None


def weights(metric: Metric) -> list[Path]:
    """The files that pyiqa reads for a metric, downloaded where they are in no cache."""
    return obtain(metric.name)


def load(metric: Metric, device: torch.device) -> Callable[..., Any]:
    """pyiqa's network of the metric, filtering fast on a CPU; of a set metric, the distance between two folders."""
    model = create(metric, device)
    if metric.scope == "set":
        return lambda images, reference: _distance(model, images, reference)

    def score(*images: Tensor) -> Tensor:
        with ShiftedSums():
            return model(*images)

    return score


def create(metric: Metric, device: torch.device) -> torch.nn.Module:
    """The metric as pyiqa makes it, with the packaged parameters where there are any. Raises MetricUnavailable."""
    options = dict(metric.options)
    if metric.name in PACKAGED:
        options["pretrained_model_path"] = packaged_parameters(PACKAGED[metric.name])
    try:
        import pyiqa  # takes 5 seconds

        with hub_offline():
            return pyiqa.create_metric(metric.variant, device=device, **options)
    except ImportError as error:  # openai-clip wants pkg_resources, which setuptools 82 dropped
        package = "setuptools<82" if error.name == "pkg_resources" else error.name
        raise MetricUnavailable(metric.name, f"pyiqa fails ({error})", f"pip install '{package}'") from None


def _distance(model: torch.nn.Module, images: Path, reference: Path) -> float:
    """NaN where one folder has too few images for a covariance."""
    try:
        return float(model(str(images), str(reference), mode="clean", num_workers=0, verbose=False))
    except ValueError:  # scipy, of a covariance that is not finite
        return math.nan


class ShiftedSums(TorchFunctionMode):
    """Filtering in float64 on a CPU, as a sum of shifted images weighted by the kernel.

    Torch has no fast convolution for it, which is 77 % of NIQE's time. Scores move by 1e-12.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.conv2d and _is_filter(*args, **(kwargs or {})):
            return sum_of_shifts(*args[:2])
        return func(*args, **(kwargs or {}))


def _is_filter(
    image: Tensor,
    kernel: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Whether a `conv2d` filters every channel alike, in float64 on a CPU, with nothing else to it."""
    plain = image.device.type == "cpu" and image.dtype == torch.float64 and bias is None
    dense = (stride, padding, dilation) == (1, 0, 1) and groups == image.shape[1] == len(kernel)
    return plain and dense and bool((kernel == kernel[:1]).all())


def sum_of_shifts(image: Tensor, kernel: Tensor) -> Tensor:
    """Every channel of an image (B,C,H,W), filtered by the first of the kernels (C,1,h,w), without padding."""
    height, width = (side - k + 1 for side, k in zip(image.shape[-2:], kernel.shape[-2:], strict=True))
    total = image.new_zeros(*image.shape[:2], height, width)
    for y, row in enumerate(kernel[0, 0].tolist()):
        for x, weight in enumerate(row):
            total.add_(image[..., y : y + height, x : x + width], alpha=weight)
    return total
