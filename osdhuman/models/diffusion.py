"""The noise schedule of Stable Diffusion 2.1-base and the two formulas built on it; pure functions.

Timesteps `t` are int64 (B,). Latents and noise are (B,C,h,w), latents already scaled by the VAE's factor.
"""

import torch
from torch import Tensor


def alphas_cumprod(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """`abar_t` for t = 0..steps-1, float32 (steps,): beta is linear in its square root (SD's "scaled_linear")."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def add_noise(z: Tensor, noise: Tensor, t: Tensor, abar: Tensor) -> Tensor:
    """`z_t = sqrt(abar_t) z + sqrt(1 - abar_t) noise`, in float32."""
    a = abar[t].view(-1, 1, 1, 1)
    return a.sqrt() * z.float() + (1 - a).sqrt() * noise.float()


def x0_from_noise(z_t: Tensor, noise: Tensor, t: Tensor, abar: Tensor) -> Tensor:
    """Eq. 2: `z_hat = (z_t - sqrt(1 - abar_t) noise) / sqrt(abar_t)`; undoes `add_noise`.

    Computed in float32, since at t = 999 an error in either input is multiplied by 14.6.
    """
    a = abar[t].view(-1, 1, 1, 1)
    return (z_t.float() - (1 - a).sqrt() * noise.float()) / a.sqrt()
