"""SeeSR from an image to the restored image."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from osdhuman.config import Config
from osdhuman.models.controlled.sizes import at_least, multiple_of, resized
from osdhuman.models.controlled.steps import FixColor, GuidedNetworks, decode, encode
from osdhuman.models.diffusion import add_noise, alphas_cumprod
from osdhuman.models.samplers import Blend, ddpm_scheduler, draw, sample_ddpm, whole

ADDED_PROMPT = "clean, high-resolution, 8k"
NEGATIVE_PROMPT = "dotted, noise, blur, lowres, smooth"
START = 999  # timestep of the noise in the first latent, though the first call of the networks is at 981


class SeeSRConfig(Config):
    """The published script's defaults, but for `upscale` (4 there; PERSONA's LQ images have their HQ's size)."""

    steps: int = Field(50, ge=1, le=1000)
    guidance: float = 5.5
    conditioning_scale: float = 1.0
    start: Literal["lr", "noise"] = "lr"  # the LQ image's latent with noise, or noise alone
    process_size: int = Field(512, ge=8)  # pixels; an image whose shorter side would be smaller is enlarged to it
    upscale: int = Field(1, ge=1)


class SeeSR(NamedTuple):
    """`unet` a SeeSRUNet, `controlnet` a SeeSRControlNet, `vae` that of Stable Diffusion 2-base."""

    unet: nn.Module
    controlnet: nn.Module
    vae: nn.Module


def seesr_prompt(tags: str, user: str = "") -> str:
    """The positive prompt of an image with `tags` "tag, tag": "tag, tag, ,clean, ..." where the user says nothing."""
    return f"{tags}, {user},{ADDED_PROMPT}"


@torch.no_grad()
def restore_seesr(
    networks: SeeSR,
    lq: Tensor,
    positive: Tensor,
    negative: Tensor,
    tokens: Tensor,
    generators: Sequence[torch.Generator],
    config: SeeSRConfig,
    fix_color: FixColor,
    blend: Blend = whole,
) -> Tensor:
    """Restore `lq` (B,3,H,W) in [0,1] -> float32 (B,3,upscale*H,upscale*W) in [0,1].

    Prompts (B or 1,77,1024); RAM's image tokens (B,145,512); one generator per image, whose draws are the latent, the
    start's noise and each step's. `fix_color` (AdaIN in the paper) gets the image that the networks saw as reference.
    """
    image = seesr_input(lq, config)
    z_lq = encode(networks.vae, image, generators) if config.start == "lr" else None
    z = sample_seesr(networks, image, z_lq, positive, negative, tokens, generators, config, blend)
    height, width = lq.shape[-2:]
    restored = fix_color(decode(networks.vae, z), image)
    return resized(restored, (height * config.upscale, width * config.upscale)).clamp(0, 1)


def seesr_input(lq: Tensor, config: SeeSRConfig) -> Tensor:
    """What the networks see of (B,3,H,W): enlarged to `process_size` and by `upscale`, resized to multiples of 8."""
    height, width = at_least(tuple(lq.shape[-2:]), config.process_size // config.upscale)
    image = resized(lq.float(), (height, width)).clamp(0, 1)
    size = (height * config.upscale, width * config.upscale)
    return resized(resized(image, size), multiple_of(size, 8)).clamp(0, 1)


def sample_seesr(
    networks: SeeSR,
    image: Tensor,
    z_lq: Tensor | None,
    positive: Tensor,
    negative: Tensor,
    tokens: Tensor,
    generators: Sequence[torch.Generator],
    config: SeeSRConfig,
    blend: Blend = whole,
) -> Tensor:
    """The restored latent (B,4,H/8,W/8) of `image` (B,3,H,W), whose latent is `z_lq`; None to start from noise."""
    shape = (len(image), networks.unet.config.in_channels, *(side // 8 for side in image.shape[-2:]))
    x = draw(generators, image.new_empty(shape))
    if z_lq is not None:
        x = add_noise(z_lq, x, torch.full((len(x),), START), alphas_cumprod().to(x.device))
    guided = GuidedNetworks(
        networks.unet,
        networks.controlnet,
        image,
        8,
        positive,
        negative,
        lambda t: config.guidance,
        config.conditioning_scale,
        {"image_tokens": tokens},
    )
    return sample_ddpm(guided.predict(blend), x, ddpm_scheduler(config.steps, "leading"), generators)
