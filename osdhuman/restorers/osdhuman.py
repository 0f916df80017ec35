"""OSDHuman as a restorer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from osdhuman.files import file_sha256
from osdhuman.inference.tensors import restore_tensor
from osdhuman.pretrained import OSDHuman, find_model
from osdhuman.restorers.one_step import OneStepSettings, generator_parts


class OSDHumanSettings(OneStepSettings):
    """Which model, and where its parts are."""

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
            dtype=self.settings.dtype,
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


def _elements(path: Path) -> int:
    from safetensors.torch import load_file

    return sum(tensor.numel() for tensor in load_file(path).values())
