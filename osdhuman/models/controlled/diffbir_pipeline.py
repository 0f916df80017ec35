"""DiffBIR from an image to the restored image: a first stage that cleans, and a second that draws the detail."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from osdhuman.config import Config
from osdhuman.models.controlled.cleaners import Kind, clean
from osdhuman.models.controlled.diffbir import Version
from osdhuman.models.controlled.sizes import padded, resized
from osdhuman.models.controlled.steps import FixColor, GuidedNetworks, decode, encode
from osdhuman.models.diffusion import alphas_cumprod
from osdhuman.models.samplers import (
    Blend,
    Predict,
    Prediction,
    ddpm_scheduler,
    draw,
    rescaled_guidance,
    sample_ddpm,
    sample_dpm3m_sde,
    whole,
    zero_snr_abar,
)

UNIT = 64  # pixels; sides of the second stage's image are padded to multiples of it
DEFAULTS: dict[Version, dict[str, Any]] = {
    "v2": {"cleaner": "bsrnet", "sampler": "spaced", "steps": 50, "guidance": 4.0},
    "v2.1": {"cleaner": "swinir", "sampler": "dpm3m_sde", "steps": 10, "guidance": 6.0},  # the README's example: 8.0
}
POSITIVE_PROMPT: dict[Version, str] = {
    "v2": "",
    "v2.1": "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper detailed photo - "
    "realistic maximum detail, 32k, Color Grading, ultra HD, extreme meticulous detailing, skin pore detailing, "
    "hyper sharpness, perfect without deformations.",
}
NEGATIVE_PROMPT: dict[Version, str] = {
    "v2": "low quality, blurry, low-resolution, noisy, unsharp, weird textures",
    "v2.1": "painting, oil painting, illustration, drawing, art, sketch, oil painting, cartoon, CG Style, 3D render, "
    "unreal engine, blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, jpeg artifacts, "
    "deformed, lowres, over-smooth.",
}


class DiffBIRConfig(Config):
    """Settings that are not given take the values of the version: v2's README, v2.1's script.

    `upscale` is 4 in the published script; PERSONA's LQ images have their HQ's size.
    """

    version: Version = "v2.1"
    cleaner: Kind
    sampler: Literal["spaced", "dpm3m_sde"]
    steps: int = Field(ge=2, le=1000)
    guidance: float
    rescale_guidance: bool = False  # the guidance grows from 1 to 1 + `guidance`
    strength: float = 1.0  # of the ControlNet
    upscale: int = Field(1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _of_the_version(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**DEFAULTS.get(str(values.get("version")), DEFAULTS["v2.1"]), **values}

    @property
    def prediction(self) -> Prediction:
        """What the version's UNet predicts."""
        return "v_prediction" if self.version == "v2.1" else "epsilon"


class DiffBIR(NamedTuple):
    """`unet` and `controlnet` (an IRControlNet) of the version, `vae` of Stable Diffusion 2.1-base, the first stage."""

    unet: nn.Module
    controlnet: nn.Module
    vae: nn.Module
    cleaner: nn.Module


def diffbir_prompt(caption: str, version: Version) -> str:
    """The positive prompt: caption and the version's prompt; empty parts are left out."""
    return ", ".join(part for part in (caption, POSITIVE_PROMPT[version]) if part)


@torch.no_grad()
def restore_diffbir(
    networks: DiffBIR,
    lq: Tensor,
    positive: Tensor,
    negative: Tensor,
    generators: Sequence[torch.Generator],
    config: DiffBIRConfig,
    fix_color: FixColor,
    blend: Blend = whole,
) -> Tensor:
    """Restore `lq` (B,3,H,W) in [0,1] -> float32 (B,3,upscale*H,upscale*W) in [0,1].

    Prompts (B or 1,77,1024); one generator per image, whose draws are the start and each step's noise. `fix_color`
    (wavelet in the published script) gets the first stage's image as reference, not the LQ.
    """
    cleaned = clean(networks.cleaner, config.cleaner, lq.float(), config.upscale)
    condition = encode(networks.vae, padded(cleaned, UNIT))
    z = sample_diffbir(networks, condition, positive, negative, generators, config, blend)
    height, width = cleaned.shape[-2:]
    restored = fix_color(decode(networks.vae, z)[..., :height, :width], cleaned)
    return resized(restored, tuple(side * config.upscale for side in lq.shape[-2:])).clamp(0, 1)


def sample_diffbir(
    networks: DiffBIR,
    condition: Tensor,
    positive: Tensor,
    negative: Tensor,
    generators: Sequence[torch.Generator],
    config: DiffBIRConfig,
    blend: Blend = whole,
) -> Tensor:
    """The restored latent (B,4,h,w) from pure noise; `condition` (B,4,h,w) is the latent of the cleaned image."""

    def guidance(t: int) -> float:
        return rescaled_guidance(config.guidance, t) if config.rescale_guidance else config.guidance

    guided = GuidedNetworks(
        networks.unet, networks.controlnet, condition, 1, positive, negative, guidance, config.strength
    )
    return _sample(guided.predict(blend), draw(generators, condition), generators, config)


def _sample(predict: Predict, x: Tensor, generators: Sequence[torch.Generator], config: DiffBIRConfig) -> Tensor:
    ends_in_noise = config.version == "v2.1"
    if config.sampler == "spaced":
        scheduler = ddpm_scheduler(config.steps, "linspace", config.prediction, ends_in_noise)
        return sample_ddpm(predict, x, scheduler, generators)
    abar = zero_snr_abar() if ends_in_noise else alphas_cumprod()
    return sample_dpm3m_sde(predict, x, config.steps, abar, config.prediction, partial(draw, generators))
