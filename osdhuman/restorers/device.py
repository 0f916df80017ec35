"""Where and in which precision the networks of a restorer run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Self

import torch
from pydantic import Field

from osdhuman.config import Config
from osdhuman.machine import find_device, out_of_memory


class DeviceSettings(Config):
    """Device and precision. `dtype` is that of convolutions and matrix products (autocast); weights stay float32."""

    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def resolved(self) -> Self:
        """The same with `device` named."""
        return self.model_copy(update={"device": find_device(self.device)})

    @contextmanager
    def running(self, remedy: str) -> Iterator[None]:
        """Run networks without gradients in `dtype`. Raises MemoryError, with `remedy`, where memory runs out."""
        dtype = getattr(torch, self.dtype)
        kind = torch.device(self.device).type
        try:
            with torch.no_grad(), torch.autocast(kind, dtype, enabled=dtype != torch.float32):
                yield
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not out_of_memory(error):
                raise
            raise MemoryError(f"the image does not fit into memory; {remedy}") from error
