"""Training of ResShift and distillation of SinSR on numbers: the losses and learning rates of the originals."""

import pytest
import torch
from resshift_toys import StandIn, assert_close, encode, golden, normal, tiny_vq

from osdhuman.config import ConfigError, parse_config
from osdhuman.models.resshift.sampling import deterministic_latent
from osdhuman.models.resshift.schedule import ScheduleConfig, initial_state, make_schedule, q_sample
from osdhuman.recipes.resshift_losses import (
    LearningRateConfig,
    learning_rate,
    mse_weights,
    perceptual_term,
    predict,
    resshift_loss,
)
from osdhuman.recipes.sinsr_losses import DistillationLosses, distillation_losses

THEIRS, SINSR, RATES = golden("resshift_diffusion"), golden("sinsr"), golden("resshift_lr")
SCHEDULES = {
    "s15": make_schedule(ScheduleConfig()),
    "s4": make_schedule(ScheduleConfig(steps=4, min_noise_level=0.2)),
}
LQ, Y = normal(201, (2, 3, 16, 16), 0.5), THEIRS["z_y"]
Z_GT = encode(normal(204, (2, 3, 64, 64), 0.5))


# ResShift


@pytest.mark.parametrize("name", ["s15", "s4"])
def test_the_latent_term_is_the_originals(name):
    schedule = SCHEDULES[name]
    t, noise = torch.tensor([schedule.steps - 1, 1]), normal(205, (2, 3, 16, 16))
    assert_close(q_sample(Z_GT, Y, noise, t, schedule), THEIRS[f"{name}_train_zt"], 1e-5)
    assert_close(predict(StandIn(), Z_GT, Y, LQ, noise, t, schedule).mse, THEIRS[f"{name}_train_mse"], 1e-5)


@pytest.mark.parametrize("name", ["s15", "s4"])
def test_the_unused_weights_are_the_originals(name):
    torch.testing.assert_close(mse_weights(SCHEDULES[name]), THEIRS[f"{name}_weight_loss_mse"], rtol=1e-12, atol=1e-12)


def squared(image, hq):
    return (image - hq).square().mean()


def test_the_perceptual_term_compares_the_clamped_image_in_0_to_1():
    term = perceptual_term(torch.full((1, 3, 2, 2), 5.0), torch.zeros(1, 3, 2, 2), lambda z: z, squared)
    assert term.item() == 1


def test_the_perceptual_term_trains_the_latent_through_the_codebook():
    z = normal(1, (1, 3, 8, 8), 0.03).requires_grad_()
    perceptual_term(z, torch.rand(1, 3, 32, 32), tiny_vq().decode, squared).backward()
    assert z.grad.abs().sum() > 0


def test_a_perceptual_term_that_is_not_a_number_leaves_the_latent_term_alone():
    z = torch.ones(1, 3, 2, 2, requires_grad=True)
    term = perceptual_term(z, torch.zeros(1, 3, 2, 2), lambda z: z, lambda image, hq: (image * torch.nan).mean())
    resshift_loss(z.square().mean(dim=(1, 2, 3)), term).backward()
    assert term.item() == 0
    torch.testing.assert_close(z.grad, torch.full_like(z, 2 / 12))


def test_the_loss_weighs_its_terms():
    assert resshift_loss(torch.tensor([1.0, 3.0]), torch.tensor(4.0), lambda_lpips=10).item() == 42


def test_without_a_perceptual_term_the_loss_is_the_latent_term():
    assert resshift_loss(torch.tensor([1.0, 3.0])).item() == 2


# The learning rate


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("neurips_300k", LearningRateConfig()),
        ("journal_cosine_400k", LearningRateConfig(cosine_to=2e-5)),
        ("short_cosine_T50_w10", LearningRateConfig(lr=1e-3, cosine_to=1e-4, warmup=10, iterations=60)),
    ],
)
def test_the_learning_rate_is_the_originals(name, config):
    for iteration, rate in RATES[name].tolist():
        assert learning_rate(int(iteration), config) == pytest.approx(rate, rel=1e-9)


def test_a_cosine_shorter_than_its_warmup_is_refused():
    with pytest.raises(ConfigError, match="iterations 100 must exceed warmup 5000"):
        parse_config(LearningRateConfig, {"cosine_to": 1e-5, "iterations": 100})


# SinSR


@pytest.fixture(scope="module")
def losses() -> DistillationLosses:
    return distilled(StandIn(0.6, 0.25, 0.013))


def distilled(student) -> DistillationLosses:
    schedule = SCHEDULES["s15"]
    x_T = initial_state(Y, normal(202, (2, 3, 16, 16)), schedule)
    assert_close(x_T, SINSR["distill_zt"], 1e-5)
    teacher_z0 = deterministic_latent(StandIn(), x_T, Y, LQ, schedule)
    return distillation_losses(student, x_T, teacher_z0, Z_GT, LQ, schedule)


@pytest.mark.parametrize(
    ("term", "name"),
    [
        ("distill", "distill_mse"),
        ("distill", "distill_plain_loss"),
        ("inverse", "distill_mse_xT"),
        ("ground_truth", "distill_mse_gt"),
    ],
)
def test_each_term_of_the_distillation_is_the_originals(losses, term, name):
    assert_close(getattr(losses, term), SINSR[name], 1e-5)


def test_the_distillation_loss_is_the_sum_of_its_terms(losses):
    assert_close(losses.total, SINSR["distill_loss"].mean(), 1e-5)


def test_the_student_makes_its_own_noisy_latent_without_a_gradient():
    calls = []

    def student(x, t, lq):
        calls.append((int(t[0]), torch.is_grad_enabled()))
        return x

    distilled(student)
    assert sorted(calls) == [(0, False), (0, True), (14, True), (14, True)]
