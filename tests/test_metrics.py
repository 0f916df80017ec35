"""PSNR-Y and SSIM-Y on images whose values can be worked out by hand."""

import math

import pytest
import torch

from osdhuman.metrics.luma import luma, psnr_y, ssim_y


def grey(level: int) -> torch.Tensor:
    return torch.full((1, 3, 16, 16), level / 255)


def checks() -> torch.Tensor:
    return (torch.arange(16).view(1, 1, 16, 1) + torch.arange(16)).remainder(2).float().expand(1, 3, 16, 16)


def test_black_has_luma_16_and_white_235():
    assert luma(grey(0)).mean() == 16 and luma(grey(255)).mean().round(decimals=9) == 235


def test_pure_green_has_luma_144_553():
    green = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
    assert luma(green).item() == pytest.approx(144.553)


def test_images_are_rounded_to_8_bits_first():
    assert torch.equal(luma(grey(100) + 0.4 / 255), luma(grey(100)))


def test_values_outside_the_range_are_clamped():
    assert torch.equal(luma(grey(300)), luma(grey(255)))


def test_psnr_of_ten_grey_levels():
    # ten levels of grey are 10 * 219 / 255 levels of luma: 20 log10(255 / 8.5882) dB
    assert psnr_y(grey(110), grey(100)).item() == pytest.approx(20 * math.log10(255 / (10 * 219 / 255)))


def test_psnr_of_equal_images_is_infinite():
    assert psnr_y(grey(7), grey(7)).item() == math.inf


def test_ssim_of_equal_images_is_one():
    assert ssim_y(checks(), checks()).item() == pytest.approx(1)


def test_ssim_of_two_flat_images_compares_their_means_only():
    # (2 a b + c1) / (a^2 + b^2 + c1) with c1 = (0.01 * 255)^2, a and b the lumas of black and white
    a, b, c1 = 16.0, 235.0, 2.55**2
    assert ssim_y(grey(0), grey(255)).item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1))


def test_ssim_of_a_pattern_and_its_negative_is_negative():
    assert ssim_y(checks(), 1 - checks()).item() < -0.9


def test_each_image_of_a_batch_is_measured_alone():
    image, reference = torch.cat([grey(110), grey(100)]), torch.cat([grey(100), grey(100)])
    assert psnr_y(image, reference).tolist() == [psnr_y(grey(110), grey(100)).item(), math.inf]


def test_different_shapes_are_an_error():
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\) and \(1, 3, 8, 8\)"):
        psnr_y(grey(0), grey(0)[..., :8, :8])
