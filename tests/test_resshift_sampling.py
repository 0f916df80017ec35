"""Restoring with ResShift and SinSR: the originals' trajectories and images, tiles, padding, and noise by seed."""

import pytest
import torch
import torch.nn.functional as F
from resshift_toys import StandIn, assert_close, decode, encode, given, golden, normal, tiny_unet, tiny_vq

from osdhuman.config import ConfigError, parse_config
from osdhuman.models.resshift.checkpoint import VERSIONS
from osdhuman.models.resshift.chopping import ChopConfig, chopped, tile_starts
from osdhuman.models.resshift.sampling import (
    LatentRestorer,
    deterministic_latent,
    deterministic_states,
    enlarge,
    inverse_states,
    pad_to_multiple,
    resshift_latent,
    resshift_states,
    restore_tile,
    seeded_noise,
    sinsr_latent,
)
from osdhuman.models.resshift.schedule import ScheduleConfig, initial_state, make_schedule

THEIRS, SINSR, CHOP = golden("resshift_diffusion"), golden("sinsr"), golden("resshift_chop")
SCHEDULES = {"s15": make_schedule(ScheduleConfig()), "s4": make_schedule(VERSIONS["resshift_v3"].schedule)}
TOLERANCE = 1e-5
LQ = normal(201, (2, 3, 16, 16), 0.5)
Y = THEIRS["z_y"]
FIRST_NOISE = normal(202, (2, 3, 16, 16))


class Recorder(StandIn):
    """Keeps what it was told and what it predicted."""

    def __init__(self):
        super().__init__()
        self.steps: list[int] = []
        self.predictions: list[torch.Tensor] = []

    def __call__(self, x, t, lq):
        self.steps.append(int(t[0]))
        self.predictions.append(super().__call__(x, t, lq))
        return self.predictions[-1]


# Latents: the trajectories of the original


def test_the_lq_is_enlarged_and_encoded_as_in_the_original():
    assert_close(enlarge(LQ, 4), THEIRS["bicubic_x4"], TOLERANCE)
    assert_close(encode(enlarge(LQ, 4)), Y, TOLERANCE)


@pytest.mark.parametrize("name", ["s15", "s4"])
def test_sampling_starts_where_the_original_starts(name):
    assert_close(initial_state(Y, FIRST_NOISE, SCHEDULES[name]), THEIRS[f"{name}_xT"], TOLERANCE)


@pytest.mark.parametrize("name", ["s15", "s4"])
def test_resshift_goes_through_the_states_of_the_original(name):
    schedule = SCHEDULES[name]
    noise = given(FIRST_NOISE, *normal(203, (schedule.steps, 2, 3, 16, 16)))
    states = torch.stack(list(resshift_states(StandIn(), Y, LQ, schedule, noise)))
    assert_close(states, THEIRS[f"{name}_samples"], TOLERANCE)


@pytest.mark.parametrize(("name", "kept"), [("s15", [0, 7, 14]), ("s4", [0, 1, 2, 3])])
def test_resshift_predicts_what_the_original_predicts(name, kept):
    schedule, network = SCHEDULES[name], Recorder()
    noise = given(FIRST_NOISE, *normal(203, (schedule.steps, 2, 3, 16, 16)))
    resshift_latent(network, Y, LQ, schedule, noise)
    assert network.steps == list(reversed(range(schedule.steps)))
    assert_close(torch.stack([network.predictions[i] for i in kept]), THEIRS[f"{name}_pred_xstart"], TOLERANCE)


def test_sinsr_takes_one_step():
    network = Recorder()
    latent = sinsr_latent(network, Y, LQ, SCHEDULES["s15"], given(FIRST_NOISE))
    assert network.steps == [14]
    assert_close(latent, SINSR["onestep_latent"], TOLERANCE)


def test_sinsrs_teacher_goes_through_the_states_of_the_original():
    schedule = SCHEDULES["s15"]
    start = initial_state(Y, FIRST_NOISE, schedule)
    states = torch.stack(list(deterministic_states(StandIn(), start, Y, LQ, schedule)))
    assert_close(states, SINSR["ddim_samples"], TOLERANCE)
    assert torch.equal(deterministic_latent(StandIn(), start, Y, LQ, schedule), states[-1])


def test_the_teachers_result_carries_no_gradient():
    start = FIRST_NOISE.clone().requires_grad_()
    assert not deterministic_latent(StandIn(), start, Y, LQ, SCHEDULES["s4"]).requires_grad


