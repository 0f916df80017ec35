"""Any model that the library spandrel knows (ESRGAN, SwinIR, SCUNet, HAT, GFPGAN, ...) as a restorer, from one file."""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from osdhuman.images import Kernel, resize
from osdhuman.models.spandrel_model import SpandrelModel, load_spandrel
from osdhuman.restorers.device import DeviceSettings
from osdhuman.restorers.weights import WeightFile, hashes, licences, require

REMEDY = "choose smaller tiles (tile=)"


class ImageModelSettings(DeviceSettings):
    """Settings of a network from image to image. The result of a model that enlarges is reduced to the LQ's size.

    Tiles are squares of the LQ. Each is restored with `context` pixels around it, which are cut away, so that nothing
    is blended.
    """

    kernel: Kernel = "bicubic"  # of reducing
    tile: int = Field(512, ge=64)  # pixels; an image of this size goes through whole
    context: int = Field(32, ge=0)  # pixels; the official scripts take 10
    border: int = Field(0, ge=0)  # pixels mirrored around the image before the network, cut after it


class SpandrelSettings(ImageModelSettings):
    """Which file; scale and architecture are read from it."""

    weights: str  # .safetensors, .pth, .pt or .ckpt
    licence: str = "not stated"  # of the weights, for the record


class Spandrel:
    """The seeds change nothing. A model that needs the whole image (`tileable` False) never gets tiles."""

    name = "spandrel"
    Settings: type[ImageModelSettings] = SpandrelSettings

    def __init__(self, settings: ImageModelSettings):
        self.settings = settings.resolved()
        self.files = self.weight_files()
        require(self.files)
        self.model = self.load().to(self.settings.device)

    def weight_files(self) -> list[WeightFile]:
        """The files that decide the result."""
        source = "a model file that you choose; github.com/chaiNNer-org/spandrel lists models and their publishers"
        return [WeightFile(Path(self.settings.weights), "weights", source, self.settings.licence)]

    def load(self) -> SpandrelModel:
        return load_spandrel(self.settings.weights)

    def restore(self, lq: Tensor, seeds: Sequence[int]) -> Tensor:
        settings, scale = self.settings, self.model.scale
        image = mirrored(lq.float().to(settings.device), settings.border)
        tile = settings.tile + 2 * settings.border if self.model.tileable else max(image.shape[-2:])
        with settings.running(REMEDY):
            restored = in_tiles(image, tile, settings.context, scale, self.model)
        height, width = lq.shape[-2:]
        first = settings.border * scale
        restored = restored[..., first : first + height * scale, first : first + width * scale]
        return resize(restored, (height, width), settings.kernel).to(lq.device)

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.model}

    def describe(self) -> dict[str, Any]:
        return {
            "settings": self.settings.model_dump(mode="json"),
            "architecture": self.model.architecture,
            "scale": self.model.scale,
            "weights": hashes(self.files),
            "licences": licences(self.files),
            "trained_parameters": sum(p.numel() for p in self.model.parameters()),
        }


def mirrored(image: Tensor, border: int) -> Tensor:
    """Extend (B,3,H,W) by `border` pixels on all sides: mirrored, or replicated where a side is too short."""
    mode = "reflect" if border < min(image.shape[-2:]) else "replicate"
    return F.pad(image, (border,) * 4, mode=mode) if border else image


def in_tiles(image: Tensor, tile: int, context: int, scale: int, restore: Callable[[Tensor], Tensor]) -> Tensor:
    """(B,3,H,W) -> (B,3,H*scale,W*scale), a square at a time; `restore` sees each with up to `context` pixels around.

    The result is that of the whole image where `context` covers what a pixel of the network sees.
    """
    height, width = image.shape[-2:]
    result = image.new_empty((*image.shape[:-2], height * scale, width * scale))
    for rows, cols in product(_parts(height, tile), _parts(width, tile)):
        seen = [slice(max(part.start - context, 0), part.stop + context) for part in (rows, cols)]
        restored = restore(image[..., *seen])
        inner = [_scaled(part, scale, around.start) for part, around in zip((rows, cols), seen, strict=True)]
        result[..., _scaled(rows, scale), _scaled(cols, scale)] = restored[..., *inner]
    return result


def _parts(length: int, tile: int) -> list[slice]:
    return [slice(start, min(start + tile, length)) for start in range(0, length, tile)]


def _scaled(part: slice, scale: int, origin: int = 0) -> slice:
    return slice((part.start - origin) * scale, (part.stop - origin) * scale)
