"""From settings to a generator that trains, and the tensors that training changes."""

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from osdhuman.config import Config
from osdhuman.models.base import SD21_BASE, Base
from osdhuman.models.generator import Generator
from osdhuman.models.lora import LoRAConfig, add_lora, share, unet_lora_layers, vae_lora_layers
from osdhuman.models.prompts import PromptConfig, build_prompt_extractor

if TYPE_CHECKING:
    pass


class OSDHumanConfig(Config):
    """The model of the paper (4.2)."""

    base: str = SD21_BASE
    timestep: int = Field(999, ge=0)
    unet_lora: LoRAConfig = LoRAConfig()
    vae_lora: LoRAConfig = LoRAConfig()
    train_conv_in: bool = False  # OSEDiff's code also trains the UNet's first layer in full; the paper speaks of LoRA
    prompt: PromptConfig = PromptConfig()


def build_generator(config: OSDHumanConfig, base: Base) -> Generator:
    """A generator to train: LoRA on a shared copy of the base, everything else frozen; `base` stays as it is."""
    unet, vae = share(base.unet), share(base.vae)
    if config.train_conv_in:
        unet.conv_in.weight = torch.nn.Parameter(unet.conv_in.weight.detach().float().clone(), requires_grad=False)
        unet.conv_in.bias = torch.nn.Parameter(unet.conv_in.bias.detach().float().clone(), requires_grad=False)
    add_lora(unet, unet_lora_layers(unet), config.unet_lora)
    add_lora(vae, vae_lora_layers(vae), config.vae_lora)
    if config.train_conv_in:
        unet.conv_in.base_layer.requires_grad_(True)
    return Generator(unet, vae, build_prompt_extractor(config.prompt, base), base.abar, config.timestep)


def trained_state(generator: Generator) -> dict[str, Tensor]:
    """The tensors that training changes, by their name in a model file; copies on the CPU."""
    return {
        _file_name(name): parameter.detach().cpu().clone()
        for name, parameter in generator.named_parameters()
        if parameter.requires_grad
    }


def load_trained(generator: Generator, state: dict[str, Tensor]) -> None:
    """Put a model file's tensors back into a generator made by `build_generator`; ValueError if names differ."""
    parameters = {_file_name(name): p for name, p in generator.named_parameters() if p.requires_grad}
    require_same_names(set(parameters), set(state))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def _file_name(name: str) -> str:
    return name.replace(".default.", ".").replace(".base_layer.", ".")


def require_same_names(expected: set[str], found: set[str]) -> None:
    """ValueError where a model file lacks tensors or has others, with the first names of each."""
    if expected != found:
        missing, extra = sorted(expected - found), sorted(found - expected)
        raise ValueError(
            f"model file does not fit its settings: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(extra)} not expected {extra[:3]}"
        )
