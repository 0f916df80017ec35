"""The losses of the paper as pure functions: Eq. 4 (generator), Eq. 6 (VSD) and Eq. 7 (regularizer).

Latents `z_hat`, `z_t` and noises are (B,C,h,w), latents already scaled by the VAE's factor; timesteps `t` int64 (B,);
`abar` float32 (T,). Images are (B,3,H,W) in [0,1]. Every sum is taken in float32.

Eq. 6 is written with noises. We compute it, like OSEDiff which the paper follows, with the clean latents that the
noises imply; the two differ by the factor sqrt((1 - abar_t) / abar_t), and `lambda_vsd` depends on this choice.
"""

import contextlib
import sys
import warnings
from types import ModuleType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdhuman.models.diffusion import x0_from_noise

PerceptualName = Literal["lpips", "stlpips", "none"]


def classifier_free_guidance(negative: Tensor, positive: Tensor, scale: float) -> Tensor:
    """`negative + scale * (positive - negative)`, in float32; scale 1 gives `positive`."""
    return negative.float() + scale * (positive.float() - negative.float())


def vsd_direction(
    z_hat: Tensor, z_t: Tensor, t: Tensor, noise_pretrained: Tensor, noise_finetuned: Tensor, abar: Tensor
) -> Tensor:
    """The bracket of Eq. 6, the direction `G` (B,C,h,w) in which VSD pushes `z_hat`; carries no gradient.

    With `x0` the clean latents implied by each noise prediction for `z_t`,
    `G = (x0_finetuned - x0_pretrained) / mean |z_hat - x0_pretrained|`, the mean being taken per image.
    Its sign is that of `noise_pretrained - noise_finetuned`; it is zero where both regularizers agree.
    """
    with torch.no_grad():
        x0_pretrained = x0_from_noise(z_t, noise_pretrained, t, abar)
        x0_finetuned = x0_from_noise(z_t, noise_finetuned, t, abar)
        distance = (z_hat.float() - x0_pretrained).abs().mean(dim=(1, 2, 3), keepdim=True)
        return (x0_finetuned - x0_pretrained) / distance


def vsd_loss(
    z_hat: Tensor, z_t: Tensor, t: Tensor, noise_pretrained: Tensor, noise_finetuned: Tensor, abar: Tensor
) -> Tensor:
    """Eq. 6 as a loss: its value is `mean(G^2)`, its gradient for `z_hat` is `2 G / numel(z_hat)`.

    `G` is `vsd_direction`; `numel` counts the whole batch, and there is no factor 1/2.
    """
    direction = vsd_direction(z_hat, z_t, t, noise_pretrained, noise_finetuned, abar)
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


class PerceptualLoss(nn.Module):
    """Mean perceptual distance of two batches of images (B,3,H,W) in [0,1]; the second term of Eq. 4."""

    def __init__(self, distance: nn.Module):
        super().__init__()
        self.distance = distance.eval().requires_grad_(False)

    def forward(self, image: Tensor, hq: Tensor) -> Tensor:
        return self.distance(image.float() * 2 - 1, hq.float() * 2 - 1).mean()


class NoPerceptualLoss(nn.Module):
    """Always zero: training without the second term of Eq. 4."""

    def forward(self, image: Tensor, hq: Tensor) -> Tensor:
        return image.new_zeros(())


def build_perceptual(name: PerceptualName) -> nn.Module:
    """The perceptual loss called `name`, a module taking `(image, hq)` in [0,1] and giving a scalar.

    `lpips` is the paper's (VGG, whose ImageNet weights torchvision downloads once), `stlpips` the shift-tolerant
    LPIPS on AlexNet (its weights come with its package), `none` leaves the term out.
    Raises OSError where the weights of `lpips` cannot be had.
    """
    if name == "none":
        return NoPerceptualLoss()
    if name == "stlpips":
        return PerceptualLoss(_shift_tolerant_lpips())
    if name == "lpips":
        return PerceptualLoss(_lpips())
    raise ValueError(f"perceptual loss must be lpips, stlpips or none, got {name!r}")


def _lpips() -> nn.Module:
    import lpips

    try:
        with warnings.catch_warnings():  # it asks torchvision for its weights by a deprecated name
            warnings.simplefilter("ignore", UserWarning)
            return lpips.LPIPS(net="vgg", verbose=False)
    except OSError as error:  # URLError is one
        raise OSError(
            f"LPIPS needs torchvision's VGG-16 weights, and downloading them failed ({error}). Put vgg16-397923af.pth "
            f"into {torch.hub.get_dir()}/checkpoints, or train with perceptual=stlpips, whose weights are installed"
        ) from error


def _shift_tolerant_lpips() -> nn.Module:
    with _debugging_imports_absent():
        from stlpips_pytorch import stlpips

    return stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)


@contextlib.contextmanager
def _debugging_imports_absent():
    """stlpips_pytorch imports two debugging aids that it never calls and does not declare: stand in for them."""
    aids = {"IPython": "embed", "torchsummary": "summary"}
    missing = [name for name in aids if name not in sys.modules]
    for name in missing:
        sys.modules[name] = ModuleType(name)
        setattr(sys.modules[name], aids[name], None)
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]
