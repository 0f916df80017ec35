"""Put pictures and their restored versions side by side: each row one picture, before on the left, after on the right.

python scripts/before_after.py LQ_FOLDER RESTORED_FOLDER OUT.png
"""

import argparse
from pathlib import Path

import torch

from osdhuman.images import SUFFIXES, load_rgb, resize, save_png

HEIGHT, GAP = 384, 8  # pixels: of a row, and of the white lines between


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lq", type=Path)
    parser.add_argument("restored", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    befores = sorted(path for path in arguments.lq.iterdir() if path.suffix.lower() in SUFFIXES)
    pairs = [(path, arguments.restored / f"{path.stem}.png") for path in befores]
    rows = [row(before, after) for before, after in pairs if after.exists()]
    if not rows:
        parser.error(f"no picture of {arguments.lq} has a restored one of its name in {arguments.restored}")
    width = max(picture.shape[-1] for picture in rows)
    canvas = [torch.nn.functional.pad(picture, (0, width - picture.shape[-1], 0, GAP), value=1) for picture in rows]
    save_png(arguments.output, torch.cat(canvas, dim=-2)[..., :-GAP, :])
    print(f"{len(rows)} pictures, before and after: {arguments.output}")


def row(before: Path, after: Path) -> torch.Tensor:
    """(1,3,HEIGHT,W): both pictures at one height."""
    pictures = [load_rgb(path)[None] for path in (before, after)]
    halves = [resize(p, (HEIGHT, round(HEIGHT * p.shape[-1] / p.shape[-2]))) for p in pictures]
    return torch.cat([halves[0], torch.ones(1, 3, HEIGHT, GAP), halves[1]], dim=-1)
