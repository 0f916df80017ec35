"""The folded upsampling is the plain one, computed with fewer products."""

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from toys import toy_vae

from osdhuman.models.upsampling import FoldedUpsample, fold, fold_upsampling


@pytest.fixture
def plain() -> Upsample2D:
    torch.manual_seed(0)
    return Upsample2D(3, use_conv=True, out_channels=5).requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(1))


def test_a_doubled_value_meets_the_sum_of_the_taps_that_see_it():
    taps = torch.tensor([1.0, 10.0, 100.0])
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1] = taps  # one row of taps
    assert fold(weight)[0, 0, 1].tolist() == [100.0, 110.0, 11.0, 1.0]


def test_folding_changes_nothing_but_rounding(plain, x):
    torch.testing.assert_close(FoldedUpsample(plain.conv)(x), plain(x))


def test_another_size_than_the_double_is_reached_as_well(plain, x):
    torch.testing.assert_close(FoldedUpsample(plain.conv)(x, (7, 11)), plain(x, (7, 11)))


def test_mirrored_borders_are_kept(plain, x):
    plain.conv.padding_mode = "reflect"
    plain.conv._reversed_padding_repeated_twice = [1, 1, 1, 1]
    torch.testing.assert_close(FoldedUpsample(plain.conv)(x), plain(x))


def test_a_convolution_with_an_adapter_keeps_its_adapter(plain, x):
    class Adapted(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    adapted = Adapted(3, 5, 3, padding=1)
    adapted.load_state_dict(plain.conv.state_dict())
    torch.testing.assert_close(FoldedUpsample(adapted)(x), plain(x) + 1)


def test_a_decoder_keeps_its_result_and_the_names_of_its_weights():
    torch.manual_seed(0)
    decoder, z = toy_vae().decoder.requires_grad_(False), torch.randn(1, 6, 4, 4)
    names, expected = list(decoder.state_dict()), decoder(z)
    fold_upsampling(decoder)
    assert list(decoder.state_dict()) == names
    torch.testing.assert_close(decoder(z), expected)
