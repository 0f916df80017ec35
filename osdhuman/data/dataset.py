"""Photographs on disk -> batches of square crops, in an order that is a pure function of (seed, position).

A *counter* numbers the samples of a whole run: step 0 holds the counters 0..batch_size-1, and so on. Counter n is the
image at place `n % N` of a shuffle keyed by (seed, n // N), cropped and flipped by a draw keyed by (seed, n). So a
run continues exactly at any step, whatever the number of workers or processes, and nothing has to be stored for it.
"""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from osdhuman.data.samples import DataConfig, Pair, list_samples
from osdhuman.images import ImageError, load_rgb, resize
from osdhuman.machine import end_with_parent

Degrade = Callable[[Tensor, int, Sequence[int]], Tensor | dict[str, Tensor]]  # (hq, seed, counters) -> LQ


class NoUsableImage(ValueError):
    """None of the training images can be read."""


class Batch(NamedTuple):
    """One batch: `tensors` by name, each (B,...): `hq` in [0,1], and `lq` where a pair or a worker gave it."""

    tensors: dict[str, Tensor]
    counters: list[int]
    skipped: dict[str, str]  # files met on the way that could not be used, and why


class TrainingImages(Dataset):
    """Random square crops of the config's images, addressed by counter."""

    def __init__(self, config: DataConfig, seed: int, samples: list[Pair] | None = None):
        self.config, self.seed = config, seed
        self.samples = list_samples(config) if samples is None else samples
        self.skipped: dict[str, str] = {}  # known to this process
        self._cache: dict[int, Tensor] = {}
        if config.cache:
            self._fill_cache()

    def __len__(self) -> int:
        """How many images one epoch has, unreadable ones included."""
        return len(self.samples)

    def __getitem__(self, counter: int) -> tuple[Tensor, int, dict[str, str]]:
        """Sample `counter`: hq, or hq and lq stacked, (3|6,size,size); the counter; what was skipped to find it.

        An unusable image is replaced by the next usable one of the epoch's order.
        """
        epoch, place = divmod(counter, len(self))
        order, skipped = epoch_order(self.seed, epoch, len(self)), {}
        for i in range(len(self)):
            index = int(order[(place + i) % len(self)])
            try:
                return self._crop(self._load(index), np.random.default_rng([self.seed, counter])), counter, skipped
            except ImageError as error:
                skipped[str(error.path)] = error.reason
        reasons = "; ".join(f"{path}: {reason}" for path, reason in list(skipped.items())[:3])
        raise NoUsableImage(f"none of the {len(self)} training images can be used: {reasons}")

    def _load(self, index: int) -> Tensor:
        """Image `index`, float32 (3|6,H,W) in [0,1]. Raises ImageError, the second time without reading again."""
        if index in self._cache:
            return self._cache[index].float() / 255
        hq, lq = self.samples[index]
        if str(hq) in self.skipped:
            raise ImageError(hq, self.skipped[str(hq)])
        try:
            return self._read(hq, lq)
        except ImageError as error:
            self.skipped[str(hq)] = error.reason
            raise

    def _read(self, hq: Path, lq: Path | None) -> Tensor:
        images = [load_rgb(path, self.config.max_pixels) for path in (hq, lq) if path is not None]
        if images[0].shape != images[-1].shape:
            raise ImageError(hq, f"its lq has another size: {_size(images[-1])} instead of {_size(images[0])}")
        if min(images[0].shape[1:]) < self.config.size and not self.config.upscale_small:
            raise ImageError(hq, f"smaller than {self.config.size} pixels: {_size(images[0])}")
        return torch.cat(images)

    def _crop(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """A random square, brought to `size` pixels a side: a larger one to shrink, the short side of a small image."""
        size = self.config.size
        factor = rng.uniform(*self.config.shrink) if self.config.shrink else 1.0
        side = min(round(size / factor), *image.shape[1:])
        top, left = (int(rng.integers(length - side + 1)) for length in image.shape[1:])
        image = resize(image[None, :, top : top + side, left : left + side], (size, size))[0]
        return image.flip(-1) if self.config.flip and rng.random() < 0.5 else image.contiguous()

    def _fill_cache(self) -> None:
        def quantised(index: int) -> Tensor | None:
            try:
                return (self._load(index) * 255).round().to(torch.uint8)
            except ImageError:
                return None

        with ThreadPoolExecutor(max(1, self.config.workers)) as pool:
            images = pool.map(quantised, range(len(self)))
            self._cache = {index: image for index, image in enumerate(images) if image is not None}


@lru_cache(maxsize=2)  # a batch can lie across the border of two epochs
def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The shuffle of 0..length-1 for one epoch, int64 of shape (length,), the same for the same (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(length)


class Positions:
    """The counters of every micro-batch of one process, from `step` on without end; a batch sampler.

    The `batch_size` counters of a step go to `processes` x `accumulation` micro-batches, so the samples of a step
    do not depend on how it is spread.
    """

    def __init__(self, batch_size: int, accumulation: int = 1, processes: int = 1, rank: int = 0, step: int = 0):
        if batch_size % (processes * accumulation):
            raise ValueError(
                f"batch_size is that of all processes together: {batch_size} cannot be shared equally by "
                f"{processes} process(es) x {accumulation} accumulation step(s)"
            )
        self.batch_size, self.accumulation, self.processes = batch_size, accumulation, processes
        self.rank, self.step = rank, step

    def __iter__(self) -> Iterator[list[int]]:
        micro = self.batch_size // (self.processes * self.accumulation)
        first = self.step * self.batch_size + self.rank * micro
        while True:
            yield list(range(first, first + micro))
            first += self.processes * micro


class Batches:
    """An endless iterator of `Batch`. `close()` ends the worker processes; it must be called on every way out."""

    def __init__(self, loader: DataLoader, ending: Any):
        self._iterator, self._ending = iter(loader), ending

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        try:
            return next(self._iterator)
        except NoUsableImage as error:  # a worker sends the text of a traceback, the message in its last line
            raise NoUsableImage(str(error).rstrip().splitlines()[-1].rpartition("NoUsableImage: ")[2]) from None

    def close(self) -> None:
        self._ending.value = True
        self._iterator = None  # at its deletion PyTorch asks the workers to end, and terminates those that do not


def load_batches(
    images: TrainingImages, positions: Positions, pin_memory: bool = False, degrade: Degrade | None = None
) -> Batches:
    """Endless batches, read ahead by the config's workers; `degrade` makes LQ there, one thread per worker."""
    workers = images.config.workers
    ending = multiprocessing.RawValue("b", False)  # shared with the workers
    atexit.register(setattr, ending, "value", True)  # for an iterator that was never closed
    loader = DataLoader(
        images,
        batch_sampler=positions,
        num_workers=workers,
        collate_fn=partial(collate, degrade=degrade, seed=images.seed),
        pin_memory=pin_memory,
        worker_init_fn=partial(_begin_worker, ending=ending),
        prefetch_factor=2 if workers else None,
    )
    return Batches(loader, ending)


def collate(
    samples: Sequence[tuple[Tensor, int, dict[str, str]]], degrade: Degrade | None = None, seed: int = 0
) -> Batch:
    """Stack the samples of `TrainingImages` into a batch; `degrade` makes the LQ of those that have none."""
    images = torch.stack([image for image, _, _ in samples])
    counters = [counter for _, counter, _ in samples]
    tensors = {"hq": images[:, :3]}
    if images.shape[1] == 6:
        tensors["lq"] = images[:, 3:]
    elif degrade is not None:
        degraded = degrade(images, seed, counters)
        tensors |= degraded if isinstance(degraded, dict) else {"lq": degraded}
    skipped = {path: reason for _, _, names in samples for path, reason in names.items()}
    return Batch(tensors, counters, skipped)


def _begin_worker(worker: int, ending: Any) -> None:
    """One thread; signals to the whole process group are left to the parent, which first saves the run.

    A worker that ignored SIGTERM altogether could never be ended: Python terminates its workers with it at exit and
    then waits without limit. So it is obeyed from the moment at which the parent sets `ending`.
    """

    def terminate(*_: object) -> None:
        if ending.value:
            os._exit(0)

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    torch.set_num_threads(1)  # OpenCV's threads stay alone: setting their number after a fork may wait for ever


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]} x {image.shape[-2]}"
