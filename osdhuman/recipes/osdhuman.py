"""OSDHuman's training (section 3.2): one step of the generator (Eq. 4, 6), one of the regularizer (Eq. 7), and again.

`OSDHumanRecipe.iterate` is the algorithm.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from osdhuman.inference.config import CallConfig
from osdhuman.models.build import OSDHumanConfig
from osdhuman.models.diffusion import add_noise
from osdhuman.models.generator import Restoration
from osdhuman.recipes import weights
from osdhuman.recipes.losses import (
    VSDForm,
    classifier_free_guidance,
    generator_loss,
    mse_loss,
    regularizer_loss,
    vsd_loss,
)
from osdhuman.recipes.perceptual import PerceptualName, build_perceptual
from osdhuman.recipes.vsd_networks import Networks, RegularizerConfig, build_networks
from osdhuman.train.config import TrainConfig
from osdhuman.train.learner import Learner
from osdhuman.train.log import add_losses
from osdhuman.train.recipe import MicroBatch, Recipe

NEGATIVE_PROMPT = (  # OSEDiff's
    "painting, oil painting, illustration, drawing, art, sketch, cartoon, CG Style, 3D render, unreal engine, "
    "blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, jpeg artifacts, deformed, "
    "lowres, over-smooth"
)


class OSDHumanTraining(TrainConfig):
    """Settings of OSDHuman's training. Defaults are the paper's (section 4.2), else OSEDiff's, which it follows."""

    model: OSDHumanConfig = OSDHumanConfig()
    regularizer: RegularizerConfig = RegularizerConfig()
    restore: CallConfig = CallConfig()  # how validation restores: tiles, colour fix

    perceptual: PerceptualName = "lpips"
    lambda_lpips: float = Field(2.0, ge=0)  # Eq. 4, lambda_1: of the perceptual term, whichever it is
    lambda_vsd: float = Field(1.0, ge=0)  # Eq. 4, lambda_2
    vsd_form: VSDForm = "x0"  # of Eq. 6: x0 as OSEDiff's code, noise as the paper prints it
    t_range: tuple[int, int] = (20, 980)  # Eq. 6: t is drawn from 20..979
    regularizer_t_range: tuple[int, int] = (0, 1000)  # Eq. 7: t is drawn from 0..999
    cfg_scale: float = Field(7.5, ge=1)  # of the pretrained regularizer in Eq. 6; 1 uses the prompt alone
    negative_prompt: str = NEGATIVE_PROMPT
    sample_latent: bool = True  # z_lq is drawn from the VAE's posterior; false takes its mean, as when restoring
    gradient_checkpointing: bool = False
    compile: bool = False

    @model_validator(mode="after")
    def _timesteps_are_ranges(self) -> "OSDHumanTraining":
        for name in ("t_range", "regularizer_t_range"):
            low, high = getattr(self, name)
            if not 0 <= low < high:
                raise ValueError(f"{name} must be (low, high) with 0 <= low < high, got {(low, high)}")
        return self

    @property
    def needs_text(self) -> bool:
        """Whether text is encoded: the negative prompt, tags, or the single space of the null prompt."""
        return self.cfg_scale != 1 or self.model.prompt.kind != "hfie"


class Latents(NamedTuple):
    """What the regularizer's step needs of the generator's: `z_hat` and `prompt` without gradient."""

    z_hat: Tensor
    prompt: Tensor
    rng: torch.Generator


