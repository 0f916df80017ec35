"""Scores of images and of whole folders: what a worker does, or the process itself where there is none."""

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from osdhuman.folders import list_images
from osdhuman.images import ImageError, load_rgb
from osdhuman.metrics.score_files import printable
from osdhuman.metrics.scorers import Scorer, SetScorer, load_scorer
from osdhuman.metrics.table import METRICS
from osdhuman.metrics.weights import MetricUnavailable


class Task(NamedTuple):
    """An image to score: all that a worker needs."""

    method: str
    path: Path
    reference: Path | None
    size: tuple[int, int]
    lacking: tuple[str, ...]


WORKER: dict[str, Any] = {}  # the scorers of this process, where it is a worker


def score(
    tasks: Sequence[Task], device: str, scorers: dict[str, Any] | None = None
) -> tuple[list[dict[str, float] | str], dict[str, str]]:
    """For each task its scores by metric, or why its images cannot be decoded; and why a metric cannot be had.

    Neighbours of one method and size that lack the same metrics are scored as one batch. Each reference is decoded
    once, whatever the number of methods.
    """
    scorers = WORKER if scorers is None else scorers
    results: list[dict[str, float] | str] = []
    unavailable: dict[str, str] = {}
    decode = _Decoder()
    for (_, _, lacking), same in groupby(tasks, key=lambda task: (task.method, task.size, task.lacking)):
        pairs = [decode.pair(task) for task in same]
        whole = [pair for pair in pairs if not isinstance(pair, str)]
        rows = iter(_score_batch(whole, lacking, device, scorers, unavailable) if whole else ())
        results += [pair if isinstance(pair, str) else next(rows) for pair in pairs]
    return results, unavailable


def _score_batch(
    pairs: Sequence[tuple[Tensor, Tensor | None]],
    metrics: Sequence[str],
    device: str,
    scorers: dict[str, Any],
    unavailable: dict[str, str],
) -> list[dict[str, float]]:
    image = torch.stack([image for image, _ in pairs])
    reference = None if pairs[0][1] is None else torch.stack([reference for _, reference in pairs])
    rows: list[dict[str, float]] = [{} for _ in pairs]
    for name in metrics:
        if scorer := _scorer(name, device, scorers, unavailable):
            values = scorer(image, reference if METRICS[name].reference else None).tolist()
            for row, value in zip(rows, values, strict=True):
                row[name] = value
    return rows


class _Decoder:
    """Decodes images; each reference once."""

    def __init__(self) -> None:
        self._references: dict[Path | None, Tensor | None] = {None: None}

    def pair(self, task: Task) -> tuple[Tensor, Tensor | None] | str:
        """Image and reference (3,H,W), or why one cannot be decoded."""
        try:
            if task.reference not in self._references:
                self._references[task.reference] = load_rgb(task.reference)
            return load_rgb(task.path), self._references[task.reference]
        except ImageError as error:
            return f"{printable(str(error.path))} {error.reason}"


def score_set(
    name: str, images: Path, reference: Path, device: str, scorers: dict[str, Any] | None = None
) -> tuple[float, str]:
    """A metric of whole folders, or the reason why it cannot be had."""
    unavailable: dict[str, str] = {}
    scorer = _scorer(name, device, WORKER if scorers is None else scorers, unavailable)
    if scorer is None:
        return math.nan, unavailable[name]
    with TemporaryDirectory() as folder:
        return scorer(_plain(images, Path(folder, "images")), _plain(reference, Path(folder, "reference"))), ""


def _plain(folder: Path, linked: Path) -> Path:
    """`folder` itself, or links to its images alone where it holds other files, which pyiqa would take for images."""
    paths, unlisted = list_images(folder)
    if not unlisted and len(paths) == sum(1 for path in folder.rglob("*") if path.is_file()):
        return folder
    for i, path in enumerate(paths):
        linked.mkdir(exist_ok=True)
        (linked / f"{i:08}{path.suffix}").symlink_to(path.resolve())
    return linked


def _scorer(name: str, device: str, scorers: dict[str, Any], unavailable: dict[str, str]) -> Scorer | SetScorer | None:
    if name not in scorers:
        try:
            scorers[name] = load_scorer(name, device)
        except MetricUnavailable as error:
            scorers[name] = error
    if isinstance(scorers[name], MetricUnavailable):
        unavailable[name] = scorers[name].reason
        return None
    return scorers[name]
