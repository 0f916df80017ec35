"""ST-LPIPS (Ghildyal & Liu, 2022): shift-tolerant LPIPS of the package stlpips-pytorch, which brings its weights."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from osdhuman.metrics.table import Metric
from osdhuman.metrics.weights import MetricUnavailable

library = "stlpips-pytorch"


def version(metric: Metric) -> str:
    """The installed version; MetricUnavailable where the package is missing."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        raise MetricUnavailable(metric.name, f"{library} is not installed", f"pip install {library}") from None


def weights(metric: Metric) -> list[Path]:
    """The trained weights that the package carries."""
    folder = next(iter(find_spec("stlpips_pytorch").submodule_search_locations))
    return [Path(folder) / "weights" / "vST0.0" / f"{metric.variant}_shift_tolerant.pth"]


def load(metric: Metric, device: torch.device) -> Callable[..., Tensor]:
    """A function of images (B,3,H,W) in [0,1] and their references that gives scores (B,)."""
    network = shift_tolerant_lpips(metric.variant).to(device).eval().requires_grad_(False)
    return lambda image, reference: network(image * 2 - 1, reference * 2 - 1)


def shift_tolerant_lpips(net: str = "alex") -> nn.Module:
    """The network: two images (B,3,H,W) in [-1,1] -> distances (B,1,1,1), lower is more alike."""
    with _debugging_imports_absent():
        from stlpips_pytorch import stlpips

    return stlpips.LPIPS(net=net, variant="shift_tolerant", verbose=False)


@contextlib.contextmanager
def _debugging_imports_absent() -> Iterator[None]:
    """Stand in for two debugging packages that stlpips_pytorch imports but neither calls nor declares."""
    aids = {"IPython": "embed", "torchsummary": "summary"}
    missing = [name for name in aids if name not in sys.modules]
    for name in missing:
        sys.modules[name] = ModuleType(name)
        setattr(sys.modules[name], aids[name], None)
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]