class OSDHumanRecipe(Recipe):
    """Generator and regularizer of Fig. 4.

    `negative_prompt` (1,tokens,width) is needed where `cfg_scale` is not 1. `save_pretrained(folder)` writes the model
    folder of the generator as it is. `training_prompt` replaces the generator's prompt extractor in training.
    """

    Settings = OSDHumanTraining
    averaged = "generator"

    def __init__(
        self,
        config: OSDHumanTraining,
        networks: Networks,
        negative_prompt: Tensor | None,
        save_pretrained: Callable[[Path], object],
        training_prompt: nn.Module | None = None,
    ):
        self.config, self.networks, self.save_pretrained = config, networks, save_pretrained
        if config.compile:
            for network in networks:
                network.compile()
        self.generator = Learner(networks.generator, config.optimizer)
        self.regularizer = Learner(networks.regularizer, config.optimizer)
        self.learners = {"generator": self.generator, "regularizer": self.regularizer}
        self.perceptual = build_perceptual(config.perceptual)
        self.training_prompt = training_prompt
        self.frozen = [n for n in (networks.frozen, self.perceptual, training_prompt) if n is not None]
        self.negative_prompt = _require_negative_prompt(negative_prompt, config)
        _require_timesteps(config, len(networks.generator.abar))

    @classmethod
    def missing(cls, config: OSDHumanTraining) -> list[str]:
        return [
            *weights.missing_of_base(config.model.base, config.needs_text),
            *weights.missing_of_prompt(config.model.prompt, config.model.base),
            *weights.missing_of_perceptual(config.perceptual),
        ]

    @classmethod
    def build(cls, config: OSDHumanTraining) -> "OSDHumanRecipe":
        """Load the base, build the networks upon it, and encode the negative prompt once."""
        from osdhuman.models.base import load_base
        from osdhuman.models.prompts import build_prompt_extractor
        from osdhuman.pretrained import OSDHuman

        base = load_base(config.model.base, text=config.needs_text)
        negative_prompt = base.null_prompt
        if config.cfg_scale != 1 and base.text_encoder is not None:
            negative_prompt = base.encode_text([config.negative_prompt])
        networks = build_networks(config.model, config.regularizer, base, config.gradient_checkpointing)
        model, prompt = OSDHuman(config.model, networks.generator, base), config.model.prompt
        plain = prompt.model_copy(update={"training": "same", "dape": None}) if prompt.training == "ram" else None
        training_prompt = build_prompt_extractor(plain, base) if plain is not None else None
        return cls(config, networks, negative_prompt, model.save_pretrained, training_prompt)

    # --------------------------------------------------------------------------------------------- the algorithm

    def iterate(self) -> dict[str, Tensor]:
        """One iteration of the paper; with accumulation each network sees its micro-batches before its one step."""
        config, losses, latents = self.config, {}, []
        for batch in self.run.micro_batches(self.generator):
            image, z_hat, prompt = self.generate(batch)  # Eq. 2, 3, 5
            mse = mse_loss(image, batch.hq)
            perceptual = self.perceptual(image, batch.hq)
            vsd = self.distill(z_hat, prompt.detach(), batch.rng)  # Eq. 6
            loss = generator_loss(mse, perceptual, vsd, config.lambda_lpips, config.lambda_vsd)  # Eq. 4
            self.generator.backward(loss)
            add_losses(losses, {"mse": mse, config.perceptual: perceptual, "vsd": vsd}, 1 / config.accumulation)
            latents.append(Latents(z_hat.detach(), prompt.detach(), batch.rng))
        losses["generator gradient"] = self.generator.step()

        for z_hat, prompt, rng in self.run.micro_batches(self.regularizer, latents):
            loss = self.diffuse(z_hat, prompt, rng)  # Eq. 7
            self.regularizer.backward(loss)
            add_losses(losses, {"regularizer": loss}, 1 / config.accumulation)
        losses["regularizer gradient"] = self.regularizer.step()
        return losses

    def generate(self, batch: MicroBatch) -> Restoration:
        """Eq. 2 and 3; the prompt (Eq. 5) is drawn from LQ, or from HQ where the model's settings say so."""
        prompt_image = batch.hq if self.config.model.prompt.source == "hq" else None
        with self.run.autocast():
            prompt = None
            if self.training_prompt is not None:
                prompt = self.training_prompt(batch.lq if prompt_image is None else prompt_image)
            sample = self.config.sample_latent
            return self.generator.network(batch.lq, prompt, prompt_image, sample=sample, generator=batch.rng)

    def distill(self, z_hat: Tensor, prompt: Tensor, rng: torch.Generator) -> Tensor:
        """Eq. 6: t first, then the noise, one of each per sample."""
        abar = self.networks.generator.abar
        t = draw_t(self.config.t_range, z_hat, rng)
        noise = draw_noise(z_hat, rng)
        with torch.no_grad(), self.run.autocast():
            z_t = add_noise(z_hat, noise, t, abar)
            noise_finetuned = self.regularizer.network(z_t, t, prompt)
            noise_pretrained = self.pretrained_noise(z_t, t, prompt)
        return vsd_loss(z_hat, z_t, t, noise_pretrained, noise_finetuned, abar, self.config.vsd_form)

    def pretrained_noise(self, z_t: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        """The frozen regularizer with guidance; both halves in one call."""
        if self.negative_prompt is None:
            return self.networks.frozen(z_t, t, prompt)
        negative = self.negative_prompt.expand(len(prompt), -1, -1).to(prompt)
        noise = self.networks.frozen(torch.cat([z_t, z_t]), torch.cat([t, t]), torch.cat([negative, prompt]))
        return classifier_free_guidance(*noise.chunk(2), self.config.cfg_scale)

    def diffuse(self, z_hat: Tensor, prompt: Tensor, rng: torch.Generator) -> Tensor:
        """Eq. 7: fresh noise first, then t, one of each per sample."""
        noise = draw_noise(z_hat, rng)
        t = draw_t(self.config.regularizer_t_range, z_hat, rng)
        with self.run.autocast():
            z_t = add_noise(z_hat, noise, t, self.networks.generator.abar)
            prediction = self.regularizer.network(z_t, t, prompt)
        return regularizer_loss(prediction, noise)

    # -------------------------------------------------------------------------------------------------- the model

    def save_model(self, folder: Path) -> None:
        self.save_pretrained(folder)

    def restore(self, lq: Tensor) -> Tensor:
        """As the product restores, in float32: the same tiles, padding and colour fix."""
        from osdhuman.inference.tensors import restore_tensor

        return restore_tensor(self.networks.generator, lq, self.config.restore)


def draw_t(limits: tuple[int, int], z: Tensor, rng: torch.Generator) -> Tensor:
    """One timestep for each sample of `z`, int64 (B,), from limits[0] up to but without limits[1]."""
    return torch.randint(*limits, (len(z),), generator=rng, device=z.device)


def draw_noise(z: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal noise, float32, in the shape of `z` (B,C,h,w)."""
    return torch.randn(z.shape, generator=rng, device=z.device)


def _require_negative_prompt(negative_prompt: Tensor | None, config: OSDHumanTraining) -> Tensor | None:
    if config.cfg_scale == 1:
        return None
    if negative_prompt is None:
        raise ValueError(
            f"cfg_scale {config.cfg_scale} needs a negative prompt, and the base has neither a text encoder nor a "
            "stored prompt; use cfg_scale=1"
        )
    return negative_prompt


def _require_timesteps(config: OSDHumanTraining, steps: int) -> None:
    for name in ("t_range", "regularizer_t_range"):
        if getattr(config, name)[1] > steps:
            raise ValueError(f"{name} {getattr(config, name)} goes beyond the base's schedule of {steps} steps")
