"""The degradation: what a sample depends on, and what each kernel and stage does."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from osdhuman.config import ConfigError, load_config, parse_config
from osdhuman.data import blur_kernels
from osdhuman.data.degradation import (
    Degradation,
    DegradationConfig,
    OrderConfig,
    OrderRecipe,
    SecondOrderConfig,
    add_noise,
    blur,
    compress,
    draw_final,
    draw_kernel,
    draw_order,
    poisson_noise,
    rescale,
    resize,
    sharpen,
)

ROOT = Path(__file__).parents[1]
KERNELS = {
    "gaussian": blur_kernels.gaussian(9, 1.3, 1.3),
    "wide and low gaussian": blur_kernels.gaussian(11, 2.5, 0.6),
    "turned gaussian": blur_kernels.gaussian(21, 3.0, 0.4, 0.7),
    "generalized": blur_kernels.generalized_gaussian(13, 2.0, 1.0, -0.5, 0.6),
    "plateau": blur_kernels.plateau(15, 2.0, 1.0, 2.0, 1.7),
    "sinc": blur_kernels.sinc(21, 1.1),
}
ALL_OFF = {
    "scale": 1,
    "final_sinc": False,
    **{order: dict.fromkeys(("blur", "resize", "noise", "jpeg"), False) for order in ("first", "second")},
}
STAGES = [f"{order}.{stage}" for order in ("first", "second") for stage in ("blur", "resize", "noise", "jpeg")]


@pytest.fixture(scope="module")
def hq() -> torch.Tensor:
    """Four smooth coloured scenes with an edge, (4,3,64,80)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 80), indexing="ij")
    waves = [torch.stack([0.5 + 0.4 * torch.sin((3 + i + c) * (x + c * y)) for c in range(3)]) for i in range(4)]
    return torch.stack(waves).where(x + y < 1.2, torch.tensor(0.1))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def config(**changes) -> DegradationConfig:
    return parse_config(DegradationConfig, changes)


def only(stage: str) -> DegradationConfig:
    """Everything off but one stage such as `first.blur`, which is applied for sure."""
    order, _, switch = stage.rpartition(".")
    if not order:
        return config(**ALL_OFF | {switch: True, "final_sinc_prob": 1.0})
    changed = {**ALL_OFF[order], switch: True, "blur_prob": 1.0, "resize_weights": [0, 1, 0]}
    return config(**ALL_OFF | {order: changed})


# ---- a sample depends on (seed, index) alone ----


def test_same_seed_and_index_give_the_same_sample(hq):
    assert torch.equal(Degradation()(hq, 1, range(4)), Degradation()(hq, 1, range(4)))


def test_a_batch_of_four_equals_four_batches_of_one(hq):
    single = torch.cat([Degradation()(hq[i : i + 1], 1, [i]) for i in range(4)])
    assert torch.equal(Degradation()(hq, 1, range(4)), single)


@pytest.mark.parametrize(("seed", "index"), [(2, 0), (1, 1)])
def test_another_seed_or_index_gives_another_sample(hq, seed, index):
    assert not torch.equal(Degradation()(hq[:1], seed, [index]), Degradation()(hq[:1], 1, [0]))


def test_global_random_states_are_neither_used_nor_moved(hq):
    torch.manual_seed(0)
    first = Degradation()(hq, 1, range(4))
    state = torch.get_rng_state()
    second = Degradation()(hq, 1, range(4))
    assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())


def test_the_layout_in_memory_changes_nothing(hq):
    last = hq.contiguous(memory_format=torch.channels_last)
    assert torch.equal(Degradation(config(usm=True))(last, 1, range(4)), Degradation(config(usm=True))(hq, 1, range(4)))


def test_autocast_around_it_changes_nothing(hq):
    with torch.autocast("cpu", torch.bfloat16):
        inside = Degradation()(hq, 1, range(4))
    assert torch.equal(inside, Degradation()(hq, 1, range(4)))


def test_switching_a_stage_off_leaves_what_the_others_drew(rng):
    with_jpeg = draw_order(OrderConfig(), np.random.default_rng(0))
    without = draw_order(OrderConfig(jpeg=False, blur=False), np.random.default_rng(0))
    assert with_jpeg[1:] == without[1:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_sample(hq):
    difference = Degradation()(hq.cuda(), 1, range(4)).cpu() - Degradation()(hq, 1, range(4))
    assert difference.abs().mean() < 1e-4


# ---- what comes out ----


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (65, 127), (333, 100)])
def test_any_size_keeps_its_size(size):
    assert Degradation()(torch.rand(1, 3, *size), 0, [3]).shape == (1, 3, *size)


