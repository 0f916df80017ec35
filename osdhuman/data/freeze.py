"""Freeze the LQ of a validation image: a degradation that depends on a seed and the image's name, on nothing else.

So a frozen set can be made again, and does not change when images are added or removed.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor

from osdhuman.data.degradation import Degradation

_LOCK = Lock()


def freeze_lq(hq: Tensor, name: str, seed: int, degradation: Degradation, device: str = "cpu") -> Tensor:
    """LQ (3,H,W) in [0,1] of an HQ (3,H,W) in [0,1] that was rounded to 8 bits, as it is read from its file."""
    index = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    with one_thread():
        return degradation(hq[None].to(device), seed, [index])[0].cpu()


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch splits its sums by threads: with another number of them, pixels would differ by a level here and there.

    The number belongs to the whole process, so one caller at a time.
    """
    with _LOCK:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
