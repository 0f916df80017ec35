"""OSDHuman as a restorer, and the settings that one-step restorers have in common."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from osdhuman.files import file_sha256
from osdhuman.inference.config import RestoreConfig
from osdhuman.inference.tensors import restore_tensor
from osdhuman.machine import find_device
from osdhuman.pretrained import OSDHuman, find_model


class OneStepSettings(RestoreConfig):
    """Where and how a one-step restorer runs.

    The size of the result is the input's, and batch and files are the caller's, so these fields cannot be set.
    """

    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    upscale: Literal[1] = 1
    batch_size: Literal[1] = 1
    format: Literal["png"] = "png"
    overwrite: Literal[False] = False

    def resolved(self) -> "OneStepSettings":
        """The same with `device` named."""
        return self.model_copy(update={"device": find_device(self.device)})


class OSDHumanSettings(OneStepSettings):
    model: str = "tiny"  # "tiny", a model folder or a hub id
    base: str | None = None  # null: as the model says
    encoder: str | None = None  # RAM; null: as the model says
    merge: bool = True  # false: LoRA stays beside the weights


class OSDHumanRestorer:
    """Any checkpoint of ours. The latent is the encoder's mean, so the seeds change nothing."""

    name = "osdhuman"
    Settings = OSDHumanSettings

    def __init__(self, settings: OSDHumanSettings):
        self.settings = settings.resolved()
        self.folder = find_model(settings.model)
        changes = {"base": settings.base, "encoder": settings.encoder}
        self.model = OSDHuman.from_pretrained(
            self.folder,
            dtype=getattr(torch, settings.dtype),
            device=self.settings.device,
            merge=settings.merge,
            **{name: path for name, path in changes.items() if path is not None},
        )

    def restore(self, lq: Tensor, seeds: Sequence[int]) -> Tensor:
        return restore_tensor(self.model.generator, lq, self.settings)

    def modules(self) -> dict[str, nn.Module]:
        return generator_parts(self.model.generator)

    def describe(self) -> dict[str, Any]:
        return {
            "settings": self.settings.model_dump(mode="json"),
            "weights": {
                "model.safetensors": file_sha256(self.folder / "model.safetensors"),
                "base": self.model.base.fingerprint,
            },
            "trained_parameters": _elements(self.folder / "model.safetensors"),
            "merged": self.settings.merge,
        }


def generator_parts(generator: nn.Module) -> dict[str, nn.Module]:
    """The networks of a one-step generator."""
    return {"prompt": generator.prompt_extractor, "unet": generator.unet, "vae": generator.vae}


def _elements(path: Path) -> int:
    from safetensors.torch import load_file

    return sum(tensor.numel() for tensor in load_file(path).values())
