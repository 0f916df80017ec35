"""Seconds and peak memory of restoring one picture, beside the stock call of the same network, in one run.

    python benchmarks/restore.py --model tiny --json benchmarks/results/restore_tiny.json
    python benchmarks/restore.py --model full --json benchmarks/results/restore_full.json

`full` is the architecture of the paper with random weights, written once to the temporary folder (5 GB). Rows:

- stock: as such models are mostly run: LoRA as peft's adapters, PyTorch's default memory layout, diffusers' modules;
- ours: what `OSDHuman.from_pretrained` gives: LoRA merged, channels_last, upsampling folded into its convolution;
- compiled (with --compile): ours with torch.compile; compiling itself is not counted and can take minutes.

Every row runs in a process of its own. Seconds are medians after one warm-up; where `cpu_seconds` is well below threads
times `total`, the machine was busy with something else, or a GPU did the work. Peak memory counts the whole process,
loading included (on a GPU: what PyTorch allocated there).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
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
from torch import Tensor, nn

from osdhuman import OSDHuman
from osdhuman.models.generator import Generator

STAGES = ("encoder", "vae_encode", "unet", "vae_decode")  # `encoder` is RAM's Swin and HFIE
TIMES = (*STAGES, "total", "cpu_seconds")


def main() -> int:
    args = parse_arguments()
    if args.model == FULL:
        args.model = str(write_random_model(Path(tempfile.gettempdir()) / "osdhuman-random-full"))
    pipelines = ("stock", "ours", "compiled") if args.compile else ("stock", "ours")
    results, images = [], {}
    for dtype in args.dtypes:
        for pipeline in pipelines:
            result, images[pipeline, dtype] = in_own_process(measure, pipeline, dtype, args)
            results.append(result)
            print(f"{pipeline} {dtype}: {result['total']:.2f} s, {result['peak_gb']:.2f} GB", file=sys.stderr)
    comparisons = [compare(results, images, dtype) for dtype in args.dtypes]
    print(markdown(results), markdown(comparisons), sep="\n\n")
    if args.json:
        described = machine(args.device, args.threads)
        write_json(args.json, {"machine": described, "results": results, "stock / ours": comparisons})
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, full, a model's folder or hub id")
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def compare(results: list[dict], images: dict[tuple[str, str], np.ndarray], dtype: str) -> dict:
    """Stock over ours, and how far their images lie apart (in [0,1]; both restore the same picture)."""
    stock, ours = (next(r for r in results if (r["pipeline"], r["dtype"]) == (p, dtype)) for p in ("stock", "ours"))
    ratios = {name: round(stock[name] / ours[name], 3) for name in (*TIMES, "peak_gb")}
    difference = np.abs(images["stock", dtype] - images["ours", dtype]).mean()
    return {"dtype": dtype} | ratios | {"mean_difference": float(f"{difference:.1e}")}


# ---- in the process of one row ----


@torch.no_grad()
def measure(pipeline: str, dtype: str, args: argparse.Namespace) -> tuple[dict, np.ndarray]:
    torch.set_num_threads(args.threads)
    device, image = torch.device(args.device), photograph(args.size)
    generator = build(pipeline, args.model, getattr(torch, dtype), device)
    image = image.to(device)
    restored = [*restore(generator, image)][-1]  # the warm-up
    medians = np.median([seconds(generator, image, device) for _ in range(args.rounds)], axis=0)
    result = {
        "pipeline": pipeline,
        "dtype": dtype,
        **{name: round(float(value), 4) for name, value in zip(TIMES, medians, strict=True)},
        "images_per_second": round(float(1 / medians[TIMES.index("total")]), 3),
        "peak_gb": round(peak_memory(device) / GB, 3),
        "weights_gb": round(weight_bytes(generator) / GB, 3),
        "size": args.size,
        "batch": 1,
        "device": args.device,
        "threads": args.threads,
    }
    return result, restored.float().cpu().numpy()


def build(pipeline: str, model: str, dtype: torch.dtype, device: torch.device) -> Generator:
    merge, compiled = pipeline != "stock", pipeline == "compiled"
    generator = OSDHuman.from_pretrained(model, dtype, device, merge=merge, compile=compiled).generator
    return generator if merge else as_stock(generator, dtype)


def as_stock(generator: Generator, dtype: torch.dtype) -> Generator:
    """Undo all that we do for speed: default layout of weights and inputs, the adapters in the weights' own dtype."""
    from diffusers.models.upsampling import Upsample2D
    from timm.models.swin_transformer import WindowAttention

    generator.unet.to(dtype), generator.vae.to(dtype)
    generator.to(memory_format=torch.contiguous_format)
    for network in (generator.vae.encoder, generator.vae.decoder, generator.unet):
        network.register_forward_pre_hook(default_layout)
    for module in generator.modules():
        if isinstance(module, WindowAttention):
            module.fused_attn = False
    for block in generator.vae.decoder.up_blocks:
        for i, folded in enumerate(block.upsamplers or ()):
            block.upsamplers[i] = Upsample2D(folded.conv.in_channels)
            block.upsamplers[i].use_conv, block.upsamplers[i].conv = True, folded.conv
    return generator


def default_layout(module: nn.Module, inputs: tuple) -> tuple:
    return (inputs[0].contiguous(), *inputs[1:])


def seconds(generator: Generator, image: Tensor, device: torch.device) -> list[float]:
    """Of each stage and of all by the clock; and of the processor, all threads together."""
    start, times = time.process_time(), [clock(device)]
    times += [clock(device) for _ in restore(generator, image)]
    return [*np.diff(times), times[-1] - times[0], time.process_time() - start]


def restore(generator: Generator, image: Tensor) -> Iterator[Tensor]:
    """`Generator.forward`, stage by stage; the last one gives the image."""
    prompt = generator.prompt_extractor(image)
    yield prompt
    z_lq = generator.encode(image)
    yield z_lq
    noise = generator.denoise(z_lq, prompt)
    yield noise
    yield generator.decode(generator.to_z_hat(z_lq, noise))


if __name__ == "__main__":
    sys.exit(main())
