"""Variance of the Laplacian: how much fine structure an image shows (paper, section 3.1).

The number depends on the scale: the same photograph has less of it per pixel at twice the size. So it is always
measured with the longer side at 512 pixels (`SIDE`), the size that the crops will have; smaller images as they are.
A blur too small to be seen at that size, the crops will hardly show. A large JPEG is read at a reduced size first, but
never below twice `SIDE`, and by a factor that follows from the image alone: its sharpness does not depend on its
boxes. (Read in full it would have up to 12 % more.)
"""

import heapq
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
from pydantic import Field, model_validator

from osdhuman.config import Config
from osdhuman.curate.pixels import DecodeConfig, open_image, reduction, resize
from osdhuman.curate.record import ImageRecord

SIDE = 512


class SharpnessConfig(Config):
    """The threshold: a number, or a quantile of each source. The paper has one, but does not tell it.

    100 divides 200 photographs of people (the least has 166) from their copies under a Gaussian blur of deviation 1.5
    at `SIDE` (the most has 62); of those under a deviation of 1 it drops 84 %.
    """

    threshold: float | None = Field(100.0, ge=0)
    quantile: float | None = Field(None, ge=0, le=1)  # the share of a source's images that is dropped
    sample: int = Field(1000, gt=0)  # images of a source from which its quantile is estimated
    seed: int = 0  # of that sample

    @model_validator(mode="after")
    def _one_of_both(self) -> "SharpnessConfig":
        if (self.threshold is None) == (self.quantile is None):
            raise ValueError("expected a threshold or a quantile: set one of them, and the other to null")
        return self


def laplacian_variance(pixels: np.ndarray) -> float:
    """Variance of the Laplacian (4 neighbours) of the luma of uint8 RGB (h,w,3), longer side shrunk to `SIDE`.

    In squared levels of 0 to 255: from 0 (one colour) to some thousands; borders are mirrored.
    """
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    if scale < 1:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        pixels = resize(pixels, size, "bicubic")
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    _, deviation = cv2.meanStdDev(cv2.Laplacian(gray, cv2.CV_16S))
    return float(deviation[0, 0] ** 2)


def measuring_factor(width: int, height: int) -> int:
    """The factor (1, 2, 4 or 8) by which an image is reduced for `laplacian_variance`."""
    return reduction(max(width, height), 2 * SIDE)


def estimate_threshold(
    records: Iterable[ImageRecord], root: Path, config: SharpnessConfig, decoding: DecodeConfig | None = None
) -> float:
    """The threshold below which images of one source are dropped: the fixed one, or the source's quantile.

    The quantile is that of `config.sample` images, drawn by a hash of seed and file name from those that show
    somebody: neither the order of the records nor the number of workers matters. Memory holds the sample alone.
    Raises ValueError where not one of them can be read.
    """
    if config.threshold is not None:
        return config.threshold
    sample = heapq.nsmallest(
        config.sample, (record.file for record in records if record.boxes != ()), key=lambda file: _draw(file, config)
    )
    decoding = decoding or DecodeConfig()
    values = [value for file in sample if (value := _measure(root / file, decoding)) is not None]
    if not values:
        raise ValueError(
            f"no sharpness could be measured: of {len(sample)} sampled images in {root} none can be read; "
            "check the folder of images, or set a fixed sharpness threshold"
        )
    return float(np.quantile(values, config.quantile))


def _draw(file: str, config: SharpnessConfig) -> bytes:
    return sha256(f"{config.seed}\n{file}".encode()).digest()


def _measure(path: Path, config: DecodeConfig) -> float | None:
    try:
        image = open_image(path.read_bytes(), config)
        return laplacian_variance(image.decode(measuring_factor(image.width, image.height)).pixels)
    except (OSError, ValueError):  # such an image is counted when its turn to be cut comes
        return None
