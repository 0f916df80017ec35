"""Tiny networks of the golden files of SeeSR, PASD and DiffBIR, whose parameters follow one rule from their names.

The numbers in tests/golden/{seesr,pasd,diffbir}_*.npz and multistep_samplers.npz were made by running the original code
on these parameters.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from osdhuman.inference.latent_tiles import gaussian_weights, starts
from osdhuman.models.samplers import Blend, weighted

GOLDEN = Path(__file__).parent / "golden"
UNET = {"block_out_channels": (32, 64, 128, 128), "norm_num_groups": 16, "cross_attention_dim": 96}


def keys(name: str) -> dict[str, dict]:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def image(stored: Tensor) -> Tensor:
    return stored.float() / 255


def parameter(name: str, shape: tuple[int, ...] | list[int], norm: bool = False, scale: float = 0.05) -> Tensor:
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape)) * scale + norm
    return torch.from_numpy(np.asarray(drawn).astype(np.float32))


def filled(network: nn.Module, official: Mapping[str, str] | None = None) -> nn.Module:
    """`official`: the names in the original code, where they differ."""
    norms = {f"{name}.weight" for name, m in network.named_modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)}
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            tensor.copy_(parameter((official or {}).get(name, name), tensor.shape, name in norms))
    return network.eval().requires_grad_(False)


def tiny_vae() -> nn.Module:
    return filled(
        AutoencoderKL(
            block_out_channels=(16, 32, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=8,
            latent_channels=4,
        )
    )


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def tiles(height: int, width: int, tile: int, overlap: int) -> Blend:
    windows = [
        (slice(y, y + tile), slice(x, x + tile))
        for y in starts(height, tile, overlap)
        for x in starts(width, tile, overlap)
    ]
    return weighted(windows, gaussian_weights(tile, tile))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference in units of the largest magnitude."""
    return ((ours - theirs.float()).abs().max() / theirs.float().abs().max()).item()


def on_meta(kind: type[nn.Module], **settings) -> nn.Module:
    with torch.device("meta"):
        return kind(**settings)


def shapes_as_state(shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Tensors without memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.state_dict())


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
