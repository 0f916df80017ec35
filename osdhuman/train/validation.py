"""Validation on a frozen folder of pairs: PSNR-Y, SSIM-Y and a picture to look at."""

from pathlib import Path

import torch
from torch import Tensor, nn

from osdhuman.data.samples import find_pairs
from osdhuman.images import load_rgb, resize, save_png
from osdhuman.inference.tensors import pad_to_multiple
from osdhuman.metrics.luma import psnr_y, ssim_y

SHOWN = 4  # rows of the picture


@torch.no_grad()
def validate(generator: nn.Module, folder: Path, picture: Path, accelerator) -> dict[str, float]:
    """Restore every `lq/` image of `folder`; mean scores against `hq/`, over all processes.

    The first few are written to `picture`, one row each: LQ, restored, HQ. Each process takes every n-th pair.
    """
    pairs, rows, sums = find_pairs(folder), [], torch.zeros(3, dtype=torch.float64)
    training = generator.training
    generator.eval()  # DAPE words its prompt otherwise at training
    for pair in pairs[accelerator.process_index :: accelerator.num_processes]:
        hq, lq = load_rgb(pair.hq)[None], load_rgb(pair.lq)[None]
        restored = restore(generator, lq.to(accelerator.device)).cpu()
        sums += torch.stack([psnr_y(restored, hq).sum(), ssim_y(restored, hq).sum(), torch.tensor(1.0)])
        if len(rows) < SHOWN:
            rows.append(torch.cat([lq, restored, hq], dim=-1))
    generator.train(training)
    if accelerator.is_main_process:
        save_png(picture, stack_rows(rows))
    psnr, ssim, count = accelerator.reduce(sums.float().to(accelerator.device), "sum").tolist()
    return {"PSNR-Y": psnr / count, "SSIM-Y": ssim / count}


def restore(generator: nn.Module, lq: Tensor) -> Tensor:
    """Restore (B,3,H,W) of any size: padded to the multiple that the networks need, then cut back."""
    height, width = lq.shape[-2:]
    return generator(pad_to_multiple(lq, generator.multiple)).image[..., :height, :width].float()


def stack_rows(rows: list[Tensor]) -> Tensor:
    """Images (1,3,H,W) below each other, all made as wide as the first."""
    width = rows[0].shape[-1]
    return torch.cat([resize(row, (round(row.shape[-2] * width / row.shape[-1]), width)) for row in rows], dim=-2)
