"""The two regularizers of VSD (Eq. 6, 7) and the set of networks that one training run needs."""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from osdhuman.config import Config
from osdhuman.models.base import Base
from osdhuman.models.build import OSDHumanConfig, build_generator
from osdhuman.models.generator import Generator
from osdhuman.models.lora import LoRAConfig, add_lora, share, unet_lora_layers


class RegularizerConfig(Config):
    """LoRA of the finetuned regularizer. `mid` trains the UNet's middle alone, as OSEDiff's published script does."""

    lora: LoRAConfig = LoRAConfig()
    layers: Literal["all", "mid"] = "all"


class Regularizer(nn.Module):
    """A diffusion UNet asked for the noise in `z_t` (B,C,h,w) at `t` (B,) under `prompt` (B,tokens,width)."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, z_t: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        dtype = self.unet.dtype
        return self.unet(z_t.to(dtype), t, encoder_hidden_states=prompt.to(dtype)).sample


class Networks(NamedTuple):
    """The networks of Fig. 4. All three UNets are separate modules over one set of base tensors."""

    generator: Generator
    regularizer: Regularizer
    frozen: Regularizer


def build_networks(
    model: OSDHumanConfig, regularizer: RegularizerConfig, base: Base, gradient_checkpointing: bool = False
) -> Networks:
    """Generator and finetuned regularizer with LoRA, and the frozen regularizer, on one shared base."""
    generator = build_generator(model, base)
    finetuned = share(base.unet)
    layers = unet_lora_layers(finetuned)
    if regularizer.layers == "mid":
        layers = [layer for layer in layers if layer.startswith("mid_block.")]
    add_lora(finetuned, layers, regularizer.lora)
    if gradient_checkpointing:
        for network in (generator.unet, generator.vae, finetuned):
            network.enable_gradient_checkpointing()
    return Networks(generator, Regularizer(finetuned), Regularizer(base.unet))
