"""Sampling in many steps: pure functions over a `predict` callable, which hides networks, prompts and tiles.

Latents are float32 (B,C,h,w). `predict(x, t)` gives what the network predicts (noise or v) for latents `x` at timestep
`t`, an int. All noise of an image comes from its own generator, so that neither batch nor order changes a result.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from osdhuman.models.diffusion import alphas_cumprod

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UniPCMultistepScheduler

Predict = Callable[[Tensor, int], Tensor]
Prediction = Literal["epsilon", "v_prediction"]
Window = tuple[slice, slice]  # rows and columns of a latent
TilePredict = Callable[[Tensor, Window], Tensor]
Blend = Callable[[TilePredict, Tensor], Tensor]  # a tile's prediction and a latent -> the latent's prediction
STEPS = 1000  # of the training schedule
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # as `alphas_cumprod`
TERMINAL_ABAR = 1e-8  # in place of the last abar where a finite sigma is needed (DiffBIR)


def draw(generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Standard normal noise of the shape of `like` (B,...), each image's from its own generator, on `like`'s device.

    Raises ValueError if there is not one generator per image.
    """
    if len(generators) != len(like):
        raise ValueError(f"one generator per image is needed: got {len(generators)} for {len(like)} images")
    noise = [torch.randn(like.shape[1:], generator=generator, device=generator.device) for generator in generators]
    return torch.stack(noise).to(like.device)


def guided(negative: Tensor, positive: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: `negative + scale (positive - negative)`."""
    return negative + scale * (positive - negative)


def rescaled_guidance(scale: float, t: int) -> float:
    """DiffBIR's guidance that grows from 1 at t = 1000 to `1 + scale` at t = 0 (`rescale_cfg`)."""
    return 1 + scale * (1 - math.cos(math.pi * ((STEPS - t) / STEPS) ** 5)) / 2


def whole(predict: TilePredict, x: Tensor) -> Tensor:
    """No tiles: the latent is predicted at once."""
    return predict(x, (slice(None), slice(None)))


def weighted(windows: Sequence[Window], weights: Tensor) -> Blend:
    """Predictions of overlapping windows of one size, averaged with `weights` (size of a window)."""

    def blend(predict: TilePredict, x: Tensor) -> Tensor:
        result, total = torch.zeros_like(x, dtype=torch.float32), x.new_zeros(x.shape[-2:], dtype=torch.float32)
        weight = weights.to(x.device, torch.float32)
        for window in windows:
            result[..., *window] += predict(x[..., *window], window).float() * weight
            total[window] += weight
        return result / total

    return blend


def ddpm_scheduler(
    steps: int,
    spacing: Literal["leading", "linspace"],
    prediction: Prediction = "epsilon",
    zero_terminal_snr: bool = False,
) -> "DDPMScheduler":
    """DDPM on `steps` timesteps of Stable Diffusion's schedule, x0 not clipped.

    "leading": 981, 961, ..., 1 for 50 steps (SeeSR); "linspace": 999, 979, 958, ..., 0 (DiffBIR's spaced sampler).
    """
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        **BETAS,
        clip_sample=False,
        steps_offset=1,
        timestep_spacing=spacing,
        prediction_type=prediction,
        rescale_betas_zero_snr=zero_terminal_snr,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def sample_ddpm(
    predict: Predict, x: Tensor, scheduler: "DDPMScheduler", generators: Sequence[torch.Generator]
) -> Tensor:
    """Ancestral sampling from `x` at the scheduler's first timestep; each step but the last adds noise.

    The scheduler also draws the last step's noise, and multiplies it by (nearly) zero.
    """
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, int(t)).float(), t, x, generator=list(generators)).prev_sample
    return x


def unipc_scheduler(steps: int) -> "UniPCMultistepScheduler":
    """UniPC of order 2 on 999, 949, ..., 50 (for 20 steps), noise prediction, ending at sigma 0 (PASD)."""
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(**BETAS)
    scheduler.set_timesteps(steps)
    return scheduler


