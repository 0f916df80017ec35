"""Perceptual losses on images: the second term of Eq. 4."""

import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from osdhuman.metrics.backends.stlpips import shift_tolerant_lpips

PerceptualName = Literal["lpips", "stlpips", "none"]


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
        return PerceptualLoss(shift_tolerant_lpips())
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
