"""PSNR and SSIM on the luma channel, as used in validation; scikit-image does the work.

Conventions: images are float32 RGB (B,3,H,W) in [0,1] and are first rounded to 8 bits, as if read back from a file.
Luma is BT.601 studio range, `Y = 16 + (65.481 R + 128.553 G + 24.966 B)`, kept unrounded. The data range is 255, no
border is cut off. SSIM uses a Gaussian window of sigma 1.5 (11 x 11) and population covariance (Wang et al., 2004).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def psnr_y(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of luma in dB, float64 (B,); infinite where both are equal. Higher is better."""
    from skimage.metrics import peak_signal_noise_ratio

    with np.errstate(divide="ignore"):
        return _each(lambda y, y_reference: peak_signal_noise_ratio(y_reference, y, data_range=255), image, reference)


def ssim_y(image: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of luma, float64 (B,), at most 1. Higher is better. Images of at least 11 x 11 pixels."""
    from skimage.metrics import structural_similarity

    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return _each(lambda y, y_ref: structural_similarity(y, y_ref, data_range=255, **window), image, reference)


def luma(image: Tensor) -> Tensor:
    """BT.601 studio luma (B,H,W) in [16,235], float64, of an image (B,3,H,W) in [0,1] rounded to 8 bits."""
    rounded = (image.detach().double().clamp(0, 1) * 255).round() / 255
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=image.device)
    return 16 + torch.einsum("bchw,c->bhw", rounded, weights)


def _each(metric: Callable[[np.ndarray, np.ndarray], float], image: Tensor, reference: Tensor) -> Tensor:
    if image.shape != reference.shape or image.dim() != 4 or image.shape[1] != 3:
        raise ValueError(
            f"image and reference must both be (B,3,H,W), got {tuple(image.shape)} and {tuple(reference.shape)}"
        )
    pairs = zip(luma(image).cpu().numpy(), luma(reference).cpu().numpy(), strict=True)
    return torch.tensor([metric(y, y_reference) for y, y_reference in pairs], dtype=torch.float64)
