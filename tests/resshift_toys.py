"""Parameters, inputs and stand-ins of the golden files of ResShift and SinSR, which follow one rule from their names.

The numbers in tests/golden/resshift_*.npz and sinsr.npz were made by running the original networks and samplers, on a
CPU and in float32, on these tensors.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdhuman.models.resshift.unet import SwinUNet, UNetConfig
from osdhuman.models.resshift.vq import VQAutoencoder, VQConfig

GOLDEN = Path(__file__).parent / "golden"
KEYS = json.loads((GOLDEN / "resshift_keys.json").read_text())

TINY_UNET = UNetConfig(model_channels=32, swin_embed_dim=64)
TINY_VQ = VQConfig(ch=32, n_embed=128)


def golden(name: str) -> dict[str, Tensor]:
    """Arrays of a golden file by name, numbers only."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].dtype.kind != "U"}


def normal(seed: int, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    return torch.from_numpy((np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32))


def filled(module: nn.Module, scale: float = 0.02) -> nn.Module:
    """Give every parameter the golden value that its official name and its shape stand for."""
    norms = {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.GroupNorm)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(parameter.shape)) * scale
            parameter.copy_(torch.from_numpy((value + (name in norms)).astype(np.float32)))
    return module.requires_grad_(False)


def tiny_unet(scale: float = 0.02, **sizes: int) -> SwinUNet:
    return filled(SwinUNet(TINY_UNET.model_copy(update=sizes)), scale)


def tiny_vq(scale: float = 0.02) -> VQAutoencoder:
    return filled(VQAutoencoder(TINY_VQ), scale)


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """The largest difference is at most `tolerance` of the largest value."""
    assert ours.shape == theirs.shape
    difference = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()
    assert difference <= tolerance, f"differs by {difference:.2e} of the maximum"


# Stand-ins for the networks


class StandIn:
    """A network of three numbers: a tanh(x) + b lq + c t."""

    def __init__(self, a: float = 0.7, b: float = 0.2, c: float = 0.01):
        self.a, self.b, self.c = a, b, c

    def __call__(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        return self.a * x.tanh() + self.b * lq + self.c * t.float()[:, None, None, None]


def encode(image: Tensor) -> Tensor:
    return F.avg_pool2d(image, 4)


def decode(z: Tensor) -> Tensor:
    return F.interpolate(z, scale_factor=4, mode="nearest")


def given(*noises: Tensor):
    """Noise that is these tensors, one after the other."""
    remaining = iter(noises)
    return lambda like: next(remaining)
