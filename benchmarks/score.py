"""How fast are images scored? Ours (`osdhuman.metrics.folder`) against pyiqa called with one file at a time.

    python benchmarks/score.py --images 16 --json benchmarks/results/score.json
    python benchmarks/score.py --device cuda --images 128 --batch 16

Both read PNGs of 512x512 from disk and score them by the same metrics. Ours reads an image once for all metrics,
hashes it and writes the files of scores; on a GPU it scores in batches, on a CPU one by one. The two take turns, and
the fastest round of each counts.

On a CPU the gain comes from filtering: 77 % of NIQE's time is torch's convolution in float64, which is slow there, and
which `osdhuman.metrics.backends.pyiqa` replaces by a sum of shifted images. Batches gain nothing on one
core (they take a tenth longer).
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from osdhuman.images import save_png
from osdhuman.metrics.backends.pyiqa import create
from osdhuman.metrics.folder import measure
from osdhuman.metrics.table import METRICS

SIDE = 512
ROUNDS = 3
PYIQA = [name for name, metric in METRICS.items() if metric.backend == "pyiqa" and not metric.reference]


def draw(folder: Path, images: int) -> list[Path]:
    """Texture on all scales, as photographs have it; naturalness metrics take the same time for any image."""
    paths = [folder / f"{i:04}.png" for i in range(images)]
    for i, path in enumerate(paths):
        generator = torch.Generator().manual_seed(i)
        image = torch.zeros(1, 3, SIDE, SIDE)
        for scale in (1, 2, 4, 8, 16, 32, 64):
            noise = torch.rand(1, 3, SIDE // scale, SIDE // scale, generator=generator)
            image += scale * torch.nn.functional.interpolate(noise, size=(SIDE, SIDE), mode="bilinear")
        save_png(path, ((image - image.amin()) / (image.amax() - image.amin()))[0])
    return paths


def one_by_one(paths: list[Path], metrics: list[str], device: str) -> Callable[[], None]:
    """pyiqa's own way: a metric is called with a path. The parameters are those that we package."""
    models = [create(METRICS[name], torch.device(device)) for name in metrics]

    def work() -> None:
        for path in paths:
            for model in models:
                float(model(str(path)))

    return work


def ours(folder: Path, metrics: list[str], device: str, batch: int) -> Callable[[], None]:
    def work() -> None:
        with tempfile.TemporaryDirectory() as scores:
            measure(folder, Path(scores, "scores"), metrics, device=device, batch=batch)

    return work


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Wall clock and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(images: int, metrics: list[str], device: str, batch: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        paths = draw(Path(folder), images)
        ways = {
            "pyiqa one by one": one_by_one(paths, metrics, device),
            "ours": ours(Path(folder), metrics, device, batch),
        }
        for way in ways.values():  # not counted: imports, first use of a device
            way()
        times = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                times[name].append(seconds(way))
    rates = {
        name: {
            "images_per_second": images / min(wall for wall, _ in rounds),
            "cpu_seconds_per_image": min(cpu for _, cpu in rounds) / images,
        }
        for name, rounds in times.items()
    }
    ratio = rates["ours"]["images_per_second"] / rates["pyiqa one by one"]["images_per_second"]
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    setting = {
        "side": SIDE,
        "images": images,
        "metrics": metrics,
        "batch": batch,
        "rounds": ROUNDS,
        "cores": os.cpu_count(),
    }
    return {"device": name, "torch": torch.__version__, **setting, **rates, "ours_to_pyiqa": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--metrics", nargs="+", default=["niqe", "brisque"], choices=PYIQA)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = compare(arguments.images, arguments.metrics, arguments.device, arguments.batch)
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
