"""Tiles against numbers of the published implementations, and a tiled VAE against the whole one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toys import toy_vae

from osdhuman.inference.latent_tiles import blend_latent, gaussian_weights, starts
from osdhuman.inference.vae_tiles import replaced_forwards, run_tiled, tiled_vae, vae_tile_boxes, windows

FOLDER = Path(__file__).parent / "golden"
GOLDEN = np.load(FOLDER / "tiling.npz")
BOXES = json.loads((FOLDER / "vae_tile_boxes.json").read_text())


def test_starts_keep_a_fixed_step_and_end_with_the_length():
    assert starts(20, tile=8, overlap=3) == [0, 5, 10, 12]


def test_one_tile_for_a_short_side():
    assert starts(7, tile=8, overlap=3) == [0]


def test_overlap_as_large_as_the_tile_is_an_error():
    with pytest.raises(ValueError, match="smaller than the tile of 8, got 8"):
        starts(20, tile=8, overlap=8)


@pytest.mark.parametrize("name, height, width", [("w8", 8, 8), ("w7", 7, 7), ("w_width6_height9", 9, 6)])
def test_weights_equal_to_the_published_ones(name, height, width):
    np.testing.assert_allclose(gaussian_weights(height, width), GOLDEN[name], rtol=1e-12)


@pytest.mark.parametrize("side", [64, 96])
def test_large_weights_equal_to_the_published_ones(side):
    weights = gaussian_weights(side, side).numpy()
    found = [*weights[0], *weights[:, 0], *weights[side // 2], weights.sum()]
    expected = np.concatenate(
        [*(GOLDEN[f"w{side}_{part}"] for part in ("row0", "col0", "mid")), [GOLDEN[f"w{side}_sum"]]]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def position_in_tile(tile: torch.Tensor) -> torch.Tensor:
    return 0.5 * tile + 0.1 * torch.arange(tile.shape[2])[:, None] + 0.01 * torch.arange(tile.shape[3])


@pytest.mark.parametrize("case", "abcd")
def test_blended_noise_equal_to_the_published_one(case):
    _, _, tile, overlap, _ = map(int, GOLDEN[f"tiled_{case}_cfg"])
    noise = blend_latent(position_in_tile, torch.from_numpy(GOLDEN[f"tiled_{case}_latent"]), tile, overlap)
    np.testing.assert_allclose(noise, GOLDEN[f"tiled_{case}_pred"], atol=1e-6)


@pytest.mark.parametrize("case", "abcd")
def test_one_call_per_tile(case):
    height, width, tile, overlap, expected = map(int, GOLDEN[f"tiled_{case}_cfg"])
    calls = []
    blend_latent(lambda z: calls.append(1) or z, torch.zeros(1, 4, height, width), tile, overlap)
    assert len(calls) == expected


@pytest.mark.parametrize("name", BOXES)
def test_boxes_read_as_published(name):
    golden = BOXES[name]
    tiles = vae_tile_boxes(golden["h"], golden["w"], golden["tile"], golden["pad"])
    x0, y0, x1, y1 = zip(*(tile.source for tile in tiles), strict=True)
    assert list(map(list, zip(x0, x1, y0, y1, strict=True))) == golden["input_boxes_x1x2y1y2"]


@pytest.mark.parametrize("name", BOXES)
def test_boxes_kept_as_published(name):
    golden = BOXES[name]
    scale = 8 if golden["is_decoder"] else 1 / 8
    tiles = vae_tile_boxes(golden["h"], golden["w"], golden["tile"], golden["pad"])
    x0, y0, x1, y1 = zip(*(tuple(int(edge * scale) for edge in tile.target) for tile in tiles), strict=True)
    assert list(map(list, zip(x0, x1, y0, y1, strict=True))) == golden["output_boxes_x1x2y1y2"]


def test_tiles_of_convolutions_are_exact_where_the_padding_covers_their_reach():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 3, 3, padding=1))
    x = torch.randn(1, 3, 90, 130)
    torch.testing.assert_close(run_tiled(layers, x, tile=32, pad=2), layers(x))


def test_windows_are_spread_over_the_whole_picture():
    picture = torch.arange(100.0).expand(1, 1, 100, 100)
    assert windows(picture, side=10, budget=900)[:, 0, 0, 0].tolist() == [0, 45, 90] * 3


def natural_picture(height: int, width: int) -> torch.Tensor:
    """Smooth colours and some noise: what makes the statistics of one part of a picture differ from another's."""
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 5), (height, width), mode="bicubic")
    return (smooth + 0.05 * torch.randn(1, 3, height, width)).clamp(0, 1)


def difference(tiled: torch.Tensor, whole: torch.Tensor) -> float:
    return ((tiled - whole).square().mean().sqrt() / whole.std()).item()


@pytest.fixture(scope="module")
def passes():
    """Latent and image of a random VAE, whole and in tiles of 256 of a 512 x 640 picture."""
    torch.manual_seed(0)
    vae, image = toy_vae().eval(), natural_picture(512, 640)
    with torch.no_grad():
        z = vae.encode(image).latent_dist.mode()
        whole = vae.decode(z).sample
        with tiled_vae(vae, 256, 256):
            return z, vae.encode(image).latent_dist.mode(), whole, vae.decode(z).sample


def test_tiled_encoder_is_close_to_the_whole_one(passes):
    z, tiled, _, _ = passes
    assert difference(tiled, z) < 0.1  # of its deviation; random weights enlarge any error


def test_tiled_decoder_is_close_to_the_whole_one(passes):
    _, _, whole, tiled = passes
    assert difference(tiled, whole) < 0.3


def test_tiles_leave_no_seam(passes):
    _, _, whole, tiled = passes
    error = (tiled - whole).mean(dim=1)[0]
    steps = error.diff(dim=1).abs().mean(dim=0)
    assert steps.max() < 4 * steps.median()  # no column at which the error jumps


def test_a_picture_within_one_tile_is_exact():
    torch.manual_seed(0)
    vae, image = toy_vae().eval(), natural_picture(256, 256)
    with torch.no_grad(), tiled_vae(vae, 256, 256):
        tiled = vae.encode(image).latent_dist.mode()
    assert torch.equal(tiled, vae.encode(image).latent_dist.mode())


def test_modules_are_restored_after_an_error():
    layer = nn.Conv2d(1, 1, 1)
    with pytest.raises(RuntimeError), replaced_forwards({layer: torch.zeros_like}):
        raise RuntimeError
    assert layer.forward.__func__ is nn.Conv2d.forward
