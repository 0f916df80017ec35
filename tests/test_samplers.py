"""Samplers of many steps: schedules and results of the original code on an analytic network."""

import math

import numpy as np
import pytest
import torch
from controlled_toys import difference, golden, parameter, seeds, tiles

from osdhuman.models.diffusion import alphas_cumprod
from osdhuman.models.samplers import (
    ddpm_scheduler,
    draw,
    guided,
    rescaled_guidance,
    sample_ddpm,
    sample_dpm3m_sde,
    sample_unipc,
    sde_grid,
    unipc_scheduler,
    weighted,
    whole,
    zero_snr_abar,
)

DATA = golden("multistep_samplers")
X, C = DATA["in_x_T"], DATA["in_c_img"]


def network(x, t, mean, window=(slice(None), slice(None))):
    return torch.sin(3 * x + C[..., *window] + t / 1000) + mean


def predictor(scale):
    return lambda x, t: guided(network(x, t, -0.2), network(x, t, 0.3), scale(t) if callable(scale) else scale)


def stored_noise():
    count = iter(range(100))
    return lambda x: parameter(f"sampler/noise{next(count)}", x.shape, scale=1.0)


def test_seesr_steps_from_981_to_1():
    assert ddpm_scheduler(50, "leading").timesteps.tolist() == list(range(981, 0, -20))


def test_diffbir_steps_from_999_to_0():
    assert ddpm_scheduler(50, "linspace").timesteps.flip(0).tolist() == DATA["spaced50_timesteps"].tolist()


def test_pasd_steps_from_999_to_50():
    expected = [999, 949, 899, 849, 799, 749, 699, 649, 599, 549, 500, 450, 400, 350, 300, 250, 200, 150, 100, 50]
    assert unipc_scheduler(20).timesteps.tolist() == expected


def test_the_schedulers_know_the_schedule_of_stable_diffusion():
    assert torch.allclose(ddpm_scheduler(50, "leading").alphas_cumprod, alphas_cumprod(), rtol=1e-6)


def test_the_spaced_sampler_is_diffbirs():
    result = sample_ddpm(predictor(4), X, ddpm_scheduler(50, "linspace"), seeds(231))
    assert difference(result, DATA["spaced50_out"]) < 1e-5


def test_the_spaced_sampler_with_v_and_growing_guidance_is_diffbirs():
    scheduler = ddpm_scheduler(50, "linspace", "v_prediction", zero_terminal_snr=True)
    result = sample_ddpm(predictor(lambda t: rescaled_guidance(8, t)), X, scheduler, seeds(231))
    assert difference(result, DATA["spaced50_v_out"]) < 1e-5


def test_the_spaced_sampler_with_tiles_is_diffbirs():
    blend = tiles(8, 12, tile=8, overlap=5)

    def predict(x, t):
        def on_tiles(mean):
            return blend(lambda z, w: network(z, t, mean, w) + 0.5 * z.mean(dim=(2, 3), keepdim=True), x)

        return guided(on_tiles(-0.2), on_tiles(0.3), 4)

    result = sample_ddpm(predict, X, ddpm_scheduler(50, "linspace"), seeds(231))
    assert difference(result, DATA["spaced50_tiled_out"]) < 1e-5


def test_the_schedule_with_zero_terminal_snr_is_diffbirs():
    assert difference(zero_snr_abar().sqrt(), DATA["sqrt_acp_v_zsnr"]) < 1e-6


def test_that_schedule_ends_in_pure_noise():
    assert zero_snr_abar()[-1] == 0


def test_the_timesteps_of_the_sde_solver_are_diffbirs():
    assert [*sde_grid(10, zero_snr_abar())[0], 0] == DATA["edm10_timesteps"].tolist()


def test_the_noise_levels_of_the_sde_solver_are_diffbirs():
    assert np.allclose(sde_grid(10, zero_snr_abar())[1], DATA["edm10_sigmas"], rtol=1e-5)


