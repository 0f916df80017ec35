"""Seconds and peak memory of one training iteration: a step of the generator and one of the regularizer.

    python benchmarks/train_step.py --model tiny --json benchmarks/results/train_step_tiny.json
    python benchmarks/train_step.py --model full --json benchmarks/results/train_step_full.json

It is one iteration of the recipe, with reading and degrading an image. `tiny` is configs/train/tiny.yaml; `full`
the paper's settings at batch 1, on the architecture of the paper with random weights (written once to the temporary
folder, 5 GB), prompts by RAM's Swin-L and HFIE, guidance 7.5 with a random negative prompt. A row is a size in pixels,
with /c behind it where gradient checkpointing is on. Other settings are given as in scripts/train.py: key=value.

`lpips-random` is LPIPS on a VGG-16 with random weights: it needs no download and costs what the real one costs.
Every row runs in a process of its own, whose whole memory is counted, loading included (on a GPU: what PyTorch
allocated there).
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from measure import (
    FULL,
    GB,
    clock,
    in_own_process,
    machine,
    markdown,
    peak_memory,
    photograph,
    weight_bytes,
    write_json,
    write_random_model,
)
from torch import nn

from osdhuman.images import save_png
from osdhuman.recipes import load_training
from osdhuman.recipes.osdhuman import OSDHumanRecipe, OSDHumanTraining
from osdhuman.recipes.perceptual import PerceptualLoss
from osdhuman.train.loop import Trainer, build_trainer

ROOT = Path(__file__).parents[1]
ROWS = {"tiny": ["96"], FULL: ["256", "256/c", "512/c"]}
ITERATIONS = {"tiny": (2, 10), FULL: (0, 1)}  # not counted, and counted


def main() -> int:
    args = parse_arguments()
    if args.model == FULL:
        base = write_random_model(Path(tempfile.gettempdir()) / "osdhuman-random-full") / "base"
        args.perceptual = args.perceptual or "lpips-random"
        args.settings = [f"model.base={base}", "batch_size=1", *args.settings]
    results = []
    for row in args.rows or ROWS[args.model]:
        results.append(in_own_process(measure, row, args))
        print(f"{row}: {results[-1]['seconds']:.2f} s, {results[-1]['peak_gb']:.2f} GB", file=sys.stderr)
    print(markdown(results))
    if args.json:
        write_json(args.json, {"machine": machine(args.device, args.threads), "results": results})
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", FULL), default="tiny")
    parser.add_argument("--rows", nargs="+", metavar="SIZE[/c]", help=f"without it: {ROWS}")
    parser.add_argument("--perceptual", choices=("lpips-random", "lpips", "stlpips", "none"), help="full: lpips-random")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    return parser.parse_args()


# ---- in the process of one row ----


def measure(row: str, args: argparse.Namespace) -> dict:
    torch.set_num_threads(args.threads)
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # accelerate would take a GPU that is there
    size, _, checkpointing = row.partition("/")
    with tempfile.TemporaryDirectory() as folder:
        save_png(Path(folder) / "photograph.png", photograph(int(size)))
        config = read_config(args, Path(folder), int(size), checkpointing == "c")
        trainer = build(config, args)
        seconds = iterate(trainer, *ITERATIONS[args.model])
    return {
        "size": int(size),
        "gradient_checkpointing": config.gradient_checkpointing,
        "seconds": round(float(np.median(seconds)), 3),
        "images_per_second": round(float(config.batch_size / np.median(seconds)), 4),
        "peak_gb": round(peak_memory(trainer.device) / GB, 2),
        "weights_gb": round(weight_bytes(*trainer.recipe.networks, trainer.recipe.perceptual) / GB, 2),
        "trained_parameters": sum(
            p.numel() for network in trainer.recipe.networks for p in network.parameters() if p.requires_grad
        ),
        "batch": config.batch_size,
        "precision": {"no": "float32"}.get(trainer.precision, trainer.precision),
        "perceptual": args.perceptual or config.perceptual,
        "cfg_scale": config.cfg_scale,
        "iterations": len(seconds),
        "device": trainer.device.type,
        "threads": args.threads,
    }


def read_config(args: argparse.Namespace, folder: Path, size: int, checkpointing: bool) -> OSDHumanTraining:
    data = f"data={{paths: {folder}, size: {size}, workers: 0}}"
    here = [data, f"run={folder / 'run'}", f"gradient_checkpointing={checkpointing}", "trackers=[]"]
    if args.perceptual:
        here.append(f"perceptual={'none' if args.perceptual == 'lpips-random' else args.perceptual}")
    path = ROOT / "configs" / "train" / "tiny.yaml" if args.model == "tiny" else None
    return load_training(path, [*here, *args.settings])


def build(config: OSDHumanTraining, args: argparse.Namespace) -> Trainer:
    trainer = build_trainer(config, OSDHumanRecipe)
    if args.perceptual == "lpips-random":
        trainer.recipe.perceptual = random_lpips().to(trainer.device)
    return trainer


def random_lpips() -> nn.Module:
    import lpips

    return PerceptualLoss(lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False))


def iterate(trainer: Trainer, warm_up: int, counted: int) -> list[float]:
    """Seconds of each counted iteration."""
    trainer.open_batches()
    seconds = []
    for _ in range(warm_up + counted):
        start = clock(trainer.device)
        losses = trainer.iterate()
        seconds.append(clock(trainer.device) - start)
        if not all(torch.isfinite(loss) for loss in losses.values()):
            raise FloatingPointError(f"a loss is not finite: {losses}")
        trainer.step += 1
    return seconds[warm_up:]


if __name__ == "__main__":
    sys.exit(main())
