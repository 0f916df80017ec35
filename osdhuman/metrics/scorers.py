"""Image quality metrics of the paper (section 4.1): one table, and scorers that leave the computing to pyiqa.

`METRICS` says of each metric which variant is meant, because numbers of different variants must not be compared:
MANIQA has three, luma has two ranges, LPIPS has two networks. Images are float32 RGB (B,3,H,W) in [0,1]; those read
from 8-bit files are already rounded. PSNR, SSIM, NIQE and BRISQUE need no download: the parameters of the last two are
packaged (osdhuman/weights/README.md). The others' weights are looked for in the caches of torch and Hugging Face, then
downloaded; a metric that cannot be had raises MetricUnavailable with the way to get it.
"""

import math
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from osdhuman.files import file_sha256
from osdhuman.metrics.table import METRICS, Metric
from osdhuman.metrics.weights import PACKAGED, MetricUnavailable, hub_offline, obtain, packaged_parameters


class Scorer:
    """One metric of scope "image", ready to measure; `model` is pyiqa's, `identity` what `identify` says of it."""

    def __init__(self, metric: Metric, model: torch.nn.Module, identity: dict[str, Any], device: torch.device) -> None:
        self.metric, self.identity, self.model = metric, identity, model
        self._device = device

    def __call__(self, image: Tensor, reference: Tensor | None = None) -> Tensor:
        """Raw scores, float64 (B,) on the CPU, of images (B,3,H,W) in [0,1]; `reference` likewise where one is needed.

        NaN where the metric cannot judge: an image below `min_side`, or without any texture for NIQE and BRISQUE.
        Raises ValueError for shapes that do not fit.
        """
        self._check(image, reference)
        score = torch.full((len(image),), torch.nan, dtype=torch.float64)
        judged = self._judgeable(image)
        if judged.any():
            score[judged] = self._score(image[judged], None if reference is None else reference[judged])
        return score

    def _check(self, image: Tensor, reference: Tensor | None) -> None:
        if image.dim() != 4 or image.shape[1] != 3:
            raise ValueError(f"{self.metric.name} measures images (B,3,H,W), got {tuple(image.shape)}")
        if self.metric.reference and (reference is None or reference.shape != image.shape):
            shape = None if reference is None else tuple(reference.shape)
            raise ValueError(f"{self.metric.name} needs a reference of shape {tuple(image.shape)}, got {shape}")

    def _judgeable(self, image: Tensor) -> Tensor:
        large = min(image.shape[-2:]) >= self.metric.min_side
        if self.metric.color != "gray":
            return torch.full((len(image),), large)
        low, high = torch.aminmax(image.flatten(1), dim=1)  # of a flat image they would measure rounding errors
        return (high > low).cpu() & large

    def _score(self, image: Tensor, reference: Tensor | None) -> Tensor:
        if len(image) > 1 and not self._in_batches:
            return torch.cat([self._score(*single) for single in _one_by_one(image, reference)])
        pair = [x.to(self._device, torch.float32) for x in (image, reference) if x is not None]
        try:
            with torch.inference_mode(), _ShiftedSums():
                return self.model(*pair).double().reshape(-1).cpu()
        except (AssertionError, torch.linalg.LinAlgError):  # no block with texture: one such image ends the batch
            if len(image) == 1:
                return torch.tensor([torch.nan], dtype=torch.float64)
            return torch.cat([self._score(*single) for single in _one_by_one(image, reference)])

    @property
    def _in_batches(self) -> bool:
        """On a CPU one image at a time is faster. BRISQUE's weights of 1024 make it depend on the batch by 0.01."""
        return self._device.type != "cpu" and self.metric.name != "brisque"


class _ShiftedSums(TorchFunctionMode):
    """Filtering in float64 on a CPU, as a sum of shifted images weighted by the kernel.

    Torch has no fast convolution for it, which is 77 % of NIQE's time and more of SSIM's. Scores move by 1e-12.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.conv2d and _is_filter(*args, **(kwargs or {})):
            return _sum_of_shifts(*args[:2])
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


def _sum_of_shifts(image: Tensor, kernel: Tensor) -> Tensor:
    """Every channel of an image (B,C,H,W), filtered by the first of the kernels (C,1,h,w), without padding."""
    height, width = (side - k + 1 for side, k in zip(image.shape[-2:], kernel.shape[-2:], strict=True))
    total = image.new_zeros(*image.shape[:2], height, width)
    for y, row in enumerate(kernel[0, 0].tolist()):
        for x, weight in enumerate(row):
            total.add_(image[..., y : y + height, x : x + width], alpha=weight)
    return total


def _one_by_one(image: Tensor, reference: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    for i in range(len(image)):
        yield image[i : i + 1], None if reference is None else reference[i : i + 1]


class SetScorer:
    """One metric of scope "set" (FID), ready to measure; `model` is pyiqa's, `identity` what `identify` says of it."""

    def __init__(self, metric: Metric, model: torch.nn.Module, identity: dict[str, Any]) -> None:
        self.metric, self.identity, self.model = metric, identity, model

    def __call__(self, images: Path, reference: Path) -> float:
        """Distance between the pictures of two folders; NaN where one has too few for a covariance.

        It grows as sets get smaller: only equal numbers of pictures may be compared.
        """
        try:
            with torch.inference_mode():
                return float(self.model(str(images), str(reference), mode="clean", num_workers=0, verbose=False))
        except ValueError:  # scipy, of a covariance that is not finite
            return math.nan


def load_scorer(name: str, device: str | torch.device = "cpu") -> Scorer | SetScorer:
    """The metric `name` of METRICS on `device`. Raises ValueError for an unknown name, MetricUnavailable."""
    if name not in METRICS:
        near = get_close_matches(name, METRICS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid names: {', '.join(METRICS)}"
        raise ValueError(f"unknown metric {name!r}; {hint}")
    metric, device = METRICS[name], torch.device(device)
    identity = identify(name)
    model = _create(metric, device)
    return SetScorer(metric, model, identity) if metric.scope == "set" else Scorer(metric, model, identity, device)


def identify(name: str) -> dict[str, Any]:
    """What makes two numbers of the metric `name` comparable: variant, library, version, weights, colour, border.

    `weights_sha256` has the hash of each file in the order of DOWNLOADS, None where a metric has none. Downloads the
    weights where they are in no cache, loads nothing. Raises MetricUnavailable.
    """
    metric = METRICS[name]
    try:
        installed = version("pyiqa")
    except PackageNotFoundError:
        remedy = "pip install 'osdhuman[iqa]' (pyiqa's licence allows noncommercial use)"
        raise MetricUnavailable(name, "pyiqa is not installed", remedy) from None
    return {
        "variant": metric.variant,
        "library": "pyiqa",
        "version": installed,
        "weights_sha256": " ".join(map(file_sha256, obtain(name))) or None,
        "color": metric.color,
        "border": metric.border,
    }


def load_scorers(names: Iterable[str], device: str | torch.device = "cpu") -> dict[str, Scorer | SetScorer]:
    """All of `names`; one MetricUnavailable that names every metric that cannot be had, and how to get it."""
    scorers, missing = {}, []
    for name in names:
        try:
            scorers[name] = load_scorer(name, device)
        except MetricUnavailable as error:
            missing.append(error)
    if len(missing) > 1:
        names = ", ".join(error.name for error in missing)
        raise MetricUnavailable(names, "not on this machine", "".join(f"\n  {error}" for error in missing))
    if missing:
        raise missing[0]
    return scorers


def _create(metric: Metric, device: torch.device) -> torch.nn.Module:
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
