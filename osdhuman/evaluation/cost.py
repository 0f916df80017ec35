"""What restoring an image costs: seconds, peak memory, parameters, multiply-adds, and the prompt network's share."""

import multiprocessing
import pickle
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from osdhuman.machine import cpu_flags, peak_of_this_process
from osdhuman.restorers import Restorer, describe

INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"}  # best first


@torch.no_grad()
def cost(build: Callable[[], Restorer], size: int = 512, rounds: int = 10, batch: int = 1) -> dict[str, Any]:
    """Measure what `build()` loads on noise (batch,3,size,size); seconds and MACs are per image, after a first call.

    Memory is what PyTorch allocated on the GPU, weights included, or else the resident memory of a fresh process that
    builds the restorer and restores once; for that `build` must be picklable (ValueError). MACs are those of
    convolutions, matrix products and attention. Processor seconds well below threads times seconds tell of a machine
    that was busy with something else, or of a GPU that did the work. Values that a method does not have are None: the
    MACs of one without networks, the trained parameters of one that does not tell. `parts` has the networks one by one.
    """
    restorer = build()
    networks = restorer.modules() if hasattr(restorer, "modules") else {}
    first = next((p for network in networks.values() for p in network.parameters()), torch.zeros(()))
    lq = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(first.device)
    call = partial(restorer.restore, lq, list(range(batch)))
    call()
    busy = time.process_time()
    seconds, spent = _seconds(call, networks, rounds, first.device)
    busy = time.process_time() - busy
    macs, counted = count_macs(call, networks)
    parts = {
        name: {
            "parameters": count_parameters(network),
            "macs": counted[name] / batch,
            "seconds": statistics.median(spent[name]) / batch,
        }
        for name, network in networks.items()
    }
    said = describe(restorer)
    prompt = parts.get("prompt")
    return {
        "restorer": restorer.name,
        "size": size,
        "batch": batch,
        "rounds": rounds,
        "seconds_median": statistics.median(seconds) / batch,
        "seconds_p95": float(np.percentile(seconds, 95)) / batch,
        "cpu_seconds_mean": busy / rounds / batch,
        "peak_memory_bytes": _peak_memory(build, restorer, lq),
        "memory": "allocated on the GPU" if first.device.type == "cuda" else "resident, whole process",
        "parameters": count_parameters(*networks.values()),
        "trained_parameters": said.get("trained_parameters"),
        "macs": macs / batch if networks else None,
        "lora_merged": said.get("merged"),
        "prompt_included": prompt is not None,
        "prompt_share_of_seconds": prompt["seconds"] / statistics.median(seconds) * batch if prompt else None,
        "prompt_share_of_macs": prompt["macs"] * batch / macs if prompt and macs else None,
        "device": str(first.device),
        "device_name": _device_name(first.device),
        "instructions": instruction_set(first.device, cpu_flags()),
        "dtype": str(first.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "parts": parts,
    }


def count_parameters(*networks: nn.Module) -> int:
    """All weights; those that networks share count once."""
    return sum(p.numel() for p in {p for network in networks for p in network.parameters()})


def count_macs(
    call: Callable[[], Any], networks: Mapping[str, nn.Module] | None = None
) -> tuple[float, dict[str, float]]:
    """Multiply-adds of one call, and those inside each of `networks`.

    Attention is written out for it, since not every fused kernel is known to PyTorch's counter.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        counter = FlopCounterMode(display=False)
        with counter, sdpa_kernel(SDPBackend.MATH), attributed(networks or {}, counter.get_total_flops) as spent:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() / 2, {name: flops / 2 for name, flops in spent.items()}


@contextmanager
def attributed(networks: Mapping[str, nn.Module], read: Callable[[], float]) -> Iterator[dict[str, float]]:
    """By how much `read()` grows inside the calls of each network or of its children, by which a VAE is called."""
    spent, depth, start = dict.fromkeys(networks, 0.0), dict.fromkeys(networks, 0), {}

    def enter(name: str, *_: Any) -> None:
        depth[name] += 1
        if depth[name] == 1:
            start[name] = read()

    def leave(name: str, *_: Any) -> None:
        depth[name] -= 1
        if depth[name] == 0:
            spent[name] += read() - start[name]

    handles = []
    for name, network in networks.items():
        for module in (network, *network.children()):
            handles.append(module.register_forward_pre_hook(partial(enter, name)))
            handles.append(module.register_forward_hook(partial(leave, name)))
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def _seconds(
    call: Callable[[], Any], networks: Mapping[str, nn.Module], rounds: int, device: torch.device
) -> tuple[list[float], dict[str, list[float]]]:
    """Of each call, and of each network in it; on a GPU these wait for its work, microseconds each."""
    seconds: list[float] = []
    parts: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(rounds):
        start = _clock(device)
        with attributed(networks, partial(_clock, device)) as spent:
            call()
        seconds.append(_clock(device) - start)
        for name in networks:
            parts[name].append(spent[name])
    return seconds, parts


def _clock(device: torch.device) -> float:
    """Seconds, read when `device` has finished all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_memory(build: Callable[[], Restorer], restorer: Restorer, lq: Tensor) -> int:
    if lq.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(lq.device)
        restorer.restore(lq, list(range(len(lq))))
        return torch.cuda.max_memory_allocated(lq.device)
    try:
        pickle.dumps(build)
    except Exception as error:  # pickle raises nearly anything
        raise ValueError(
            f"restorer {restorer.name!r} cannot be built in a process of its own, in which memory is measured: "
            f"{error}. Give a function of a module, or a partial of one, not a lambda"
        ) from error
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_of_restoring, build, lq.numpy(force=True), torch.get_num_threads()).result()


@torch.no_grad()
def _peak_of_restoring(build: Callable[[], Restorer], lq: np.ndarray, threads: int) -> int:
    """Build a restorer and restore once; the most bytes that the process ever held."""
    torch.set_num_threads(threads)
    build().restore(torch.from_numpy(lq), list(range(len(lq))))
    return peak_of_this_process()


def instruction_set(device: torch.device, flags: frozenset[str]) -> str | None:
    """The best instruction set of a CPU with these flags for matrix products; None on a GPU or where none is known."""
    if device.type != "cpu":
        return None
    return next((name for flag, name in INSTRUCTIONS.items() if flag in flags), None)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = next((line.partition(":")[2].strip() for line in names if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()
