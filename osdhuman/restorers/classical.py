"""What needs no network: the input itself, bicubic enlargement, and OpenCV's filters. None of them uses its seeds.

The filters work on 8 bits; their default strengths are those in the middle of what configs/eval/fidelity.yaml tries.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from osdhuman.config import Config
from osdhuman.images import resize


class Input:
    """The LQ itself: what every method has to improve on."""

    name = "input"

    class Settings(Config):
        """There is nothing to set."""

    def __init__(self, settings: Config):
        self.settings = settings

    def restore(self, lq: Tensor, seeds: Sequence[int]) -> Tensor:
        return lq.float()

    def describe(self) -> dict[str, Any]:
        return {"settings": self.settings.model_dump(mode="json")}


class Bicubic(Input):
    """The LQ reduced `scale` times and enlarged again, both bicubic: what an x4 method starts from.

    An LQ already has the size of the ground truth, so that bicubic enlargement of it alone would change nothing.
    """

    name = "bicubic"

    class Settings(Config):
        scale: int = Field(4, ge=2, le=16)

    def restore(self, lq: Tensor, seeds: Sequence[int]) -> Tensor:
        small = tuple(max(round(side / self.settings.scale), 1) for side in lq.shape[-2:])
        return resize(resize(lq.float(), small), tuple(lq.shape[-2:]))


class Filter(Input):
    """A filter on uint8 (H,W,3), in OpenCV's order of channels."""

    def filtered(self, bgr: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def restore(self, lq: Tensor, seeds: Sequence[int]) -> Tensor:
        pixels = (lq.flip(1).permute(0, 2, 3, 1) * 255).round().byte().cpu().contiguous().numpy()
        restored = torch.from_numpy(np.stack([self.filtered(one) for one in pixels]))
        return (restored.permute(0, 3, 1, 2).flip(1).float() / 255).to(lq.device)


class Gaussian(Filter):
    """Gaussian blur."""

    name = "gaussian"

    class Settings(Config):
        sigma: float = Field(1.0, gt=0)  # pixels

    def filtered(self, bgr: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(bgr, (0, 0), self.settings.sigma)


class Bilateral(Filter):
    """OpenCV's bilateral filter."""

    name = "bilateral"

    class Settings(Config):
        diameter: int = Field(7, gt=0)  # pixels
        sigma_color: float = Field(40.0, gt=0)  # of 255
        sigma_space: float = Field(3.0, gt=0)  # pixels

    def filtered(self, bgr: np.ndarray) -> np.ndarray:
        settings = self.settings
        return cv2.bilateralFilter(bgr, settings.diameter, settings.sigma_color, settings.sigma_space)


class NonLocalMeans(Filter):
    """OpenCV's non-local means for colour images."""

    name = "nlm"

    class Settings(Config):
        h: float = Field(10.0, gt=0)  # strength, of 255, for luminance and colour

    def filtered(self, bgr: np.ndarray) -> np.ndarray:
        return cv2.fastNlMeansDenoisingColored(bgr, None, self.settings.h, self.settings.h)
