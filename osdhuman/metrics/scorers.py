"""Image quality metrics of the paper (section 4.1), ready to measure.

`METRICS` says of each metric which variant is meant and which backend computes it. Images are float32 RGB (B,3,H,W) in
[0,1]; those read from 8-bit files are already rounded. PSNR-Y, SSIM-Y and ST-LPIPS need nothing beyond the package's
own dependencies; NIQE's and BRISQUE's parameters are packaged (osdhuman/weights/README.md). The others' weights are
looked for in the caches of torch and Hugging Face, then downloaded; a metric that cannot be computed on this machine
raises MetricUnavailable, which says what to do.
"""

from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osdhuman.files import file_sha256
from osdhuman.metrics.backends import find_backend
from osdhuman.metrics.table import METRICS, Metric
from osdhuman.metrics.weights import MetricUnavailable


class Scorer:
    """One metric of scope "image"; `model` is its backend's function, `identity` what `identify` says of it."""

    def __init__(
        self, metric: Metric, model: Callable[..., Tensor], identity: dict[str, Any], device: torch.device
    ) -> None:
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
            with torch.inference_mode():
                return self.model(*pair).double().reshape(-1).cpu()
        except (AssertionError, torch.linalg.LinAlgError):  # no block with texture: one such image ends the batch
            if len(image) == 1:
                return torch.tensor([torch.nan], dtype=torch.float64)
            return torch.cat([self._score(*single) for single in _one_by_one(image, reference)])

    @property
    def _in_batches(self) -> bool:
        """On a CPU one image at a time is faster. BRISQUE's weights of 1024 make it depend on the batch by 0.01."""
        return self._device.type != "cpu" and self.metric.name != "brisque"


def _one_by_one(image: Tensor, reference: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    for i in range(len(image)):
        yield image[i : i + 1], None if reference is None else reference[i : i + 1]


class SetScorer:
    """One metric of scope "set" (FID); `model` is its backend's function, `identity` what `identify` says of it."""

    def __init__(self, metric: Metric, model: Callable[[Path, Path], float], identity: dict[str, Any]) -> None:
        self.metric, self.identity, self.model = metric, identity, model

    def __call__(self, images: Path, reference: Path) -> float:
        """Distance between the images of two folders; NaN where one has too few for a covariance.

        It grows as sets get smaller: only equal numbers of images may be compared.
        """
        with torch.inference_mode():
            return float(self.model(images, reference))


def load_scorer(name: str, device: str | torch.device = "cpu") -> Scorer | SetScorer:
    """The metric `name` of METRICS on `device`. Raises ValueError for an unknown name, MetricUnavailable."""
    if name not in METRICS:
        near = get_close_matches(name, METRICS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid names: {', '.join(METRICS)}"
        raise ValueError(f"unknown metric {name!r}; {hint}")
    metric, device = METRICS[name], torch.device(device)
    identity = identify(name)
    model = find_backend(metric.backend).load(metric, device)
    return SetScorer(metric, model, identity) if metric.scope == "set" else Scorer(metric, model, identity, device)


def identify(name: str) -> dict[str, Any]:
    """What makes two numbers of the metric `name` comparable: variant, library, version, weights, colour, border.

    `weights_sha256` has the hash of each file that the metric reads, None where it reads none. Downloads the weights
    where they are in no cache, loads nothing. Raises MetricUnavailable.
    """
    metric = METRICS[name]
    backend = find_backend(metric.backend)
    return {
        "variant": metric.variant,
        "library": backend.library,
        "version": backend.version(metric),
        "weights_sha256": " ".join(map(file_sha256, backend.weights(metric))) or None,
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
