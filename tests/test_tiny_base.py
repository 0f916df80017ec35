"""The small base: networks that start as linear codes."""

import pytest
import torch
import torch.nn.functional as F

from osdhuman.tiny.linear_start import start_as_identity, start_as_linear_code
from osdhuman.tiny.tiny_base import TinyBaseConfig, build_unet, build_vae, list_photographs

CONFIG = TinyBaseConfig(photographs="unused")


@pytest.fixture(scope="module")
def images():
    """Smooth random colour fields: like photographs, neighbouring pixels agree."""
    coarse = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(32, 32), mode="bilinear", align_corners=False)


@pytest.fixture(scope="module")
def vae(images):
    torch.manual_seed(0)
    vae = build_vae(CONFIG)
    start_as_linear_code(vae, images)
    return vae.eval()


def test_latents_start_as_whitened_principal_components(vae, images):
    with torch.no_grad():
        z = vae.encode(images * 2 - 1).latent_dist.mode()
    blocks = F.pixel_unshuffle(images * 2 - 1, 4)
    centred = (blocks - blocks.mean((0, 2, 3), keepdim=True)).permute(0, 2, 3, 1).flatten(0, 2)
    first = torch.linalg.svd(centred, full_matrices=False).U[:, 0] * len(centred) ** 0.5
    correlation = torch.corrcoef(torch.stack([first, z[:, 0].flatten()]))[0, 1].abs()
    assert correlation > 0.99


def test_decoder_starts_as_enlarged_block_colours(vae, images):
    with torch.no_grad():
        restored = vae.decode(vae.encode(images * 2 - 1).latent_dist.mode()).sample
    colours = F.interpolate(F.avg_pool2d(images * 2 - 1, 4), scale_factor=4, mode="bilinear")
    assert (restored - colours).abs().mean() < 0.05


def test_unet_starts_as_the_identity():
    torch.manual_seed(0)
    unet = build_unet(CONFIG)
    start_as_identity(unet)
    z_t = torch.randn(2, 16, 16, 16)
    with torch.no_grad():
        noise = unet(z_t, torch.tensor([5, 900]), torch.randn(2, 16, 64)).sample
    torch.testing.assert_close(noise, z_t, atol=0.03, rtol=0.03)


def test_photographs_named_by_a_file_are_relative_to_it(tmp_path):
    (tmp_path / "list.txt").write_text("a/b.jpg\n")
    assert list_photographs(tmp_path / "list.txt") == [tmp_path / "a/b.jpg"]


def test_no_photographs_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no photographs"):
        list_photographs(tmp_path)
