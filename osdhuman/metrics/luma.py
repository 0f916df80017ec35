"""PSNR and SSIM on luma, the one implementation of the package: for validation and for the rows `psnr_y`, `ssim_y`.

Images are float32 RGB (B,3,H,W) in [0,1] and are first rounded to 8 bits, as if read back from a file. Luma is BT.601
studio range, `Y = 16 + (65.481 R + 128.553 G + 24.966 B)`. No border is cut off. Everything is computed in float64.

The definitions are those of OSEDiff's published evaluation (pyiqa's `psnry` and `ssim` with `color_space="ycbcr"`), so
that numbers can be compared with the field's: PSNR adds 1e-8 to the mean squared error of luma in [0,1], so equal
images have 80 dB; SSIM rounds luma to whole numbers, uses a Gaussian window of sigma 1.5 (11 x 11) without padding, and
sets a negative structure term to zero (Wang et al., 2004, "Image quality assessment", Eq. 13). pyiqa computes in
float32: its PSNR differs by up to 3e-6 dB, its SSIM by up to 3e-6, since luma near .5 may be rounded the other way.
"""

import torch
from torch import Tensor

WEIGHTS = (65.481, 128.553, 24.966)  # BT.601, of R, G and B in [0,1]
WINDOW, SIGMA = 11, 1.5  # pixels
EPSILON = 1e-8  # of PSNR's mean squared error
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # of SSIM


def psnr_y(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of luma in dB, float64 (B,), at most 80. Higher is better.

    Raises ValueError unless both are (B,3,H,W) of one shape.
    """
    _check(image, reference)
    error = ((luma(image) - luma(reference)) / 255).square().mean((1, 2))
    return -10 * torch.log10(error + EPSILON)


def ssim_y(image: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of luma, float64 (B,), in [0,1]. Higher is better. Images of at least 11 x 11 pixels.

    Raises ValueError unless both are (B,3,H,W) of one shape.
    """
    _check(image, reference)
    x, y = luma(image).round(), luma(reference).round()
    mean_x, mean_y = blur(x), blur(y)
    variances = blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    structure = ((2 * covariance + C2) / (variances + C2)).clamp(min=0)
    return (structure * (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)).mean((1, 2))


def luma(image: Tensor) -> Tensor:
    """BT.601 studio luma (B,H,W) in [16,235], float64, of an image (B,3,H,W) in [0,1] rounded to 8 bits."""
    image = image.detach().cpu() if image.device.type == "mps" else image.detach()  # MPS has no float64
    rounded = (image.double().clamp(0, 1) * 255).round() / 255
    return 16 + sum(weight * channel for weight, channel in zip(WEIGHTS, rounded.unbind(1), strict=True))


def blur(image: Tensor) -> Tensor:
    """Mean of (B,H,W) under SSIM's Gaussian window, without padding: (B,H-10,W-10).

    One axis after the other, as sums of shifted images: PyTorch has no fast convolution in float64.
    """
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    for axis in (-2, -1):
        length = image.shape[axis] - WINDOW + 1
        image = sum(w * image.narrow(axis, k, length) for k, w in enumerate((weights / weights.sum()).tolist()))
    return image


def _check(image: Tensor, reference: Tensor) -> None:
    if image.shape != reference.shape or image.dim() != 4 or image.shape[1] != 3:
        raise ValueError(
            f"image and reference must both be (B,3,H,W), got {tuple(image.shape)} and {tuple(reference.shape)}"
        )
