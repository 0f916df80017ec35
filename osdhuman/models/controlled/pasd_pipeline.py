"""PASD from an image to the restored image."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from osdhuman.config import Config
from osdhuman.models.controlled.sizes import at_least, multiple_of, resized
from osdhuman.models.controlled.steps import FixColor, GuidedNetworks, decode, encode
from osdhuman.models.diffusion import add_noise, alphas_cumprod
from osdhuman.models.samplers import Blend, draw, sample_unipc, unipc_scheduler, whole

ADDED_PROMPT = "clean, high-resolution, 8k"
NEGATIVE_PROMPT = "blurry, dotted, noise, raster lines, unclear, lowres, over-smoothed"
CAPTION_WORDS = {"blurry": "clear", "noisy": "clean"}  # replaced in a caption
START = 999


class PASDConfig(Config):
    """The published script's defaults since March 2024."""

    steps: int = Field(20, ge=1, le=1000)
    guidance: float = 9.0
    conditioning_scale: float = 1.0
    start: Literal["lr", "noise"] = "lr"
    added_noise_level: int = Field(900, ge=0, lt=1000)  # timestep of the second noise on the start
    # "released": a level that is not among the sampler's timesteps is replaced by the last of them (50 for 20 steps);
    # diffusers 0.25 and later, PASD's requirement since January 2024, do so. "paper": the level itself.
    added_noise: Literal["released", "paper"] = "released"
    process_size: int = Field(768, ge=8)  # pixels; an image whose shorter side would be smaller is enlarged to it
    upscale: int = Field(1, ge=1)


class PASD(NamedTuple):
    """`unet` a PASDUNet, `controlnet` a PASDControlNet, `vae` that of Stable Diffusion 1.5."""

    unet: nn.Module
    controlnet: nn.Module
    vae: nn.Module


def pasd_prompt(caption: str) -> str:
    """The positive prompt of an image with this caption, to which the added words are joined without a space."""
    for word, better in CAPTION_WORDS.items():
        caption = caption.replace(word, better)
    return caption + ADDED_PROMPT


@torch.no_grad()
def restore_pasd(
    networks: PASD,
    lq: Tensor,
    positive: Tensor,
    negative: Tensor,
    generators: Sequence[torch.Generator],
    config: PASDConfig,
    fix_color: FixColor,
    blend: Blend = whole,
) -> Tensor:
    """Restore `lq` (B,3,H,W) in [0,1] -> float32 (B,3,upscale*H,upscale*W) in [0,1].

    Prompts (B or 1,77,768); one generator per image, whose draws are the latent and the start's two noises. `fix_color`
    (wavelet in the published script) gets the image that the networks saw as reference.
    """
    image = pasd_input(lq, config)
    z = sample_pasd(networks, image, positive, negative, generators, config, blend)
    height, width = lq.shape[-2:]
    restored = fix_color(decode(networks.vae, z), image)
    return resized(restored, (height * config.upscale, width * config.upscale)).clamp(0, 1)


def pasd_input(lq: Tensor, config: PASDConfig) -> Tensor:
    """(B,3,H,W) for the networks: enlarged by `upscale`, shorter side `process_size`, sides multiples of 8."""
    height, width = lq.shape[-2:]
    image = resized(lq.float(), (height * config.upscale, width * config.upscale)).clamp(0, 1)
    size = at_least(tuple(image.shape[-2:]), config.process_size)
    return resized(resized(image, size, "bilinear"), multiple_of(size, 8)).clamp(0, 1)


def sample_pasd(
    networks: PASD,
    image: Tensor,
    positive: Tensor,
    negative: Tensor,
    generators: Sequence[torch.Generator],
    config: PASDConfig,
    blend: Blend = whole,
) -> Tensor:
    """The restored latent (B,4,H/8,W/8) of `image` (B,3,H,W)."""
    x = pasd_start(networks, image, generators, config)
    guided = GuidedNetworks(
        networks.unet,
        networks.controlnet,
        image,
        8,
        positive,
        negative,
        lambda t: config.guidance,
        config.conditioning_scale,
    )
    return sample_unipc(guided.predict(blend), x, config.steps)


def pasd_start(networks: PASD, image: Tensor, generators: Sequence[torch.Generator], config: PASDConfig) -> Tensor:
    """(B,4,h,w): noise, or the image's latent with noise of t = 999, then with noise of `added_noise_level`."""
    if config.start == "noise":
        shape = (len(image), networks.unet.config.in_channels, *(side // 8 for side in image.shape[-2:]))
        return draw(generators, image.new_empty(shape))
    x, abar = encode(networks.vae, image, generators), alphas_cumprod().to(image.device)
    for t in (START, second_noise(config)):
        x = add_noise(x, draw(generators, x), torch.full((len(x),), t), abar)
    return x


def second_noise(config: PASDConfig) -> int:
    """The timestep of the second noise; see `PASDConfig.added_noise`."""
    timesteps = unipc_scheduler(config.steps).timesteps.tolist()
    level = config.added_noise_level
    return level if config.added_noise == "paper" or level in timesteps else timesteps[-1]
