"""Settings of restoring."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from osdhuman.config import Config
from osdhuman.inference.color_fix import ColorFix

if TYPE_CHECKING:
    pass

MIN_TILE = 256  # pixels; below this the padding of a tile costs more than the tile


class RestoreConfig(Config):
    """How pictures are restored. All sizes in pixels of the (upscaled) picture, so they hold for every VAE.

    The tiles are those of OSEDiff at Stable Diffusion's factor 8: 1024 pixels, 96 and 32 latents, 224 latents. `memory`
    (GiB) replaces what is found free. `format`: PNG, which keeps everything, or `same` as the input.
    """

    upscale: int = Field(1, ge=1, le=16)
    color_fix: ColorFix = "wavelet"
    strength: float = Field(1.0, ge=0, le=1)
    encoder_tile: int = Field(1024, ge=MIN_TILE, multiple_of=64)
    unet_tile: int = Field(768, ge=MIN_TILE, multiple_of=64)
    unet_overlap: int = Field(256, ge=0)
    decoder_tile: int = Field(1792, ge=MIN_TILE, multiple_of=64)
    memory: float | None = Field(None, gt=0)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = Field(1, ge=1)
    format: Literal["png", "same"] = "png"
    overwrite: bool = False