def test_the_sde_solver_is_diffbirs():
    result = sample_dpm3m_sde(predictor(6), X, 10, zero_snr_abar(), "v_prediction", stored_noise())
    assert difference(result, DATA["edm10_3msde_out"]) < 1e-5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_sde_solver_returns_a_latent_that_the_network_knows(prediction):
    z = torch.full((1, 4, 2, 2), 0.7)
    abar = alphas_cumprod()
    timesteps, sigmas = sde_grid(10, abar)
    sigma_at = dict(zip(timesteps, sigmas[:-1], strict=True))

    def predict(x, t):  # x = (z + sigma noise) / sqrt(1 + sigma^2)
        sigma = sigma_at[t]
        noise = (x * (1 + sigma**2).sqrt() - z) / sigma
        return noise if prediction == "epsilon" else (noise - sigma * z) / (1 + sigma**2).sqrt()

    result = sample_dpm3m_sde(predict, torch.randn(1, 4, 2, 2), 10, abar, prediction, torch.randn_like)
    assert torch.allclose(result, z, atol=1e-3)


def test_unipc_returns_a_latent_that_the_network_knows():
    z, abar = torch.full((1, 4, 2, 2), 0.7), alphas_cumprod()
    x = abar[999].sqrt() * z + (1 - abar[999]).sqrt() * torch.randn(1, 4, 2, 2)
    result = sample_unipc(lambda x, t: (x - abar[t].sqrt() * z) / (1 - abar[t]).sqrt(), x, 20)
    assert torch.allclose(result, z, atol=1e-3)


def test_guidance_goes_from_negative_through_positive():
    assert guided(torch.tensor(1.0), torch.tensor(3.0), 5.5) == 12.0


def test_growing_guidance_starts_at_1():
    assert rescaled_guidance(8, 1000) == 1


def test_growing_guidance_ends_at_1_more_than_its_scale():
    assert math.isclose(rescaled_guidance(8, 0), 9)


def test_the_noise_of_an_image_depends_on_its_generator_alone():
    both, alone = draw(seeds(1, 2), torch.zeros(2, 4, 3, 3)), draw(seeds(2), torch.zeros(1, 4, 3, 3))
    assert torch.equal(both[1:], alone)


def test_a_step_of_one_image_does_not_depend_on_the_batch():
    x = torch.cat([X, X + 1])

    def sample(x, generators):
        return sample_ddpm(lambda z, t: torch.sin(z), x, ddpm_scheduler(4, "leading"), generators)

    assert torch.equal(sample(x, seeds(1, 2))[1:], sample(x[1:], seeds(2)))


def test_one_generator_per_image_is_required():
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        draw(seeds(1), torch.zeros(2, 4, 3, 3))


def test_tiles_of_a_network_that_looks_at_no_neighbours_change_nothing():
    z = torch.randn(2, 4, 16, 24)
    assert torch.allclose(tiles(16, 24, 8, 4)(lambda x, window: x.sin(), z), z.sin(), atol=1e-6)


def test_a_tile_is_told_its_place():
    here = torch.arange(16.0 * 24).view(1, 1, 16, 24)
    blended = tiles(16, 24, 8, 4)(lambda x, window: here[..., *window], torch.zeros_like(here))
    assert torch.allclose(blended, here, rtol=1e-5)


def test_overlapping_tiles_are_averaged_by_their_weights():
    windows = [(slice(0, 1), slice(0, 2)), (slice(0, 1), slice(1, 3))]
    blend = weighted(windows, torch.tensor([[1.0, 3.0]]))
    result = blend(lambda x, window: torch.full_like(x, window[1].start), torch.zeros(1, 1, 1, 3))
    assert result.flatten().tolist() == [0.0, 0.25, 1.0]  # in the middle 3 parts of 0 and 1 part of 1


def test_without_tiles_the_window_is_everything():
    z = torch.randn(1, 4, 5, 6)
    assert torch.equal(whole(lambda x, window: z[..., *window] - x, z), torch.zeros_like(z))
