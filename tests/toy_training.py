"""Toy networks of a few convolutions with the interface of the real ones, and a run on drawn images.

Run as a script it trains: `python toy_training.py FOLDER KEY=VALUE ...`.
"""

import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from osdhuman.config import load_config
from osdhuman.images import save_png
from osdhuman.inference.tensors import pad_to_multiple
from osdhuman.models.diffusion import alphas_cumprod, x0_from_noise
from osdhuman.models.generator import Restoration
from osdhuman.recipes.osdhuman import OSDHumanRecipe, OSDHumanTraining
from osdhuman.recipes.vsd_networks import Networks
from osdhuman.train.loop import Trainer

os.environ["ACCELERATE_USE_CPU"] = "true"  # where sums repeat themselves bit for bit
TOKENS, WIDTH = 2, 3


class ToyRegularizer(nn.Module):
    """Noise from `z_t`, `t` and the prompt's mean."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 3, padding=1)
        self.context = nn.Linear(WIDTH + 1, 4)

    def forward(self, z_t: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        context = self.context(torch.cat([prompt.mean(1), t[:, None] / 1000], dim=1))
        return torch.tanh(self.mix(z_t) + context[:, :, None, None])


class ToyGenerator(nn.Module):
    """Half-size latents of 4 channels; the frozen decoder stands for all that must not change."""

    multiple = 2

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 2, stride=2)
        self.prompter = nn.Linear(3, TOKENS * WIDTH)
        self.unet = ToyRegularizer()
        self.decoder = nn.ConvTranspose2d(4, 3, 2, stride=2).requires_grad_(False)
        self.register_buffer("abar", alphas_cumprod(), persistent=False)

    def forward(self, lq, prompt=None, prompt_image=None, sample=False, generator=None) -> Restoration:
        if prompt is None:
            image = lq if prompt_image is None else prompt_image
            prompt = self.prompter(image.mean((2, 3))).view(-1, TOKENS, WIDTH)
        z_lq = self.encoder(lq)
        if sample:
            z_lq = z_lq + 0.01 * torch.randn(z_lq.shape, generator=generator, device=lq.device)
        t = torch.full((len(lq),), 199, device=lq.device)
        z_hat = x0_from_noise(z_lq, self.unet(z_lq, t, prompt), t, self.abar)
        return Restoration(self.decoder(z_hat).float().sigmoid(), z_hat, prompt)


def draw_images(folder: Path, count: int, size: int = 20) -> Path:
    """PNGs of smooth colours."""
    rng = torch.Generator().manual_seed(count)
    for i in range(count):
        coarse = torch.rand(1, 3, 3, 3, generator=rng)
        save_png(folder / f"{i}.png", nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")[0])
    return folder


def toy_config(folder: Path, *overrides: str) -> OSDHumanTraining:
    """Three steps of 4 crops of 16 pixels, from 6 images below `folder`."""
    if not (folder / "hq").exists():
        draw_images(folder / "hq", 6)
    data = f"data={{paths: {folder / 'hq'}, size: 16, workers: 0}}"
    small = ("batch_size=4", "max_steps=3", "optimizer.lr=0.01", "perceptual=none", "trackers=[]")
    return load_config(OSDHumanTraining, None, (data, f"run={folder / 'run'}", *small, *overrides))


class ToyOSDHuman(OSDHumanRecipe):
    """The recipe itself; only restoring, which needs a real UNet and VAE, is the toy's own."""

    def restore(self, lq: Tensor) -> Tensor:
        height, width = lq.shape[-2:]
        return self.networks.generator(pad_to_multiple(lq, 2)).image[..., :height, :width]


def toy_trainer(config: OSDHumanTraining) -> Trainer:
    torch.manual_seed(config.seed)
    generator, regularizer, frozen = ToyGenerator(), ToyRegularizer(), ToyRegularizer().requires_grad_(False)

    def save_pretrained(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(generator.state_dict(), folder / "toy.pt")

    negative_prompt = torch.ones(1, TOKENS, WIDTH)
    networks = Networks(generator, regularizer, frozen)
    return Trainer(config, ToyOSDHuman(config, networks, negative_prompt, save_pretrained))


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of all that is trained, and of the averages."""
    learners = trainer.recipe.learners
    state = {f"{k}.{n}": p.detach().clone() for k, learner in learners.items() for n, p in learner.parameters.items()}
    averages = trainer.ema.averages if trainer.ema else {}
    return state | {f"ema.{name}": average.clone() for name, average in averages.items()}


if __name__ == "__main__":
    toy_trainer(toy_config(Path(sys.argv[1]), *sys.argv[2:])).run()
