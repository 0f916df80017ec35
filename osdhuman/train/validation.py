"""Validation on a frozen folder of pairs: PSNR-Y, SSIM-Y and an image to look at."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from osdhuman.data.samples import Pair, find_pairs
from osdhuman.images import load_rgb, resize, save_png
from osdhuman.metrics.luma import psnr_y, ssim_y

SHOWN = 4  # rows of the image


class Validation(NamedTuple):
    """Mean scores over `count` pairs of all processes, and the pairs that could not be scored, with the reason."""

    scores: dict[str, float]
    count: int
    failures: dict[str, str]


@torch.no_grad()
def validate(restore: Callable[[Tensor], Tensor], folder: Path, image: Path, accelerator) -> Validation:
    """Restore every `lq/` image of `folder` and score it against `hq/`.

    `restore` takes (1,3,H,W) in [0,1] on the device and returns the same size. Each process takes every n-th pair; a
    pair that fails is counted and costs no other. The first few go to the file `image`, one row each: LQ, restored, HQ.
    """
    from accelerate.utils import gather_object

    rows: list[Tensor] = []
    sums, failures = torch.zeros(3, dtype=torch.float64), {}
    for pair in find_pairs(folder)[accelerator.process_index :: accelerator.num_processes]:
        try:
            row, scores = _score(pair, restore, accelerator.device)
        except Exception as error:
            failures[str(pair.lq)] = str(error) or type(error).__name__
            continue
        sums += scores
        if len(rows) < SHOWN:
            rows.append(row)
    psnr, ssim, count = accelerator.reduce(sums.float().to(accelerator.device), "sum").tolist()
    failures = dict(gather_object(list(failures.items())))
    if accelerator.is_main_process and rows:
        save_png(image, stack_rows(rows))
    scores = {"PSNR-Y": psnr / count, "SSIM-Y": ssim / count} if count else {}
    return Validation(scores, int(count), failures)


def _score(pair: Pair, restore: Callable[[Tensor], Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """LQ, restored and HQ beside each other, and (PSNR-Y, SSIM-Y, 1)."""
    hq, lq = load_rgb(pair.hq)[None], load_rgb(pair.lq)[None]
    restored = restore(lq.to(device)).float().cpu()
    scores = torch.stack([psnr_y(restored, hq).sum(), ssim_y(restored, hq).sum(), torch.tensor(1.0)])
    return torch.cat([lq, restored, hq], dim=-1), scores


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the context, all modules are in evaluation mode; afterwards each is in its own mode again."""
    modes = {module: module.training for root in modules for module in root.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def stack_rows(rows: list[Tensor]) -> Tensor:
    """Images (1,3,H,W) below each other, all made as wide as the first."""
    width = rows[0].shape[-1]
    return torch.cat([resize(row, (round(row.shape[-2] * width / row.shape[-1]), width)) for row in rows], dim=-2)