def test_lq_is_float32_on_the_grid_of_8_bits(hq):
    lq = Degradation()(hq.double(), 0, range(4))
    assert torch.equal(lq, (lq * 255).round().clamp(0, 255) / 255) and lq.dtype == torch.float32


def test_everything_off_only_rounds_to_8_bits(hq):
    assert torch.equal(Degradation(config(**ALL_OFF))(hq, 0, range(4)), (hq * 255).round() / 255)


@pytest.mark.parametrize("stage", [*STAGES, "final_sinc", "usm"])
def test_each_switch_alone_brings_in_its_stage(hq, stage):
    assert not torch.equal(Degradation(only(stage))(hq, 0, range(4)), (hq * 255).round() / 255)


def test_low_resolution_is_a_quarter_of_the_sides(hq):
    """With all else off, 64 x 80 holds but 16 x 20 samples, so that shrinking and enlarging by area loses nothing."""
    lq = Degradation(config(**ALL_OFF | {"scale": 4}))(hq[:1], 0, [_index_with_back_mode("area")])
    small = resize(lq[0], (16, 20), "area")
    torch.testing.assert_close(resize(small, (64, 80), "area"), lq[0])


def _index_with_back_mode(mode: str) -> int:
    def drawn(index):
        parameters = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0, index]).spawn(3)[0]))
        settings = DegradationConfig()
        draw_order(settings.first, parameters), draw_order(settings.second, parameters)
        return draw_final(settings, parameters).back_mode

    return next(index for index in range(100) if drawn(index) == mode)


# ---- kernels ----


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_sums_to_one(name):
    assert KERNELS[name].sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_symmetric_about_its_centre(name):
    torch.testing.assert_close(KERNELS[name], KERNELS[name].flip(0, 1), rtol=0, atol=1e-15)


def test_gaussian_by_hand():
    """Sigma 1: exp(-1/2) beside the centre, exp(-1) in the corners."""
    kernel = blur_kernels.gaussian(3, 1.0, 1.0)
    assert (kernel[1, 0] / kernel[1, 1]).item() == pytest.approx(np.exp(-0.5))


def test_angle_turns_the_long_axis_from_x_to_y():
    """At 45 degrees the corner (4,4) lies sqrt(32) along an axis of sigma 2, and 0 across: exp(-32 / 4 / 2)."""
    kernel = blur_kernels.gaussian(9, 2.0, 0.5, np.pi / 4)
    assert (kernel[8, 8] / kernel[4, 4]).item() == pytest.approx(np.exp(-4))


def test_generalized_gaussian_with_beta_one_is_gaussian():
    torch.testing.assert_close(
        blur_kernels.generalized_gaussian(9, 2.0, 0.7, 0.3, 1.0), blur_kernels.gaussian(9, 2.0, 0.7, 0.3)
    )


def test_plateau_is_half_as_high_one_sigma_away():
    kernel = blur_kernels.plateau(5, 1.0, 1.0, 0.0, 1.5)
    assert (kernel[2, 1] / kernel[2, 2]).item() == pytest.approx(0.5)


def test_sinc_centre_is_the_limit_of_its_surroundings():
    """cutoff * J1(cutoff * r) / (2 pi r) goes to cutoff^2 / (4 pi); beside it, r = 1, stands cutoff * J1 / (2 pi)."""
    kernel, j1_of_1 = blur_kernels.sinc(7, 1.0), 0.44005058574493355
    assert (kernel[3, 3] / kernel[3, 4]).item() == pytest.approx((1 / (4 * np.pi)) / (j1_of_1 / (2 * np.pi)))


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="odd size, got 8"):
        blur_kernels.gaussian(8, 1.0, 1.0)


def test_kernel_sizes_are_the_odd_ones_of_the_range(rng):
    sizes = {draw_kernel(OrderConfig(), rng).shape[0] for _ in range(300)}
    assert sizes == {7, 9, 11, 13, 15, 17, 19, 21}


# ---- stages ----


