"""The machine a run works on: devices, precision, free memory, worker processes."""

import multiprocessing
import os
import sys
import threading
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import psutil
import torch

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


def end_with_parent() -> None:
    """Called in a worker: it ends when its parent does. One killed by -9 cannot tell it, and it would wait for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def find_device(name: str = "auto") -> str:
    """`name` itself; for "auto" the best that there is of cuda, mps and cpu."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def free_memory(device: torch.device) -> int:
    """Bytes that a run on `device` may still take, within the limit of a container where there is one."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return min(psutil.virtual_memory().available, _container_free())


def _container_free() -> float:
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    try:
        return int(limit.read_text()) - int(used.read_text())
    except (OSError, ValueError):  # not Linux, not a container, or "max": no limit
        return float("inf")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: CUDA has a class for it, the CPU's allocator only a message."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


def peak_of_this_process() -> int:
    """The most bytes that were resident so far."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage, which on Linux starts from the size of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def has_fast_bfloat16(device: str | torch.device) -> bool:
    """Whether `device` multiplies bfloat16 faster than float32: CUDA, and CPUs with AVX512_BF16 or AMX.

    Other CPUs emulate it: there a bfloat16 training step takes about seven times as long as a float32 one.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported()
    return kind == "cpu" and bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def cpu_flags() -> frozenset[str]:
    """Instruction sets of this CPU by their names in /proc/cpuinfo; empty where that file does not exist."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())


def find_dtype(name: "DtypeName | torch.dtype", device: str | torch.device) -> torch.dtype:
    """The precision called `name`; "auto" is bfloat16 where `device` multiplies it fast, else float32.

    Warns once where bfloat16 is asked for on a CPU that emulates it.
    """
    if isinstance(name, torch.dtype):
        return name
    if name not in get_args(DtypeName):
        raise ValueError(f"dtype must be a torch dtype or one of {', '.join(get_args(DtypeName))}, got {name!r}")
    if name == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    if name == "bfloat16" and not has_fast_bfloat16(device):
        warn_of_slow_bfloat16(str(device))
    return getattr(torch, name)


@lru_cache
def warn_of_slow_bfloat16(device: str) -> None:
    """Said once for each device."""
    warnings.warn(f"{device} has no bfloat16 instructions: float32 is faster here (set dtype=auto)", stacklevel=3)
