"""How faithful is a model on frozen pairs? PSNR-Y, SSIM-Y and ST-LPIPS of LQ, of OpenCV's filters and of the model.

    python scripts/degrade.py PHOTOGRAPHS --output PAIRS --size 512
    python benchmarks/fidelity.py PAIRS --model tiny --json fidelity.json

Each filter is shown at several strengths, so that the best for these pictures is among them. ST-LPIPS is the
shift-tolerant LPIPS of the package stlpips-pytorch (AlexNet); its numbers are not those of classic LPIPS.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import torch
from torch import Tensor
from tqdm import tqdm

from osdhuman import OSDHuman
from osdhuman.data.samples import find_pairs
from osdhuman.images import load_rgb
from osdhuman.metrics.luma import psnr_y, ssim_y
from osdhuman.recipes.perceptual import build_perceptual

Method = Callable[[Tensor], Tensor]  # (1,3,H,W) in [0,1] -> the same


def on_bytes(function: Callable) -> Method:
    """An OpenCV function on uint8 (H,W,3) as a method on tensors."""

    def method(lq: Tensor) -> Tensor:
        pixels = (lq[0].permute(1, 2, 0) * 255).round().byte().numpy()
        return torch.from_numpy(function(pixels)).permute(2, 0, 1)[None].float() / 255

    return method


def methods(model: str | None) -> dict[str, Method]:
    rows: dict[str, Method] = {"LQ": lambda lq: lq}
    for sigma in (0.7, 1.0, 1.5):
        rows[f"Gaussian, sigma {sigma}"] = on_bytes(lambda x, s=sigma: cv2.GaussianBlur(x, (0, 0), s))
    for color in (20, 40, 80):
        rows[f"bilateral, sigma {color}"] = on_bytes(lambda x, c=color: cv2.bilateralFilter(x, 7, c, 3))
    for h in (3, 6, 10, 15, 20):
        rows[f"non-local means, h {h}"] = on_bytes(lambda x, h=h: cv2.fastNlMeansDenoisingColored(x, None, h, h))
    if model:
        restorer = OSDHuman.from_pretrained(model)
        for fix in ("off", "wavelet"):
            rows[f"OSDHuman {model}, colour fix {fix}"] = lambda lq, fix=fix: restorer(lq, color_fix=fix)
    return rows


@torch.no_grad()
def measure(folder: Path, model: str | None) -> dict[str, dict[str, float]]:
    """Means over the pairs of `folder`, by method and metric. Restored images are rounded to 8 bits, as files are."""
    pairs, table, perceptual = find_pairs(folder), methods(model), build_perceptual("stlpips")
    scores = {name: torch.zeros(3) for name in table}
    for pair in tqdm(pairs, desc="pairs"):
        hq, lq = load_rgb(pair.hq)[None], load_rgb(pair.lq)[None]
        for name, method in table.items():
            image = (method(lq) * 255).round() / 255
            values = psnr_y(image, hq).mean(), ssim_y(image, hq).mean(), perceptual(image, hq)
            scores[name] += torch.stack([value.float() for value in values]) / len(pairs)
    names = ("PSNR-Y", "SSIM-Y", "ST-LPIPS")
    return {name: dict(zip(names, values.tolist(), strict=True)) for name, values in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="a folder with hq/ and lq/")
    parser.add_argument("--model", help="'tiny', a folder or a hub id; without it LQ and the filters alone")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    scores = measure(arguments.pairs, arguments.model)
    print("| | PSNR-Y ↑ | SSIM-Y ↑ | ST-LPIPS ↓ |\n|---|---|---|---|")
    for name, row in scores.items():
        print(f"| {name} | {row['PSNR-Y']:.2f} | {row['SSIM-Y']:.4f} | {row['ST-LPIPS']:.4f} |")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"pairs": len(find_pairs(arguments.pairs)), "scores": scores}, indent=2))


if __name__ == "__main__":
    main()
