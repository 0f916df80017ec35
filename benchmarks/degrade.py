"""How many images a second the degradation makes on one core, beside the public per-image pipeline, in one run.

    python benchmarks/degrade.py --json degrade.json

The other side needs `basicsr` 1.4.2, which osdhuman does not depend on; without it only ours is measured:

    pip install --no-deps --target /tmp/reference basicsr && PYTHONPATH=/tmp/reference python benchmarks/degrade.py

Every row runs in a process of its own (for its peak memory) and takes turns with the others, so that a busy machine
slows all alike. Figures are medians over the rounds; `cpu s` counts only the time in which the process really ran.
"""

import argparse
import importlib
import importlib.util
import json
import math
import multiprocessing
import platform
import random
import sys
import time
import types
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from osdhuman.data.degradation import Degradation, DegradationConfig, OrderConfig
from osdhuman.machine import peak_of_this_process

MODES = ("area", "bilinear", "bicubic")
KERNEL_TYPES = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")

Pipeline = Callable[[Tensor, int], Tensor]  # (hq (B,3,H,W), number of the first image) -> lq


def main() -> int:
    args = parse_arguments()
    rows = [("ours", usm, args.device) for usm in (False, True)]
    if importlib.util.find_spec("basicsr"):
        rows += [("reference", usm, "cpu") for usm in (False, True)]
    else:
        print("basicsr is not installed: only ours is measured (see the head of this file)", file=sys.stderr)
    results = measure(rows, args)
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8, help="of ours; the reference makes one image at a time")
    parser.add_argument("--images", type=int, default=64, help="images per round of ours; slower rows make fewer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def measure(rows: list[tuple[str, bool, str]], args: argparse.Namespace) -> list[dict]:
    spawn = multiprocessing.get_context("spawn")
    workers = [ProcessPoolExecutor(1, spawn, set_up, (*row, args.size, args.threads)) for row in rows]
    counts = [args.images if name == "ours" else max(args.images // (16 if usm else 4), 1) for name, usm, _ in rows]
    batches = [args.batch if name == "ours" else 1 for name, _, _ in rows]
    times: list[list[tuple[float, float]]] = [[] for _ in rows]
    for turn in range(args.rounds):
        for worker, count, batch, spent in zip(workers, counts, batches, times, strict=True):
            spent.append(worker.submit(run, count, batch, turn * count).result())
    peaks = [worker.submit(peak_memory).result() for worker in workers]
    medians = [np.median(spent, axis=0) / count for spent, count in zip(times, counts, strict=True)]
    return [
        {
            "pipeline": name,
            "usm": usm,
            "seconds": round(float(wall), 4),
            "cpu_seconds": round(float(cpu), 4),
            "images_per_second": round(float(1 / wall), 2),
            "peak_memory_mb": round(peak),
            "device": device,
            "dtype": "float32",
            "batch": batch,
        }
        for (name, usm, device), (wall, cpu), batch, peak in zip(rows, medians, batches, peaks, strict=True)
    ]


# ---- in the process of one row ----


def set_up(name: str, usm: bool, device: str, size: int, threads: int) -> None:
    global pipeline, image
    import cv2

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    image = photograph(size).to(device)
    pipeline = ours(usm) if name == "ours" else reference(usm)
    pipeline(image.expand(2, -1, -1, -1) if name == "ours" else image, 0)  # fills tables, warms up


def photograph(size: int) -> Tensor:
    from skimage.data import astronaut

    pixels = torch.from_numpy(astronaut()).permute(2, 0, 1)[None] / 255
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


def run(count: int, batch: int, first: int) -> tuple[float, float]:
    """Wall and processor seconds of `count` images."""
    start, cpu_start = time.perf_counter(), time.process_time()
    for done in range(0, count, batch):
        pipeline(image.expand(batch, -1, -1, -1), first + done)
    if image.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - cpu_start


def peak_memory() -> float:
    """MB of this process, or of the GPU where one works."""
    if image.is_cuda:
        return torch.cuda.max_memory_allocated() / 1e6
    return peak_of_this_process() / 1e6


def ours(usm: bool) -> Pipeline:
    degradation = Degradation(DegradationConfig(usm=usm))
    return lambda hq, first: degradation(hq, 0, range(first, first + len(hq)))


# ---- the reference: Real-ESRGAN's order of stages, built from basicsr's operations, one image at a time ----


def load_basicsr() -> tuple[types.ModuleType, types.ModuleType, types.ModuleType]:
    """basicsr's degradations, JPEG and filters, without its package-wide imports and on current torchvision."""
    from torchvision.transforms import functional

    sys.modules.setdefault("torchvision.transforms.functional_tensor", functional)  # the name of torchvision < 0.17
    root = Path(importlib.util.find_spec("basicsr").origin).parent
    for name in ("basicsr", "basicsr.data", "basicsr.utils"):
        package = sys.modules.setdefault(name, types.ModuleType(name))
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    names = ("basicsr.data.degradations", "basicsr.utils.diffjpeg", "basicsr.utils.img_process_util")
    return tuple(importlib.import_module(name) for name in names)


def reference(usm: bool) -> Pipeline:
    degradations, diffjpeg, filters = load_basicsr()
    settings, jpeg, sharpen = DegradationConfig(), diffjpeg.DiffJPEG(differentiable=False), filters.USMSharp()

    def kernel(order: OrderConfig) -> Tensor:
        size = random.randrange(7, 22, 2)
        if random.random() < order.sinc_prob:
            low = math.pi / (3 if size < 13 else 5)
            values = degradations.circular_lowpass_kernel(random.uniform(low, math.pi), size, pad_to=21)
        else:
            ranges = (order.blur_sigma, order.blur_sigma, (-math.pi, math.pi))
            betas = (order.beta_generalized, order.beta_plateau)
            values = degradations.random_mixed_kernels(KERNEL_TYPES, order.kernel_weights, size, *ranges, *betas)
        values = np.pad(values, (21 - len(values)) // 2)
        return torch.from_numpy(values).float()[None]

    def factor(order: OrderConfig) -> float:
        low, high = order.resize_range
        return random.choices((random.uniform(1, high), random.uniform(low, 1), 1.0), order.resize_weights)[0]

    def noise(image: Tensor, order: OrderConfig) -> Tensor:
        if random.random() < order.gaussian_prob:
            return degradations.random_add_gaussian_noise_pt(image, order.gaussian_sigma, order.gray_prob)
        return degradations.random_add_poisson_noise_pt(image, order.poisson_scale, order.gray_prob)

    def compress(image: Tensor, order: OrderConfig) -> Tensor:
        quality = torch.empty(len(image)).uniform_(*order.jpeg_quality)
        return jpeg(image.clamp(0, 1), quality=quality)

    def shrink(image: Tensor, low: tuple[int, int]) -> Tensor:
        image = F.interpolate(image, low, mode=random.choice(MODES))
        if random.random() >= settings.final_sinc_prob:
            return image
        cutoff, size = random.uniform(math.pi / 3, math.pi), random.randrange(7, 22, 2)
        sinc = degradations.circular_lowpass_kernel(cutoff, size, pad_to=21)
        return filters.filter2D(image, torch.from_numpy(sinc).float()[None])

    def degrade(hq: Tensor) -> Tensor:
        height, width = hq.shape[-2:]
        low = (height // settings.scale, width // settings.scale)
        image = filters.filter2D(sharpen(hq) if usm else hq, kernel(settings.first))
        image = F.interpolate(image, scale_factor=factor(settings.first), mode=random.choice(MODES))
        image = compress(noise(image, settings.first), settings.first)
        if random.random() < settings.second.blur_prob:
            image = filters.filter2D(image, kernel(settings.second))
        scale = factor(settings.second)
        size = (int(height / settings.scale * scale), int(width / settings.scale * scale))
        image = noise(F.interpolate(image, size, mode=random.choice(MODES)), settings.second)
        if random.random() < settings.jpeg_last_prob:
            image = compress(shrink(image, low), settings.second)
        else:
            image = shrink(compress(image, settings.second), low)
        image = F.interpolate(image, (height, width), mode=random.choice(MODES))
        return (image * 255).round().clamp(0, 255) / 255

    @torch.no_grad()
    def pipeline(hq: Tensor, first: int) -> Tensor:
        random.seed(first), np.random.seed(first), torch.manual_seed(first)
        return torch.cat([degrade(one[None]) for one in hq])

    return pipeline


# ---- reporting ----


def machine() -> dict[str, str]:
    return {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}


def table(results: list[dict]) -> str:
    head = "pipeline   usm   s/image  cpu s/image  images/s  peak MB  device  dtype    batch"
    lines = [
        f"{r['pipeline']:<9}  {'on' if r['usm'] else 'off':<3} {r['seconds']:>9.4f} {r['cpu_seconds']:>12.4f} "
        f"{r['images_per_second']:>9.2f} {r['peak_memory_mb']:>8}  {r['device']:<6}  {r['dtype']}  {r['batch']:>5}"
        for r in results
    ]
    return "\n".join([head, *lines, *ratios(results)])


def ratios(results: list[dict]) -> list[str]:
    rows = {(r["pipeline"], r["usm"]): r for r in results}
    lines = []
    for usm in (False, True):
        if ("reference", usm) in rows:
            wall, cpu = (rows["reference", usm][k] / rows["ours", usm][k] for k in ("seconds", "cpu_seconds"))
            lines.append(f"reference / ours, USM {'on' if usm else 'off'}: {wall:.1f}x by the clock, {cpu:.1f}x of CPU")
    return lines


if __name__ == "__main__":
    sys.exit(main())
