"""What one-step restorers share: where and how they run, and their networks."""

from typing import Literal

from pydantic import Field
from torch import nn

from osdhuman.inference.config import CallConfig
from osdhuman.machine import DtypeName, find_device, find_dtype


class OneStepSettings(CallConfig):
    """Device, precision, tiles and colour fix of a one-step restorer; the size of a result is the input's."""

    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    dtype: DtypeName = "auto"
    upscale: Literal[1] = 1

    def resolved(self) -> "OneStepSettings":
        """The same with `device` and `dtype` named."""
        device = find_device(self.device)
        dtype = str(find_dtype(self.dtype, device)).removeprefix("torch.")
        return self.model_copy(update={"device": device, "dtype": dtype})


def generator_parts(generator: nn.Module) -> dict[str, nn.Module]:
    """The networks of a one-step generator."""
    return {"prompt": generator.prompt_extractor, "unet": generator.unet, "vae": generator.vae}
