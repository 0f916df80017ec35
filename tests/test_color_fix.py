"""Colour fix against numbers of the published implementations (tests/golden/color_fix.npz) and on one-liners."""

from pathlib import Path

import numpy as np
import pytest
import torch

from osdhuman.inference.color_fix import adain, fix_color, low_frequencies, wavelet

GOLDEN = np.load(Path(__file__).parent / "golden" / "color_fix.npz")


def image(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name]).permute(2, 0, 1)[None].float() / 255


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


@pytest.mark.parametrize("fix", [adain, wavelet])
def test_equal_to_the_published_fix(fix):
    torch.testing.assert_close(fix(image("target"), image("source")), golden(f"{fix.__name__}_f32"), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["adain", "wavelet"])
def test_bytes_equal_to_the_published_ones(kind):
    fixed = fix_color(image("target"), image("source"), kind)
    bytes_ = (fixed[0].permute(1, 2, 0) * 255).to(torch.uint8)  # the published code truncates
    assert torch.equal(bytes_, golden(f"{kind}_u8"))


def test_low_frequencies_equal_to_the_published_ones():
    torch.testing.assert_close(low_frequencies(image("target")), golden("wavelet_low_of_target"), atol=1e-6, rtol=0)


def test_strength_zero_leaves_the_image():
    assert torch.equal(fix_color(image("target"), image("source"), "wavelet", 0), image("target"))


def test_half_strength_is_half_way():
    half = fix_color(image("target"), image("source"), "wavelet", 0.5)
    full = fix_color(image("target"), image("source"), "wavelet", 1)
    inside = (full > 0) & (full < 1)  # not clamped
    torch.testing.assert_close(half[inside], ((full + image("target")) / 2)[inside])


def test_off_leaves_the_image():
    assert torch.equal(fix_color(image("target"), image("source"), "off"), image("target"))


@pytest.mark.parametrize("kind", ["adain", "wavelet"])
def test_one_pixel_takes_the_colour_of_the_input(kind):
    one, other = torch.full((1, 3, 1, 1), 0.2), torch.full((1, 3, 1, 1), 0.7)
    torch.testing.assert_close(fix_color(one, other, kind), other)


def test_different_sizes_are_an_error():
    with pytest.raises(ValueError, match="of one size"):
        fix_color(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))
