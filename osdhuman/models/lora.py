"""LoRA: which layers carry it, adapters for training (peft), and the merge for inference (one formula, no peft).

A trained pair is named `<layer>.lora_A.weight` (r,in[,k,k]) and `<layer>.lora_B.weight` (out,r[,1,1]).
"""

import copy
from itertools import chain

import torch
from pydantic import Field
from torch import Tensor, nn

from osdhuman.config import Config

# OSEDiff's selection, which the paper follows: a layer carries LoRA if the name of its weight contains one of these.
UNET_PARTS = ("to_k", "to_q", "to_v", "to_out.0", "conv", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
VAE_PARTS = ("to_k", "to_q", "to_v", "to_out.0", "conv")


class LoRAConfig(Config):
    """Rank as in the paper (4.2). The paper gives no alpha: 8 is OSEDiff's, an effective scale alpha / rank of 2."""

    rank: int = Field(4, gt=0)
    alpha: float = Field(8.0, gt=0)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def unet_lora_layers(unet: nn.Module) -> list[str]:
    """All attention, feed-forward, projection and convolution layers; no norm, no time embedding (258 in SD-2.1)."""
    return _layers(unet, UNET_PARTS)


def vae_lora_layers(vae: nn.Module) -> list[str]:
    """The encoder's convolutions and attention and `quant_conv`; nothing of the decoder (32 in SD-2.1)."""
    return [name for name in _layers(vae, VAE_PARTS) if name.startswith("encoder.") or name == "quant_conv"]


def _layers(module: nn.Module, parts: tuple[str, ...]) -> list[str]:
    weights = (name for name, _ in module.named_parameters() if "bias" not in name and "norm" not in name)
    return [name.removesuffix(".weight") for name in weights if any(part in name for part in parts)]


def add_lora(module: nn.Module, layers: list[str], config: LoRAConfig) -> None:
    """Give `layers` of a diffusers model one trainable float32 adapter; A is normal with std 1/rank, B zero."""
    from peft import LoraConfig

    module.add_adapter(
        LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=layers, init_lora_weights="gaussian")
    )
    for name, parameter in module.named_parameters():
        if ".lora_" in name:  # peft takes over the base's dtype; optimizer steps need float32
            parameter.data = parameter.data.float()


def merge_lora(module: nn.Module, state: dict[str, Tensor], scale: float) -> None:
    """Add `scale * B A` to the weight of every layer that `state` names; computed in float32, kept in the base's dtype.

    Raises ValueError if a name has no layer or only half of a pair.
    """
    layers = {name.rpartition(".lora_")[0] for name in state}
    for layer in sorted(layers):
        try:
            weight = module.get_parameter(f"{layer}.weight")
            a, b = state[f"{layer}.lora_A.weight"].float(), state[f"{layer}.lora_B.weight"].float()
        except (AttributeError, KeyError) as error:
            raise ValueError(f"LoRA for layer {layer!r} does not fit this base: {error}") from None
        delta = torch.einsum("or,ri...->oi...", b.flatten(1), a)
        if delta.shape != weight.shape:
            raise ValueError(f"LoRA for layer {layer!r} makes {tuple(delta.shape)}, the base has {tuple(weight.shape)}")
        weight.data.copy_(weight.data.float() + scale * delta.to(weight.device))  # copy_ keeps channels_last


def share(module: nn.Module) -> nn.Module:
    """A second module over the *same* parameter and buffer tensors: adapters added to one do not show in the other.

    So one frozen base serves as generator, regularizer and frozen regularizer at the memory of one, with no adapter to
    switch: gradient checkpointing recomputes each forward with the layers it first ran through.
    """
    tensors = chain(module.parameters(), module.buffers())
    return copy.deepcopy(module, memo={id(tensor): tensor for tensor in tensors})