def sample_unipc(predict: Predict, x: Tensor, steps: int) -> Tensor:
    """UniPC from `x` at t = 999, without noise; see `unipc_scheduler`."""
    scheduler = unipc_scheduler(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, int(t)).float(), t, x).prev_sample
    return x


def zero_snr_abar() -> Tensor:
    """`abar_t` of the schedule that ends in pure noise (Lin et al., 2024), float32 (1000,): its last value is 0."""
    root = alphas_cumprod().double().sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return (root**2).float()


def sde_grid(steps: int, abar: Tensor) -> tuple[list[int], Tensor]:
    """Timesteps 999, 899, ..., 99 (for 10 steps) and their sigmas, `sqrt((1 - abar) / abar)`, float32 (steps + 1,).

    The first sigma is 1e4, since abar may be 0 there; the last one is 0.
    """
    timesteps = [int(STEPS - 1 - i * (STEPS - 1) / steps) for i in range(steps)]
    chosen = abar[timesteps].double()
    chosen[0] = TERMINAL_ABAR
    return timesteps, torch.cat([((1 - chosen) / chosen).sqrt(), torch.zeros(1).double()]).float()


def denoised(predict: Predict, x: Tensor, t: int, sigma: Tensor, prediction: Prediction) -> Tensor:
    """The clean latent that a prediction implies for `x = z + sigma noise`; linear in the prediction."""
    scale = (sigma**2 + 1).sqrt()  # x / scale has the variance that the network was trained with
    output = predict(x / scale, t).float()
    return x / scale**2 - sigma / scale * output if prediction == "v_prediction" else x - sigma * output


def sample_dpm3m_sde(
    predict: Predict,
    x: Tensor,
    steps: int,
    abar: Tensor,
    prediction: Prediction,
    noise: Callable[[Tensor], Tensor],
) -> Tensor:
    """DPM-Solver++(3M) SDE (Lu et al., 2022, in the third-order multistep form of k-diffusion), eta 1.

    `x` is standard normal; `noise(x)` gives fresh noise of x's shape, asked for at each step but the last. In
    lambda = -log(sigma) the integral of the clean latent is taken exactly for the quadratic through the last three.
    """
    timesteps, sigmas = sde_grid(steps, abar)
    x = x * (1 + sigmas[0] ** 2).sqrt()
    history: list[tuple[Tensor, Tensor]] = []  # (lambda, clean latent), the newest first
    for i, t in enumerate(timesteps):
        clean = denoised(predict, x, t, sigmas[i], prediction)
        if sigmas[i + 1] == 0:
            return clean
        history = [(-sigmas[i].log(), clean), *history[:2]]
        h = (sigmas[i] / sigmas[i + 1]).log()
        x = _sde_step(x, h, history) + noise(x) * sigmas[i + 1] * (1 - (-2 * h).exp()).sqrt()
    return x


def _sde_step(x: Tensor, h: Tensor, history: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The deterministic part of one step of width `h` in lambda; with eta 1 the exponents have twice that width."""
    decay = (-2 * h).exp()
    phi_2 = (decay - 1) / (2 * h) + 1
    phi_3 = phi_2 / (2 * h) - 0.5
    slope, curvature = _differences(h, history)
    return decay * x + (1 - decay) * history[0][1] + phi_2 * slope - phi_3 * curvature


def _differences(h: Tensor, history: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor | float, Tensor | float]:
    """First and second differences of the clean latent in units of `h`, from as many as there are."""
    if len(history) == 1:
        return 0.0, 0.0
    widths = [(a[0] - b[0]) / h for a, b in pairwise(history)]
    slopes = [(a[1] - b[1]) / width for (a, b), width in zip(pairwise(history), widths, strict=True)]
    if len(slopes) == 1:
        return slopes[0], 0.0
    curvature = (slopes[0] - slopes[1]) / (widths[0] + widths[1])
    return slopes[0] + curvature * widths[0], curvature
