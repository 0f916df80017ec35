"""Put images and their restored versions side by side: one row per image, before on the left, after on the right.

python scripts/before_after.py LQ_FOLDER RESTORED_FOLDER OUT.png
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from osdhuman.cli.command import run_command
from osdhuman.files import printable
from osdhuman.folders import find_images
from osdhuman.images import load_rgb, resize, save_png

HEIGHT, GAP = 384, 8  # pixels: of a row, and of the white lines between


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 if there is no pair or an image cannot be read, 130 or 143 if it was stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lq", type=Path)
    parser.add_argument("restored", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args(arguments)
    return run_command("before_after", lambda: compose(args.lq, args.restored, args.output), lambda: "nothing written")


def compose(lq: Path, restored: Path, output: Path) -> int:
    """Write the rows of all images below `lq` that have a restored one of their name. Raises ValueError for none."""
    pairs = [(path, restored_version(path.relative_to(lq), restored)) for path in find_images(lq)]
    rows = [row(before, after) for before, after in pairs if after is not None]
    if not rows:
        raise ValueError(f"no image of {printable(lq)} has a restored one of its name in {printable(restored)}")
    width = max(image.shape[-1] for image in rows)
    padded = [torch.nn.functional.pad(image, (0, width - image.shape[-1], 0, GAP), value=1) for image in rows]
    save_png(output, torch.cat(padded, dim=-2)[..., :-GAP, :])
    print(f"{len(rows)} of {len(pairs)} images, before and after: {printable(output)}")
    return 0


def restored_version(name: Path, restored: Path) -> Path | None:
    """`a.jpg` is restored as `a.jpg.png` where another image took `a.png`."""
    candidates = (restored / f"{name}.png", restored / name.with_suffix(".png"))
    return next((path for path in candidates if path.exists()), None)


def row(before: Path, after: Path) -> Tensor:
    """(1,3,HEIGHT,W): both images at one height."""
    images = [load_rgb(path)[None] for path in (before, after)]
    halves = [resize(image, (HEIGHT, round(HEIGHT * image.shape[-1] / image.shape[-2]))) for image in images]
    return torch.cat([halves[0], torch.ones(1, 3, HEIGHT, GAP), halves[1]], dim=-1)
