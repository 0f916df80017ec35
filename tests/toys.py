"""A toy base of the real classes: factor-4 VAE, three-level UNet, Swin at 32 pixels; a few ten thousand weights."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

from osdhuman.models.base import Base, load_base
from osdhuman.models.build import OSDHumanConfig
from osdhuman.models.prompts import HFIEConfig, PromptConfig
from osdhuman.models.ram import RAMConfig, RAMEncoder, save_ram_encoder

TOKENS, WIDTH, LATENTS = 5, 16, 6
RAM = RAMConfig(image_size=32, embed_dim=8, depths=(1, 1), heads=(1, 2), window=2, projection=8)


def toy_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENTS,
        out_channels=LATENTS,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
        use_linear_projection=True,
    )


def toy_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=4,
        mid_block_add_attention=False,
        scaling_factor=0.5,
    )


def write_toy_base(folder: Path, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    torch.manual_seed(seed)
    toy_unet().save_pretrained(folder / "unet")
    toy_vae().save_pretrained(folder / "vae")
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    DDPMScheduler(prediction_type=prediction_type, **schedule).save_pretrained(folder / "scheduler")
    save_ram_encoder(RAMEncoder(RAM), folder / "encoder")
    save_file({"null_prompt": torch.randn(1, TOKENS, WIDTH)}, folder / "null_prompt.safetensors")
    return folder


def toy_config(base: Path, **changes) -> OSDHumanConfig:
    hfie = HFIEConfig(queries=TOKENS, width=WIDTH, heads=2)
    return OSDHumanConfig(base=str(base), prompt=PromptConfig(hfie=hfie), timestep=199, **changes)


def toy_base(folder: Path) -> Base:
    return load_base(write_toy_base(folder))


def with_adapters_at_work(network: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """LoRA starts at zero (B = 0); give B values, as training would."""
    torch.manual_seed(seed)
    for name, parameter in network.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return network
