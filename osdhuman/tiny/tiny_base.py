"""The small base that stands in for Stable Diffusion 2.1-base, its VAE and RAM's encoder; trained from scratch.

Three stages, each resumed at file level: a finished stage leaves its folder and is not run again.
1. VAE: photographs to latents and back (L1, a little ST-LPIPS, a very small KL term), then the scaling factor that
   gives its latents unit variance. Both networks start as linear codes (`linear_start`): after 75 seconds on one
   CPU core the VAE reaches 35.7 dB from this start and 22.9 dB from a random one.
2. UNet and image encoder together: the UNet predicts noise (epsilon, SD's schedule) from noisy latents, prompted by
   the encoder's view of the *degraded* photograph; the encoder also learns to name each region's clean latents.
The result has diffusers' layout (`vae`, `unet`, `scheduler`), plus `encoder` and `null_prompt.safetensors`.
"""

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from osdhuman.config import Config
from osdhuman.data.degradation import Degradation, DegradationConfig
from osdhuman.data.samples import read_manifest
from osdhuman.folders import find_images
from osdhuman.models.diffusion import add_noise, alphas_cumprod
from osdhuman.models.prompts import HFIE, HFIEConfig
from osdhuman.models.ram import RAMConfig, RAMEncoder, save_ram_encoder
from osdhuman.tiny.linear_start import start_as_identity, start_as_linear_code
from osdhuman.train.precision import autocast, choose_precision

CPU = torch.device("cpu")
UNSEEN = 10**6  # numbers of batches that no stage trains on


class StageConfig(Config):
    """One training stage: how long, how many crops at once, how large a crop."""

    steps: int = Field(2000, gt=0)
    batch_size: int = Field(12, gt=0)
    crop: int = Field(128, gt=0, multiple_of=32)
    lr: float = Field(1e-3, gt=0)


class TinyBaseConfig(Config):
    """Sizes and schedule of the small base. 512 x 512 is 128 x 128 x `latent_channels` in latent space (f4)."""

    photographs: str = Field(description="a folder, or a text file of paths relative to it")
    output: str = "osdhuman/tiny/base"
    seed: int = 0
    latent_channels: int = Field(16, gt=0)
    vae_channels: tuple[int, ...] = (32, 64, 96)
    unet_channels: tuple[int, ...] = (64, 96, 128, 128)
    prompt_tokens: int = Field(16, gt=0)
    prompt_width: int = Field(64, gt=0)
    encoder: RAMConfig = RAMConfig(
        image_size=128, embed_dim=32, depths=(1, 1, 2, 1), heads=(1, 2, 4, 8), window=4, projection=64
    )
    perceptual_weight: float = Field(0.1, ge=0)
    kl_weight: float = Field(1e-4, ge=0, description="per latent value")
    vae: StageConfig = StageConfig(steps=1200, batch_size=4, crop=64, lr=5e-4)
    unet: StageConfig = StageConfig(steps=900, batch_size=12, crop=96, lr=6e-4)
    degradation: DegradationConfig = DegradationConfig()
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"  # the carried base was made with bf16


def build_vae(config: TinyBaseConfig) -> nn.Module:
    """A KL autoencoder of factor 4; no attention in its middle, so that a tile sees what the whole image sees."""
    from diffusers import AutoencoderKL

    levels = len(config.vae_channels)
    return AutoencoderKL(
        block_out_channels=config.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=512,
    )


def build_unet(config: TinyBaseConfig) -> nn.Module:
    """A noise-predicting UNet; attention only at its coarsest level, where 512 x 512 is 16 x 16 tokens."""
    from diffusers import UNet2DConditionModel

    plain = len(config.unet_channels) - 1
    return UNet2DConditionModel(
        sample_size=128,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.unet_channels,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * plain,
        layers_per_block=1,
        cross_attention_dim=config.prompt_width,
        attention_head_dim=4,  # SD-2.1's name for the number of heads
        norm_num_groups=8,
        use_linear_projection=True,
    )