@pytest.mark.parametrize("name", KERNELS)
def test_blur_is_filtering_with_reflected_borders(hq, name):
    expected = cv2.filter2D(hq[0, 0].double().numpy(), -1, KERNELS[name].numpy(), borderType=cv2.BORDER_REFLECT_101)
    torch.testing.assert_close(blur(hq[0], KERNELS[name])[0], torch.from_numpy(expected).float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kernel", [KERNELS["plateau"], blur_kernels.gaussian(15, 3.0, 3.0)])
def test_blur_goes_on_reflecting_where_the_kernel_is_wider_than_the_image(rng, kernel):
    image = torch.from_numpy(rng.random((1, 4, 6), dtype=np.float32))
    padded = torch.from_numpy(np.pad(image.numpy(), [(0, 0), (7, 7), (7, 7)], mode="reflect"))
    expected = torch.nn.functional.conv2d(padded[None].double(), kernel[None, None])[0]
    torch.testing.assert_close(blur(image, kernel), expected.float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [(20, 30), (128, 240)])
@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_resize_has_no_antialiasing(hq, mode, size):
    assert torch.equal(resize(hq[0], size, mode), torch.nn.functional.interpolate(hq[:1], size, mode=mode)[0])


def test_rescale_rounds_the_size_down(hq):
    assert rescale(hq[0], 0.15, "bicubic").shape == (3, 9, 12)


def recipe(**changes) -> OrderRecipe:
    return OrderRecipe(None, 1.0, "area", False, 20.0, False, 50)._replace(**changes)


def test_gaussian_noise_has_its_sigma_in_steps_of_255(rng):
    noise = add_noise(torch.full((3, 256, 256), 0.5), recipe(), rng) - 0.5
    assert noise.std().item() * 255 == pytest.approx(20, rel=0.02)


@pytest.mark.parametrize("poisson", [False, True])
def test_gray_noise_is_the_same_in_all_channels(rng, poisson):
    noisy = add_noise(torch.full((3, 32, 32), 0.5), recipe(gray=True, poisson=poisson, noise_strength=1.0), rng)
    assert torch.equal(noisy[0], noisy[1]) and torch.equal(noisy[0], noisy[2])


@pytest.mark.parametrize("level", [1, 20, 128, 255])
def test_poisson_noise_has_the_variance_of_its_level(level):
    """256 grey levels make 256 photons for white: the variance of the level p is p / 256."""
    ramp = torch.arange(256.0).repeat_interleave(2)
    image = torch.cat([ramp, torch.full((200_000,), float(level))])[None, None] / 255
    noise = poisson_noise(image, np.random.default_rng(1))[..., 512:]
    assert noise.var().item() == pytest.approx(level / 255 / 256, rel=0.02)


def test_poisson_noise_has_no_mean():
    noise = poisson_noise(torch.full((1, 400, 400), 0.5), np.random.default_rng(1))
    assert abs(noise.mean().item()) < 0.01 * noise.std().item()


def test_fewer_grey_levels_mean_fewer_photons(rng):
    """Two levels: 2^ceil(log2 2) = 2 photons, so that noise moves in steps of a half."""
    image = torch.tensor([0.0, 1.0]).repeat(50)[None, None]
    assert torch.equal(poisson_noise(image, rng) * 2 % 1, torch.zeros_like(image))


def test_jpeg_is_libjpegs_with_halved_colour(hq):
    pixels = (hq[0] * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1].copy()
    settings = [cv2.IMWRITE_JPEG_QUALITY, 40, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x221111]
    expected = cv2.imdecode(cv2.imencode(".jpg", pixels, settings)[1], cv2.IMREAD_COLOR)[..., ::-1].copy()
    assert torch.equal(compress(hq[0], 40), torch.from_numpy(expected).permute(2, 0, 1) / 255)


def test_sharpening_leaves_faint_detail_alone():
    image = 0.5 + torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 5 / 255
    torch.testing.assert_close(sharpen(image), image, rtol=0, atol=1e-6)


def test_sharpening_raises_the_contrast_of_an_edge():
    edge = torch.zeros(3, 64, 64)
    edge[..., 32:] = 0.5
    assert sharpen(edge)[0, 32, 32] > 0.55


# ---- settings ----


def test_the_shipped_file_holds_the_defaults():
    assert load_config(DegradationConfig, ROOT / "configs" / "degrade.yaml") == DegradationConfig()


def test_changing_one_value_of_the_second_order_keeps_its_others():
    assert config(second={"jpeg": False}).second == SecondOrderConfig(jpeg=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": {"resize_range": [0.1, 0.9]}}, "must hold 1"),
        ({"first": {"blur_sigma": [3, 1]}}, "low <= high"),
        ({"first": {"kernel_weights": [0] * 6}}, "above 0"),
        ({"second": {"gray_prob": 1.5}}, "less than or equal to 1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("shape", "seed", "indices", "message"),
    [
        ((1, 1, 64, 64), 0, [0], r"\(B,3,H,W\)"),
        ((1, 3, 8, 64), 0, [0], "at least 16 pixels"),
        ((1, 3, 64, 64), 0, [0, 1], "2 indices for 1 samples"),
        ((1, 3, 64, 64), -1, [0], "must not be negative, got seed -1"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(shape, seed, indices, message):
    with pytest.raises(ValueError, match=message):
        Degradation()(torch.zeros(shape), seed, indices)
