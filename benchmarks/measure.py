"""What the benchmarks share: a process for each row, seconds, peak memory, the machine, and the table of results."""

import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdhuman.machine import peak_of_this_process

GB = 1e9
FULL = "full"  # the name of the model of full size with random weights, see `write_random_model`


def in_own_process(function: Callable, *arguments: Any) -> Any:
    """Call `function` in a fresh process, whose peak memory is then that of this call alone."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def clock(device: torch.device) -> float:
    """Seconds, read when `device` has finished all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held so far: resident ones, or of the GPU where one works."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_of_this_process()


def weight_bytes(*modules: nn.Module) -> int:
    """Bytes of all parameters and buffers; tensors that modules share count once."""
    tensors = {t.data_ptr(): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def photograph(size: int) -> Tensor:
    """Scikit-image's astronaut, (1,3,size,size) in [0,1]."""
    from skimage.data import astronaut

    pixels = torch.from_numpy(astronaut()).permute(2, 0, 1)[None] / 255
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


def write_random_model(folder: Path) -> Path:
    """A model folder of full size with random weights, 5 GB: SD-2.1-base, RAM's Swin-L, HFIE, LoRA that does something.

    It is read like any other model, so that loading and its memory are measured too. Written once, then reused.
    """
    if not (folder / "model.safetensors").exists():
        print(f"writing a random model of full size to {folder} (5 GB)", file=sys.stderr)
        in_own_process(_write_random_model, folder)
    return folder


def _write_random_model(folder: Path) -> None:
    from safetensors.torch import save_file

    from osdhuman.models.base import load_base, random_base
    from osdhuman.models.build import OSDHumanConfig, build_generator
    from osdhuman.models.ram import RAMConfig, RAMEncoder, save_ram_encoder
    from osdhuman.pretrained import OSDHuman

    torch.manual_seed(0)
    base, path = random_base(), folder / "base"
    for part in ("unet", "vae"):
        getattr(base, part).save_pretrained(path / part)
    save_ram_encoder(RAMEncoder(RAMConfig()), path / "encoder")
    save_file({"null_prompt": torch.randn(1, 77, 1024)}, path / "null_prompt.safetensors")
    schedule = {
        "prediction_type": "epsilon",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    }
    (path / "scheduler").mkdir(exist_ok=True)
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    base, config = load_base(path), OSDHumanConfig(base="./base")
    generator = build_generator(config, base)
    for name, parameter in generator.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.01)
    OSDHuman(config, generator, base).save_pretrained(folder)


def machine(device: str, threads: int) -> dict[str, str | int]:
    described = {"processor": processor(), "cores": os.cpu_count(), "threads": threads, "torch": torch.__version__}
    if torch.device(device).type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor that Linux has no name for
        return platform.processor() or platform.machine()


def markdown(results: list[dict[str, Any]]) -> str:
    """A Markdown table, one row per result; the names of the values are the heads of its columns."""
    heads = list(results[0])
    lines = [heads, ["---"] * len(heads), *([_cell(row[head]) for head in heads] for row in results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.part").write_text(json.dumps(content, indent=1) + "\n")
    os.replace(f"{path}.part", path)