class Crops:
    """Random square crops of photographs held in memory as uint8; batch k depends on (seed, k) only."""

    def __init__(self, paths: list[Path], seed: int):
        self.images = [np.asarray(Image.open(path).convert("RGB")) for path in tqdm(paths, desc="reading photographs")]
        self.seed = seed

    def __call__(self, step: int, batch_size: int, size: int) -> Tensor:
        """(batch_size,3,size,size) in [0,1]."""
        rng = np.random.default_rng((self.seed, step))
        return torch.stack([self._crop(rng, size) for _ in range(batch_size)])

    def _crop(self, rng: np.random.Generator, size: int) -> Tensor:
        image = self.images[rng.integers(len(self.images))]
        side = min(*image.shape[:2], int(size * rng.uniform(1.0, 2.0)))
        y, x = (rng.integers(length - side + 1) for length in image.shape[:2])
        crop = torch.from_numpy(image[y : y + side, x : x + side].copy()).permute(2, 0, 1)[None].float() / 255
        crop = F.interpolate(crop, size=(size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)
        return crop.flip(-1) if rng.random() < 0.5 else crop


def train_tiny_base(config: TinyBaseConfig) -> Path:
    """Run the stages that are not yet finished; returns the base's folder. Raises ValueError without photographs."""
    torch.manual_seed(config.seed)
    output = Path(config.output)
    crops = Crops(list_photographs(Path(config.photographs)), config.seed)
    if not (output / "vae" / "config.json").exists():
        vae = build_vae(config)
        start_as_linear_code(vae, torch.cat([crops(UNSEEN + k, 16, 128) for k in range(4)]))
        _train_vae(vae, crops, config)
        vae.half().save_pretrained(output / "vae")
    if not (output / "unet" / "config.json").exists():
        _train_unet(output, crops, config)
    return output


def list_photographs(source: Path) -> list[Path]:
    """Paths named by a text file, one a line and relative to it, or the pictures below a folder."""
    try:
        paths = read_manifest(source) if source.is_file() else find_images(source)
    except FileNotFoundError:
        paths = []
    if not paths:
        raise ValueError(f"no photographs in {source}: give a folder of pictures, or a text file of paths")
    return paths


def _train_vae(vae: nn.Module, crops: Crops, config: TinyBaseConfig) -> None:
    from osdhuman.recipes.perceptual import build_perceptual

    perceptual = build_perceptual("stlpips")

    def loss(vae: nn.Module, step: int) -> dict[str, Tensor]:
        image = crops(step, config.vae.batch_size, config.vae.crop)
        posterior = vae.encode((image * 2 - 1).contiguous(memory_format=torch.channels_last)).latent_dist
        restored = (vae.decode(posterior.sample()).sample.float() + 1) / 2
        return {
            "l1": 2 * F.l1_loss(restored, image),
            "stlpips": config.perceptual_weight * perceptual(restored, image).mean(),
            "kl": config.kl_weight * posterior.kl().float().mean() / posterior.mean[0].numel(),
        }

    _optimise(vae, [vae], loss, config.vae, "vae", config.mixed_precision)
    with torch.no_grad():
        z = torch.cat([vae.encode(crops(UNSEEN + k, 16, 128) * 2 - 1).latent_dist.mode() for k in range(8)])
    vae.register_to_config(scaling_factor=round(1 / z.std().item(), 5))


def _train_unet(output: Path, crops: Crops, config: TinyBaseConfig) -> None:
    from diffusers import AutoencoderKL, DDPMScheduler

    vae = AutoencoderKL.from_pretrained(output / "vae").float().to(memory_format=torch.channels_last)
    vae.requires_grad_(False)
    scale = vae.config.scaling_factor
    degrade, abar = Degradation(config.degradation), alphas_cumprod()
    hfie = HFIEConfig(queries=config.prompt_tokens, width=config.prompt_width, heads=4)
    nets = nn.ModuleDict(
        {
            "unet": build_unet(config),
            "encoder": RAMEncoder(config.encoder),
            "pool": HFIE(hfie, config.encoder.projection),
            "regions": nn.Linear(config.encoder.projection, config.latent_channels),
        }
    )
    start_as_identity(nets["unet"])
    nets.register_parameter("null_prompt", nn.Parameter(torch.zeros(1, config.prompt_tokens, config.prompt_width)))

    def loss(nets: nn.ModuleDict, step: int) -> dict[str, Tensor]:
        n = config.unet.batch_size
        hq = crops(step, n, config.unet.crop)
        lq = degrade(hq, config.seed, range(step * n, (step + 1) * n))
        with torch.no_grad():
            z = vae.encode((hq * 2 - 1).contiguous(memory_format=torch.channels_last)).latent_dist.sample() * scale
        tokens = nets["encoder"](lq).float()
        keep = (torch.rand(n, 1, 1) > 0.1).float()
        prompt = keep * nets["pool"](tokens).float() + (1 - keep) * nets.null_prompt
        noise, t = torch.randn_like(z), torch.randint(0, 1000, (n,))
        prediction = nets["unet"](add_noise(z, noise, t, abar), t, prompt).sample
        grid = math.isqrt(tokens.shape[1] - 1)
        regions = F.adaptive_avg_pool2d(z.float(), grid).flatten(2).transpose(1, 2)
        return {
            "noise": F.mse_loss(prediction.float(), noise),
            "regions": 0.1 * F.mse_loss(nets["regions"](tokens[:, 1:]).float(), regions),
        }

    ema = _optimise(nets, [nets["unet"], nets["encoder"]], loss, config.unet, "unet", config.mixed_precision)
    save_ram_encoder(ema["encoder"].half(), output / "encoder")
    save_file({"null_prompt": ema.null_prompt.detach().contiguous()}, output / "null_prompt.safetensors")
    DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
    ).save_pretrained(output / "scheduler")
    ema["unet"].half().save_pretrained(output / "unet")  # last: its presence says that the stage is finished


def _optimise(
    model: nn.Module,
    convolutional: list[nn.Module],
    loss: Callable[[nn.Module, int], dict[str, Tensor]],
    stage: StageConfig,
    name: str,
    mixed_precision: str,
) -> nn.Module:
    """AdamW with warm-up and cosine decay; `model` ends with, and returns, its average."""
    for module in convolutional:
        module.to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.lr, weight_decay=0.01, betas=(0.9, 0.99))
    precision = choose_precision(mixed_precision, CPU)
    bar, start = tqdm(range(stage.steps), desc=name), time.time()
    for step in bar:
        warm, done = min(1, (step + 1) / 100), step / stage.steps
        optimizer.param_groups[0]["lr"] = stage.lr * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        with autocast(precision, CPU):
            terms = loss(model, step)
        sum(terms.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(0.998, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in model.parameters()], 1 - decay)
        if step % 20 == 0:
            bar.set_postfix({key: f"{value.item():.4f}" for key, value in terms.items()}, refresh=False)
    print(json.dumps({"stage": name, "steps": stage.steps, "seconds": round(time.time() - start)}))
    model.load_state_dict(average.state_dict())
    return model
