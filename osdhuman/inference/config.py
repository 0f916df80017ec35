"""Settings of restoring, each class for those who can act on it: the image, the memory, the files of a command."""

from typing import Any, Literal

from pydantic import Field

from osdhuman.config import Config, parse_config
from osdhuman.image_files import MAX_PIXELS
from osdhuman.inference.color_fix import ColorFix
from osdhuman.machine import DtypeName

MIN_TILE = 256  # pixels; below this the padding of a tile costs more than the tile


class ImageConfig(Config):
    """What the restored image looks like."""

    upscale: int = Field(1, ge=1, le=16)
    color_fix: ColorFix = "wavelet"  # the paper does not say; OSEDiff's alternatives are adain and wavelet
    strength: float = Field(1.0, ge=0, le=1)  # of the colour fix


class MemoryConfig(Config):
    """Tiles of the three stages, in pixels of the (upscaled) image, so that they hold for every VAE.

    The defaults are OSEDiff's at Stable Diffusion's factor 8: 1024 pixels, 96 latents with an overlap of 32, 224
    latents. `memory` (GiB) replaces the free memory that is found.
    """

    encoder_tile: int = Field(1024, ge=MIN_TILE, multiple_of=64)
    unet_tile: int = Field(768, ge=MIN_TILE, multiple_of=64)
    unet_overlap: int = Field(256, ge=0)
    decoder_tile: int = Field(1792, ge=MIN_TILE, multiple_of=64)
    memory: float | None = Field(None, gt=0)


class CallConfig(ImageConfig, MemoryConfig):
    """Settings of one call on images in memory."""


class FileConfig(Config):
    """What only a command on files can act on: precision of the model that it loads, batches, and output files.

    `format`: PNG, which keeps everything, or `same` as the input. `overwrite` also restores images whose output exists.
    """

    dtype: DtypeName = "auto"  # bfloat16 where the device multiplies it fast, else float32
    batch_size: int = Field(1, ge=1)
    format: Literal["png", "same"] = "png"
    overwrite: bool = False
    max_pixels: int = Field(MAX_PIXELS, gt=0)  # of an input; larger images are refused before they are decoded


class RestoreConfig(CallConfig, FileConfig):
    """All settings of the command `restore`."""


ELSEWHERE = {  # settings that a call cannot act on, and what can
    "dtype": "pass it to OSDHuman.from_pretrained, which loads the weights",
    "batch_size": "pass several images as one tensor (B,3,H,W)",
    "format": "a call returns what it was given; `restore` writes files",
    "overwrite": "a call writes no file; `restore` does",
    "max_pixels": "a call takes an image that is decoded already",
}


def call_config(settings: dict[str, Any]) -> CallConfig:
    """The settings of one call. ConfigError for unknown ones, and for those that only a command can act on."""
    if misplaced := [f"{name} has no effect here: {ELSEWHERE[name]}" for name in settings if name in ELSEWHERE]:
        raise ValueError("; ".join(misplaced))
    return parse_config(CallConfig, settings, "the settings")