def test_the_inverse_of_the_teacher_goes_where_the_originals_goes():
    z = encode(normal(204, (2, 3, 64, 64), 0.5))
    states = list(inverse_states(StandIn(), z, Y, LQ, SCHEDULES["s15"]))
    assert len(states) == SINSR["ddim_inverse_n"] == 14
    assert_close(states[-1], SINSR["ddim_inverse_last"], TOLERANCE)


# Latents and images: tiny networks end to end


@pytest.fixture(scope="module")
def networks():
    return tiny_unet(), tiny_vq()


FACE = normal(401, (1, 3, 64, 64), 0.4).clamp(-1, 1)


def crop(image):
    return image[..., 96:160, 96:160]


def unquantised(vq, z):
    return vq.decoder(vq.post_quant_conv(z)).clamp(-1, 1)


@torch.no_grad()
def test_four_steps_of_resshift_end_to_end(networks):
    unet, vq = networks
    noise = given(normal(402, (1, 3, 64, 64)), *normal(404, (4, 1, 3, 64, 64)))
    latent = resshift_latent(unet, vq.encode(enlarge(FACE, 4)), FACE, SCHEDULES["s4"], noise)
    assert_close(latent, THEIRS["e2e4_latent"], 1e-4)
    assert_close(crop(unquantised(vq, latent)), THEIRS["e2e4_noq_crop"], 1e-4)


@torch.no_grad()
def test_sinsr_end_to_end(networks):
    unet, vq = networks
    y = vq.encode(enlarge(FACE, 4))
    assert_close(y, SINSR["e2e_zy"], 1e-4)
    latent = sinsr_latent(unet, y, FACE, SCHEDULES["s15"], given(normal(402, (1, 3, 64, 64))))
    assert_close(latent, SINSR["e2e_latent"], 1e-4)
    assert_close(crop(unquantised(vq, SINSR["e2e_latent"])), SINSR["e2e_noq_crop"], 1e-4)


def test_a_restored_image_is_the_originals_in_0_to_1(networks):
    vq = networks[1]
    restorer = LatentRestorer(
        network=lambda x, t, lq: SINSR["e2e_latent"],  # the latent of the original: its codes are close calls
        encode=vq.encode,
        decode=vq.decode,
        schedule=SCHEDULES["s15"],
        sampler=sinsr_latent,
    )
    image = 2 * restore_tile((FACE + 1) / 2, restorer, given(normal(402, (1, 3, 64, 64)))) - 1
    assert_close(crop(image), SINSR["e2e_crop"], 1e-4)
    statistics = torch.stack([image.double().mean(), image.double().std(), image.double().abs().sum()])
    assert_close(statistics, SINSR["e2e_stats"], 1e-4)


# Padding


def stand_in_restorer(**changes) -> LatentRestorer:
    return LatentRestorer(**{"network": StandIn(), "encode": encode, "decode": decode} | changes)


def test_the_lq_is_reflected_on_the_right_and_below():
    assert torch.equal(pad_to_multiple(normal(502, (1, 3, 40, 70), 0.5), 64), CHOP["B_padded"])


def test_an_image_of_any_size_is_restored_as_in_the_original():
    noises = normal(503, (5, 1, 3, 64, 128))
    lq = (normal(502, (1, 3, 40, 70), 0.5) + 1) / 2
    image = restore_tile(lq, stand_in_restorer(schedule=SCHEDULES["s4"]), given(*noises))
    assert list(image.shape) == CHOP["B_out_shape"].tolist()
    assert_close(2 * image[..., ::4, ::4] - 1, CHOP["B_out_sub4"], TOLERANCE)


def test_noise_is_drawn_once_and_once_a_step_as_in_the_original():
    drawn = []
    noise = lambda like: drawn.append(1) or torch.zeros_like(like)  # noqa: E731
    restore_tile(torch.rand(1, 3, 40, 70), stand_in_restorer(schedule=SCHEDULES["s4"]), noise)
    assert len(drawn) == CHOP["B_noise_used"]


@pytest.mark.parametrize(("size", "fails"), [((33, 64), False), ((32, 64), True), ((64, 32), True)])
def test_an_image_too_small_to_be_reflected_is_an_error(size, fails):
    image = torch.rand(1, 3, *size)
    if not fails:
        assert pad_to_multiple(image, 64).shape == (1, 3, 64, 64)
        return
    with pytest.raises(ValueError, match=r"is too small: each side needs at least 33"):
        pad_to_multiple(image, 64)


def test_a_model_of_scale_1_sees_the_lq_as_it_is():
    seen = []
    restorer = stand_in_restorer(
        network=lambda x, t, lq: seen.append(lq.shape) or x,
        schedule=SCHEDULES["s4"],
        sampler=sinsr_latent,
        scale=1,
        padding=256,
    )
    assert restore_tile(torch.rand(1, 3, 200, 300), restorer, seeded_noise([0])).shape == (1, 3, 200, 300)
    assert seen == [(1, 3, 256, 512)]


