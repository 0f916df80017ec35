"""Plan tiles and batch from the memory that is free."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from osdhuman.models.generator import Generator
from osdhuman.inference.config import MIN_TILE, CallConfig
from osdhuman.machine import free_memory

SHARE = 0.8  # of the free memory that a run may plan with
# Peaks measured on the CPU, in units of one activation: of the stage's widest full-size layer, and (the last two) of
# the deepest layer at the latent's size, for the part of a tiled VAE that runs on the whole image.
ENCODER_PEAK, DECODER_PEAK, UNET_PEAK, ENCODER_REST, DECODER_REST = 6, 4, 62, 5, 9
IMAGE_BYTES = 100  # per pixel: input, padded, restored and the colour fix, in float32


@dataclass(frozen=True)
class Plan:
    """How many images at a time, and the tiles of each stage in pixels."""

    batch: int
    encoder: int
    unet: int
    overlap: int
    decoder: int

    def smaller(self) -> "Plan | None":
        """The next step down: single images, then tiles of half the side; None when nothing is left to save."""
        if self.batch > 1:
            return replace(self, batch=1)
        sides = {name: _halved(getattr(self, name)) for name in ("encoder", "unet", "decoder")}
        smaller = replace(self, **sides, overlap=min(self.overlap, sides["unet"] // 4))
        return smaller if smaller != self else None

    def __str__(self) -> str:
        return f"batch {self.batch}, tiles of {self.encoder}, {self.unet} and {self.decoder} pixels in the three stages"


def _halved(tile: int) -> int:
    return max(MIN_TILE, tile // 2 // 64 * 64)


def make_plan(generator: "Generator", shape: Sequence[int], config: CallConfig) -> Plan:
    """The largest plan, from the settings downwards, whose estimated need fits into the memory that is free."""
    batch, _, height, width = shape
    height, width = height * config.upscale, width * config.upscale
    plan = Plan(batch, config.encoder_tile, config.unet_tile, config.unet_overlap, config.decoder_tile)
    free = SHARE * (config.memory * 2**30 if config.memory else free_memory(generator.abar.device))
    while max(estimate(generator, height, width, plan).values()) > free and plan.smaller() is not None:
        plan = plan.smaller()
    return plan


def require_memory(generator: "Generator", height: int, width: int, config: CallConfig) -> None:
    """Raise MemoryError if an input of `height` x `width` would not fit even in the smallest tiles.

    The limit is the free memory, or `config.memory` where that is more.
    """
    height, width = height * config.upscale, width * config.upscale
    needed = max(estimate(generator, height, width, Plan(1, MIN_TILE, MIN_TILE, 0, MIN_TILE)).values())
    available = max(free_memory(generator.abar.device), (config.memory or 0) * 2**30)
    if needed > available:
        raise MemoryError(
            f"{width} x {height} pixels take about {needed / 2**30:.1f} GiB even in tiles of {MIN_TILE}, "
            f"{available / 2**30:.1f} GiB are free"
        )


def estimate(generator: "Generator", height: int, width: int, plan: Plan) -> dict[str, float]:
    """Bytes that each stage needs beyond the weights, from the widths of the networks.

    In tiles, the layers at the latent's resolution still take the whole image.
    """
    vae, unet = generator.vae.config.block_out_channels, generator.unet.config.block_out_channels
    size = max(next(generator.vae.parameters()).element_size(), 3)  # half precision still has scratch in float32
    pixels, factor = height * width, generator.factor
    deepest = vae[-1] * size * pixels / factor**2

    def at_once(tile: int) -> float:
        return pixels * plan.batch if max(height, width) <= tile else min(1.25 * tile * tile, pixels)

    stages = {
        "encoder": ENCODER_PEAK * vae[0] * size * at_once(plan.encoder) + ENCODER_REST * deepest,
        "unet": UNET_PEAK * unet[0] * size * at_once(plan.unet) / factor**2,
        "decoder": DECODER_PEAK * vae[1] * size * at_once(plan.decoder) + DECODER_REST * deepest,
    }
    return {stage: need + IMAGE_BYTES * pixels * plan.batch for stage, need in stages.items()}


def free_cached(generator: "Generator") -> None:
    """Give back memory that PyTorch keeps for later."""
    gc.collect()
    if generator.abar.device.type == "cuda":
        torch.cuda.empty_cache()
