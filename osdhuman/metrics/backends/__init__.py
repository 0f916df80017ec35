"""The libraries that compute metrics, by name. A row of `METRICS` says which one computes it.

A backend is one module here and one line in `BACKENDS`; importing this package loads none of them. It has

    library: str                                   the name of what computes, as a score's identity says it
    version(metric) -> str                         of that library; MetricUnavailable where it is not installed
    weights(metric) -> list[Path]                  the files that the metric reads, downloaded where they are missing;
                                                   MetricUnavailable where they cannot be had
    load(metric, device) -> Callable               images (B,3,H,W) in [0,1], and references where the metric needs
                                                   them -> scores (B,); of a set metric, two folders -> one number
"""

from importlib import import_module
from types import ModuleType

BACKENDS = {
    "own": "osdhuman.metrics.backends.own",
    "pyiqa": "osdhuman.metrics.backends.pyiqa",
    "stlpips": "osdhuman.metrics.backends.stlpips",
}


def find_backend(name: str) -> ModuleType:
    """The module of a registered backend."""
    return import_module(BACKENDS[name])
