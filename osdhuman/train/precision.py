"""Which floating-point type a run computes in."""

import warnings
from contextlib import nullcontext

import torch

from osdhuman.machine import has_fast_bfloat16

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(setting: str, device: torch.device) -> str:
    """`mixed_precision` with "auto" resolved for `device`: bf16 where the device is fast in it, else no.

    Warns where bf16 is asked for and the device emulates it.
    """
    fast = has_fast_bfloat16(device)
    if setting == "auto":
        return "bf16" if fast else "no"
    if setting == "bf16" and device.type == "cpu" and not fast:
        warnings.warn(
            "mixed_precision=bf16 on a CPU without AVX512_BF16 or AMX is several times slower than float32; "
            "mixed_precision=auto chooses float32 here",
            stacklevel=3,
        )
    return setting


def autocast(precision: str, device: torch.device) -> torch.autocast | nullcontext:
    """A context in which networks compute in `precision` (no, bf16 or fp16)."""
    return torch.autocast(device.type, DTYPES[precision]) if precision in DTYPES else nullcontext()
