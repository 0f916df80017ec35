"""Training of ResShift: its losses and its learning rate; pure functions.

Latents are (B,C,h,w), images (B,3,H,W) in [0,1], the LQ of the network in [-1,1]; steps `t` int64 (B,), drawn evenly
from 0..T-1. v1 and v2 train with the latent term alone, v3 adds the perceptual one with weight 1.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from osdhuman.config import Config
from osdhuman.models.resshift.sampling import Network
from osdhuman.models.resshift.schedule import Schedule, q_sample, scale_input


class LearningRateConfig(Config):
    """The defaults are those of v1, v2 and SinSR; v3 goes on to 2e-5 along a cosine, over 400,000 iterations."""

    lr: float = Field(5e-5, gt=0)
    warmup: int = Field(5000, gt=0)
    cosine_to: float | None = Field(None, gt=0)  # None: constant after the warm-up
    iterations: int = Field(400_000, gt=0)  # where the cosine ends

    @model_validator(mode="after")
    def _cosine_has_room(self) -> "LearningRateConfig":
        if self.cosine_to is not None and self.iterations <= self.warmup:
            raise ValueError(f"iterations {self.iterations} must exceed warmup {self.warmup} for a cosine")
        return self


class Prediction(NamedTuple):
    """What one training step predicts: x0 (B,C,h,w), and its squared error, mean of each sample (B,)."""

    x0: Tensor
    mse: Tensor


def predict(
    network: Network, z0: Tensor, y: Tensor, lq: Tensor, noise: Tensor, t: Tensor, schedule: Schedule
) -> Prediction:
    """The latent term: x_t is drawn between the latents of HQ `z0` and of the enlarged LQ `y`, and z0 predicted."""
    x_t = q_sample(z0, y, noise, t, schedule)
    x0 = network(scale_input(x_t, t, schedule), schedule.timesteps.to(t.device)[t], lq).float()
    return Prediction(x0, (z0.float() - x0).square().mean(dim=(1, 2, 3)))


def mse_weights(schedule: Schedule) -> Tensor:
    """Weights of the latent term by step, float64 (T,), that make it a variational bound; officially unused (all 1)."""
    return 0.5 / schedule.clipped_posterior_variance * (schedule.alpha / schedule.eta) ** 2


def perceptual_term(
    x0: Tensor, hq: Tensor, decode: Callable[[Tensor], Tensor], perceptual: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Distance of the decoded prediction, clamped, from the HQ image, both in [0,1].

    Zero, and without a gradient, where it is not a number, as in the original: the latent term is left then.
    """
    image = (decode(x0).float().clamp(-1, 1) + 1) / 2
    distance = perceptual(image, hq)
    return torch.zeros_like(distance) if distance.isnan().any() else distance


def resshift_loss(mse: Tensor, perceptual: Tensor | float = 0.0, lambda_lpips: float = 1.0) -> Tensor:
    """`mean(mse) + lambda_lpips mean(perceptual)`; without a perceptual term, the loss of v1 and v2."""
    return mse.mean() + lambda_lpips * torch.as_tensor(perceptual).mean()


def learning_rate(iteration: int, config: LearningRateConfig) -> float:
    """Of iteration 1, 2, ...: warm-up, then constant or a cosine. The first uses the full rate, as in the original.

    The original sets the rate after each step, so iteration k has the rate for k-1 iterations done.
    """
    done = iteration - 1
    if done == 0:
        return config.lr
    if done < config.warmup:
        return config.lr * done / config.warmup
    if config.cosine_to is None:
        return config.lr
    progress = (done - config.warmup) / (config.iterations - config.warmup)
    return config.cosine_to + (config.lr - config.cosine_to) * (1 + math.cos(math.pi * min(progress, 1))) / 2
