"""The losses of the paper as pure functions: Eq. 4 (generator), Eq. 6 (VSD) and Eq. 7 (regularizer).

Latents `z_hat`, `z_t` and noises are (B,C,h,w), latents already scaled by the VAE's factor; timesteps `t` int64 (B,);
`abar` float32 (T,). Images are (B,3,H,W) in [0,1]. Every sum is taken in float32.

Eq. 6 has two forms here. `noise` is the formula as the paper prints it. `x0`, the default, is what OSEDiff's code
computes, which the paper says it follows: clean latents in place of noises. The numerators differ by the factor
sqrt((1 - abar_t) / abar_t), the denominators are different distances, and `lambda_vsd` depends on the choice.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from osdhuman.models.diffusion import x0_from_noise
from osdhuman.models.samplers import guided

VSDForm = Literal["x0", "noise"]


def classifier_free_guidance(negative: Tensor, positive: Tensor, scale: float) -> Tensor:
    """`negative + scale * (positive - negative)`, in float32; scale 1 gives `positive`."""
    return guided(negative.float(), positive.float(), scale)


def vsd_direction(
    z_hat: Tensor,
    z_t: Tensor,
    t: Tensor,
    noise_pretrained: Tensor,
    noise_finetuned: Tensor,
    abar: Tensor,
    form: VSDForm = "x0",
) -> Tensor:
    """The fraction in Eq. 6, the direction `G` (B,C,h,w) in which VSD pushes `z_hat`; carries no gradient.

    `noise`: `G = (noise_pretrained - noise_finetuned) / mean |noise_pretrained - z_hat|`, as Eq. 6 is printed.
    `x0`: `G = (x0_finetuned - x0_pretrained) / mean |z_hat - x0_pretrained|`, with `x0` the clean latents implied by
    each noise prediction for `z_t`. The mean is taken per image. Both have the sign of `noise_pretrained -
    noise_finetuned` and are zero where the regularizers agree.
    """
    with torch.no_grad():
        if form == "noise":
            difference = noise_pretrained.float() - noise_finetuned.float()
            distance = noise_pretrained.float() - z_hat.float()
        else:
            x0_pretrained = x0_from_noise(z_t, noise_pretrained, t, abar)
            difference = x0_from_noise(z_t, noise_finetuned, t, abar) - x0_pretrained
            distance = z_hat.float() - x0_pretrained
        return difference / distance.abs().mean(dim=(1, 2, 3), keepdim=True)


def vsd_loss(
    z_hat: Tensor,
    z_t: Tensor,
    t: Tensor,
    noise_pretrained: Tensor,
    noise_finetuned: Tensor,
    abar: Tensor,
    form: VSDForm = "x0",
) -> Tensor:
    """Eq. 6 as a loss: its value is `mean(G^2)`, its gradient for `z_hat` is `2 G / numel(z_hat)`.

    `G` is `vsd_direction`; `numel` counts the whole batch, and there is no factor 1/2 (OSEDiff's reduction).
    """
    direction = vsd_direction(z_hat, z_t, t, noise_pretrained, noise_finetuned, abar, form)
    return F.mse_loss(z_hat.float(), (z_hat.float() - direction).detach())


def regularizer_loss(prediction: Tensor, noise: Tensor) -> Tensor:
    """Eq. 7: mean squared error between the finetuned regularizer's prediction and the noise that was added."""
    return F.mse_loss(prediction.float(), noise.float())


def mse_loss(image: Tensor, hq: Tensor) -> Tensor:
    """First term of Eq. 4, on images scaled to [-1,1] as in OSEDiff, hence 4 times the value on [0,1].

    The weights of the other two terms, `lambda_lpips = 2` and `lambda_vsd = 1`, belong to this scale.
    """
    return 4 * F.mse_loss(image.float(), hq.float())


def generator_loss(mse: Tensor, perceptual: Tensor, vsd: Tensor, lambda_lpips: float, lambda_vsd: float) -> Tensor:
    """Eq. 4: `mse + lambda_lpips * perceptual + lambda_vsd * vsd`."""
    return mse + lambda_lpips * perceptual + lambda_vsd * vsd
