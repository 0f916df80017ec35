"""PSNR-Y and SSIM-Y on images whose values can be worked out by hand."""

import math

import pytest
import torch

from osdhuman.metrics.luma import blur, luma, psnr_y, ssim_y


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
    # ten levels of grey are 10 * 219 / 255 levels of luma; 1e-8 is added to the squared error of luma in [0,1]
    error = (10 * 219 / 255 / 255) ** 2
    assert psnr_y(grey(110), grey(100)).item() == pytest.approx(-10 * math.log10(error + 1e-8))


def test_psnr_of_equal_images_is_80():  # 1e-8 is added to the mean squared error, so that a mean over images exists
    assert psnr_y(grey(7), grey(7)).item() == pytest.approx(80)


def test_ssim_of_equal_images_is_one():
    assert ssim_y(checks(), checks()).item() == pytest.approx(1)


def test_ssim_of_two_flat_images_compares_their_means_only():
    # (2 a b + c1) / (a^2 + b^2 + c1) with c1 = (0.01 * 255)^2, a and b the lumas of black and white
    a, b, c1 = 16.0, 235.0, 2.55**2
    assert ssim_y(grey(0), grey(255)).item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1))


def test_ssim_of_a_pattern_and_its_negative_is_zero():  # a negative structure term is set to zero
    assert ssim_y(checks(), 1 - checks()).item() == 0


def test_ssim_rounds_luma_to_whole_numbers():
    # 100 and 101 have luma 101.88 and 102.74, both closer to 102 and 103 than to anything else
    a, b, c1 = 102.0, 103.0, 2.55**2
    assert ssim_y(grey(100), grey(101)).item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-12)


def test_the_window_of_ssim_is_a_gaussian_of_sigma_1_5():
    impulse = torch.zeros(1, 21, 21, dtype=torch.float64)
    impulse[0, 10, 10] = 1
    window = blur(impulse)[0]
    assert (window[5, 6] / window[5, 5]).item() == pytest.approx(math.exp(-1 / (2 * 1.5**2)))


def test_each_image_of_a_batch_is_measured_alone():
    image, reference = torch.cat([grey(110), grey(100)]), torch.cat([grey(100), grey(100)])
    assert psnr_y(image, reference).tolist() == [psnr_y(grey(110), grey(100)).item(), pytest.approx(80)]


def test_different_shapes_are_an_error():
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\) and \(1, 3, 8, 8\)"):
        psnr_y(grey(0), grey(0)[..., :8, :8])


# ----------------------------------------------------------------------------------------- scikit-image says the same


def textured(seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(torch.rand(1, 3, 12, 12, generator=rng), 64, mode="bilinear")


def test_psnr_is_that_of_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio

    image, reference = (luma(textured(seed))[0].numpy() for seed in (0, 1))
    expected = peak_signal_noise_ratio(reference, image, data_range=255)
    assert psnr_y(textured(0), textured(1)).item() == pytest.approx(expected, abs=1e-5)


def test_ssim_is_that_of_scikit_image_on_rounded_luma():  # where no structure term is negative
    from skimage.metrics import structural_similarity

    image = (textured(0) + 0.03 * textured(1)).clamp(0, 1)
    pair = [luma(x)[0].round().numpy() for x in (image, textured(0))]
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = structural_similarity(*pair, data_range=255, **window)
    assert ssim_y(image, textured(0)).item() == pytest.approx(expected, abs=1e-9)
