"""HAODiff (Gong et al., NeurIPS 2025) as a restorer: dual prompts and LoRA on Stable Diffusion 2.1-base, one step.

Two differences from the official script: the latent is the mean of the VAE's posterior, not a draw, so that the seeds
change nothing; and an image whose sides are no multiples of 8 is padded, not refused.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from osdhuman.inference.config import MIN_TILE
from osdhuman.inference.tensors import restore_tensor
from osdhuman.models.base import SD21_BASE, load_base
from osdhuman.models.dual_prompt import load_dual_prompt
from osdhuman.models.haodiff import HAODiffConfig, build_haodiff, read_unet_lora
from osdhuman.restorers.one_step import OneStepSettings, generator_parts
from osdhuman.restorers.weights import WeightFile, hashes, licences, require

PROMPT_FILE, LORA_FILE = "img_encoder_weights.pth", "pytorch_lora_weights.safetensors"
LICENCE = "not stated, the repository has no licence file"


class HAODiffSettings(OneStepSettings):
    """The official defaults: wavelet colour fix, UNet tiles of 64 latents with an overlap of 5."""

    weights: str = "haodiff"  # folder of the two official files
    base: str = SD21_BASE
    model: HAODiffConfig = HAODiffConfig()  # LoRA rank and alpha, timestep, guidance
    unet_tile: int = Field(512, ge=MIN_TILE, multiple_of=64)  # pixels
    unet_overlap: int = Field(40, ge=0)


class HAODiff:
    """The strongest published human restorer of its time."""

    name = "haodiff"
    Settings = HAODiffSettings

    def __init__(self, settings: HAODiffSettings):
        self.settings = settings = settings.resolved()
        folder = Path(settings.weights)
        self.files = [_official(folder / name) for name in (PROMPT_FILE, LORA_FILE)]
        require(self.files)
        prompts = load_dual_prompt(folder / PROMPT_FILE)  # both before the base, whose loading takes long
        lora = read_unet_lora(folder / LORA_FILE, settings.model.lora.rank)
        base = load_base(settings.base, getattr(torch, settings.dtype))
        self.fingerprint, self.ignored = base.fingerprint, prompts.ignored
        self.trained = _elements(lora.values()) + _elements(p for p in prompts.parameters() if p.requires_grad)
        self.generator = build_haodiff(base, prompts, lora, settings.model).to(settings.device)

    def restore(self, lq: Tensor, seeds: Sequence[int]) -> Tensor:
        return restore_tensor(self.generator, lq, self.settings)

    def modules(self) -> dict[str, nn.Module]:
        return generator_parts(self.generator)

    def describe(self) -> dict[str, Any]:
        return {
            "settings": self.settings.model_dump(mode="json"),
            "weights": hashes(self.files) | {"base": self.fingerprint},
            "licences": licences(self.files),
            "ignored": list(self.ignored),  # tensors and settings of the prompt file that restoring does not need
            "trained_parameters": self.trained,  # of stage 2: LoRA and the prompt embedders
            "merged": True,
        }


def _official(path: Path) -> WeightFile:
    return WeightFile(path, "weights", f"weights/{path.name} of the repository gobunu/HAODiff (github.com)", LICENCE)


def _elements(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
