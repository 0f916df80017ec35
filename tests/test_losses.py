"""Eq. 4, 6 and 7 on numbers. The golden arrays were computed by OSEDiff's own code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from osdhuman.models.diffusion import add_noise, alphas_cumprod, x0_from_noise
from osdhuman.recipes.losses import (
    classifier_free_guidance,
    generator_loss,
    mse_loss,
    regularizer_loss,
    vsd_direction,
    vsd_loss,
)
from osdhuman.recipes.perceptual import build_perceptual


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(Path(__file__).parent / "golden" / "osediff_vsd.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture
def vsd_inputs(golden):
    noise_pretrained = classifier_free_guidance(golden["eps_uncond"], golden["eps_text"], float(golden["cfg"]))
    z_t = add_noise(golden["latents"], golden["noise"], golden["timesteps"], golden["alphas_cumprod"])
    return z_t, golden["timesteps"], noise_pretrained, golden["eps_update"], golden["alphas_cumprod"]


def close(actual, expected):
    """Equal to 1e-5 of the largest expected value."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_the_schedule_is_stable_diffusions(golden):
    close(alphas_cumprod(), golden["alphas_cumprod"])


def test_noise_is_added_as_in_osediff(golden, vsd_inputs):
    close(vsd_inputs[0], golden["noisy_latents"])


def test_eq_2_at_t_999(golden):
    t = torch.tensor([999])
    close(x0_from_noise(golden["onestep_z"], golden["onestep_eps"], t, alphas_cumprod()), golden["onestep_x0_t999"])


def test_guidance_then_eq_2_gives_the_pretrained_latents(golden, vsd_inputs):
    z_t, t, noise_pretrained, _, abar = vsd_inputs
    close(x0_from_noise(z_t, noise_pretrained, t, abar), golden["x0_fix"])


def test_vsd_direction_is_osediffs(golden, vsd_inputs):
    close(vsd_direction(golden["latents"], *vsd_inputs), golden["grad_direction"])


def test_vsd_value_is_osediffs(golden, vsd_inputs):
    close(vsd_loss(golden["latents"], *vsd_inputs), golden["loss"])


def test_vsd_gradient_is_osediffs(golden, vsd_inputs):
    z_hat = golden["latents"].clone().requires_grad_()
    vsd_loss(z_hat, *vsd_inputs).backward()
    close(z_hat.grad, golden["dloss_dlatents"])


def test_vsd_gradient_is_two_directions_over_the_number_of_values(golden, vsd_inputs):
    z_hat = golden["latents"].clone().requires_grad_()
    vsd_loss(z_hat, *vsd_inputs).backward()
    close(z_hat.grad, 2 * vsd_direction(z_hat, *vsd_inputs) / z_hat.numel())


def test_vsd_is_zero_where_both_regularizers_agree(golden, vsd_inputs):
    z_t, t, noise, _, abar = vsd_inputs
    assert vsd_loss(golden["latents"], z_t, t, noise, noise, abar) == 0


def test_vsd_pushes_along_pretrained_minus_finetuned(golden, vsd_inputs):
    _, _, pretrained, finetuned, _ = vsd_inputs
    assert torch.equal(vsd_direction(golden["latents"], *vsd_inputs).sign(), (pretrained - finetuned).sign())


def test_vsd_by_hand():
    # abar = 1/4 and z_t = 1: x0 = 2 - sqrt(3) * noise, that is 2 and 2 - sqrt(3); z_hat = 3 is 1 away from the first
    one = torch.ones(1, 1, 1, 1)
    direction = vsd_direction(3 * one, one, torch.tensor([0]), 0 * one, one, torch.tensor([0.25]))
    torch.testing.assert_close(direction.item(), -(3**0.5))


def test_vsd_in_noise_form_is_eq_6_by_hand():
    # two values: noises (1, 3) and (0.5, 1), z_hat = (3, -1): G = (0.5, 2) / mean(|1 - 3|, |3 + 1|) = (0.5, 2) / 3
    z_hat, pretrained, finetuned = (torch.tensor(v).view(1, 1, 1, 2) for v in ([3.0, -1.0], [1.0, 3.0], [0.5, 1.0]))
    t, abar = torch.tensor([0]), torch.tensor([0.25])
    direction = vsd_direction(z_hat, z_hat, t, pretrained, finetuned, abar, "noise")
    torch.testing.assert_close(direction.flatten(), torch.tensor([0.5 / 3, 2 / 3]))


def test_vsd_in_noise_form_takes_the_mean_per_image():
    z_hat = torch.zeros(2, 1, 1, 1)
    pretrained, finetuned = torch.tensor([1.0, 4.0]).view(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    t, abar = torch.tensor([0, 0]), torch.tensor([0.25])
    assert vsd_direction(z_hat, z_hat, t, pretrained, finetuned, abar, "noise").flatten().tolist() == [1, 1]


def test_vsd_in_noise_form_does_not_weigh_by_t():
    """The x0 form multiplies the difference of noises by sqrt((1 - abar) / abar); Eq. 6 as printed does not."""
    one = torch.ones(1, 1, 1, 1)
    args = (3 * one, one, torch.tensor([0]), 0 * one, one)
    early, late = (vsd_direction(*args, torch.tensor([abar]), "noise").item() for abar in (0.9, 0.1))
    assert early == late == pytest.approx(-1 / 3)


def test_vsd_loss_takes_the_form(golden, vsd_inputs):
    direction = vsd_direction(golden["latents"], *vsd_inputs, "noise")
    close(vsd_loss(golden["latents"], *vsd_inputs, "noise"), direction.square().mean())


def test_vsd_takes_half_precision_and_sums_in_float32(golden, vsd_inputs):
    z_t, t, pretrained, finetuned, abar = vsd_inputs
    assert vsd_loss(golden["latents"].half(), z_t, t, pretrained.half(), finetuned.half(), abar).dtype == torch.float32


def test_guidance_of_scale_one_is_the_positive_prediction():
    assert classifier_free_guidance(torch.tensor([8.0]), torch.tensor([2.0]), 1.0) == 2


def test_guidance_by_hand():
    assert classifier_free_guidance(torch.tensor([1.0]), torch.tensor([3.0]), 7.5) == 16


def test_eq_7_by_hand():
    assert regularizer_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]])) == 5


def test_mse_is_measured_between_minus_one_and_one():
    assert mse_loss(torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)) == 4


def test_eq_4_by_hand():
    assert generator_loss(torch.tensor(1.0), torch.tensor(10.0), torch.tensor(100.0), 2, 1) == 121


def test_perceptual_loss_can_be_left_out():
    assert build_perceptual("none")(torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)) == 0


def test_shift_tolerant_lpips_sees_blur():
    hq = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    stlpips = build_perceptual("stlpips")
    assert stlpips(hq, hq) == 0 and stlpips(hq.mean(1, keepdim=True).expand_as(hq), hq) > 0.01


def test_shift_tolerant_lpips_has_a_finite_gradient_on_flat_images():
    image = torch.zeros(1, 3, 64, 64, requires_grad=True)
    build_perceptual("stlpips")(image, torch.full((1, 3, 64, 64), 0.5)).backward()
    assert image.grad.isfinite().all()


def test_lpips_without_its_weights_names_the_alternative(monkeypatch):
    import urllib.request

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nonexistent")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(OSError, match="perceptual=stlpips"):
        build_perceptual("lpips")


def test_an_unknown_perceptual_loss_is_an_error():
    with pytest.raises(ValueError, match="lpips, stlpips or none"):
        build_perceptual("vgg")