# Noise


def test_an_images_noise_depends_on_its_seed_alone():
    lq = torch.rand(3, 3, 64, 64)
    restorer = stand_in_restorer(schedule=SCHEDULES["s4"])
    together = restore_tile(lq, restorer, seeded_noise([5, 6, 7]))
    alone = restore_tile(lq[2:], restorer, seeded_noise([7]))
    assert torch.equal(together[2:], alone)


def test_every_draw_continues_the_generators():
    noise, like = seeded_noise([1]), torch.zeros(1, 3, 4, 4)
    assert not torch.equal(noise(like), noise(like))


def test_a_batch_of_another_size_than_the_seeds_is_an_error():
    with pytest.raises(ValueError, match="a batch of 2 needs as many seeds, not 1"):
        seeded_noise([1])(torch.zeros(2, 3, 4, 4))


# Tiles


def test_tiles_start_where_the_originals_start():
    for length, size, stride, count, *starts in CHOP["starts_len_pch_stride_n_list"].tolist():
        assert tile_starts(length, size, stride) == starts[:count]


def numbered():
    """The golden file's operator: the k-th tile, doubled, plus 0.1 k."""
    k = iter(range(100))
    return lambda tile: F.interpolate(tile, scale_factor=2, mode="nearest") + 0.1 * next(k)


def test_overlapping_tiles_are_averaged_as_in_the_original():
    image = normal(501, (1, 3, 20, 27), 0.5)
    ours = chopped(image, ChopConfig(size=12, stride=8), 2, numbered())
    assert_close(ours, CHOP["A_gather"], TOLERANCE)


def test_tiles_lie_where_the_originals_lie():
    rows, cols = torch.meshgrid(torch.arange(20.0), torch.arange(27.0), indexing="ij")
    boxes = []

    def restore(tile):
        (top, left), (bottom, right) = tile[0, :2, 0, 0].tolist(), tile[0, :2, -1, -1].tolist()
        boxes.append([2 * int(top), 2 * int(bottom) + 2, 2 * int(left), 2 * int(right) + 2])
        return F.interpolate(tile, scale_factor=2, mode="nearest")

    chopped(torch.stack([rows, cols, rows])[None], ChopConfig(size=12, stride=8), 2, restore)
    assert boxes == CHOP["A_boxes_h0h1w0w1"].tolist()


def test_tiles_of_an_image_have_noise_of_their_own_from_its_seed():
    lq, restorer = torch.rand(2, 3, 64, 96), stand_in_restorer(schedule=SCHEDULES["s4"], encode=lambda x: encode(x) * 0)

    def restored(lq, seeds):
        noise = seeded_noise(seeds)
        return chopped(lq, ChopConfig(size=64, stride=32), 4, lambda tile: restore_tile(tile, restorer, noise))

    assert torch.equal(restored(lq, [3, 4])[1:], restored(lq[1:], [4]))
    left, right = restored(torch.zeros(1, 3, 64, 128), [3]).split(256, dim=3)
    assert not torch.equal(left, right)


def test_an_image_that_fits_a_tile_is_restored_at_once():
    image = torch.rand(1, 3, 20, 30)
    assert torch.equal(chopped(image, ChopConfig(), 1, lambda tile: tile * 2), image * 2)


def test_a_tile_of_the_wrong_size_is_an_error():
    with pytest.raises(ValueError, match=r"must have size \(40, 60\), not \(20, 30\)"):
        chopped(torch.rand(1, 3, 20, 30), ChopConfig(), 2, lambda tile: tile)


def test_tiles_of_a_model_of_scale_1_are_four_times_as_large():
    assert ChopConfig().at_scale(1) == ChopConfig(size=2048, stride=1792)


def test_tiles_with_gaps_are_refused():
    with pytest.raises(ConfigError, match="stride 500 must not exceed size 448"):
        parse_config(ChopConfig, {"size": 448, "stride": 500})


# Versions


def test_the_versions_have_their_official_steps_and_samplers():
    table = {name: (v.schedule.steps, v.schedule.min_noise_level, v.sampler) for name, v in VERSIONS.items()}
    assert table == {
        "resshift_v1": (15, 0.04, resshift_latent),
        "resshift_v2": (15, 0.04, resshift_latent),
        "resshift_v3": (4, 0.2, resshift_latent),
        "sinsr_v1": (15, 0.04, sinsr_latent),
        "sinsr_v2": (15, 0.04, sinsr_latent),
    }
