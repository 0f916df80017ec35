"""Residual shifting on numbers: ResShift's schedules, forward process and posterior, SinSR's deterministic steps."""

import pytest
import torch
from resshift_toys import golden

from osdhuman.config import ConfigError, parse_config
from osdhuman.models.resshift.schedule import (
    Schedule,
    ScheduleConfig,
    deterministic_coefficients,
    deterministic_step,
    initial_state,
    inverse_deterministic_step,
    make_schedule,
    posterior_mean,
    posterior_sample,
    q_sample,
    respaced,
    scale_input,
)

THEIRS = golden("resshift_diffusion")
SINSR = golden("sinsr")
FOUR_STEPS = ScheduleConfig(steps=4, min_noise_level=0.2)
CONFIGS = {"s15": ScheduleConfig(), "s4": FOUR_STEPS}

# Two steps chosen for mental arithmetic: eta = 1/4, 9/16; kappa = 2
BY_HAND = Schedule(torch.tensor([0.5, 0.75], dtype=torch.float64), torch.tensor([0, 1]), 2.0)
X, X0, Y, NOISE = (torch.full((1, 3, 2, 2), value) for value in (9.0, 18.0, 2.0, 1.0))
T0, T1 = torch.tensor([0]), torch.tensor([1])


def assert_float64_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# The numbers of the original


@pytest.mark.parametrize("name", ["s15", "s4"])
@pytest.mark.parametrize(
    ("array", "ours"),
    [
        ("sqrt_etas", lambda s: s.sqrt_eta),
        ("etas", lambda s: s.eta),
        ("etas_prev", lambda s: s.eta_prev),
        ("alpha", lambda s: s.alpha),
        ("posterior_variance", lambda s: s.posterior_variance),
        ("posterior_variance_clipped", lambda s: s.clipped_posterior_variance),
        ("posterior_log_variance_clipped", lambda s: s.clipped_posterior_variance.log()),
        ("posterior_mean_coef1", lambda s: s.eta_prev / s.eta),
        ("posterior_mean_coef2", lambda s: s.alpha / s.eta),
        ("input_std", lambda s: s.input_std),
        ("timestep_map", lambda s: s.timesteps),
    ],
)
def test_the_schedule_is_the_originals(name, array, ours):
    assert_float64_close(ours(make_schedule(CONFIGS[name])), THEIRS[f"{name}_{array}"])


def test_another_schedule_is_the_originals_too():
    config = ScheduleConfig(steps=10, power=2, kappa=1, min_noise_level=0.05, etas_end=0.9)
    assert_float64_close(make_schedule(config).sqrt_eta, THEIRS["gen_T10_p2_k1_m005"])


@pytest.mark.parametrize("count", [5, 3])
def test_respacing_keeps_the_steps_of_the_original(count):
    kept = respaced(make_schedule(ScheduleConfig()), count)
    assert torch.equal(kept.timesteps, THEIRS[f"s15_respaced{count}_map"])
    assert_float64_close(kept.sqrt_eta, THEIRS[f"s15_respaced{count}_sqrt_etas"])


def test_the_capped_start_of_sinsr_changes_nothing_at_15_steps():
    capped = make_schedule(ScheduleConfig(capped_start=True))
    assert_float64_close(capped.sqrt_eta, SINSR["sqrt_etas_s15_sinsrcode"])
    assert_float64_close(capped.sqrt_eta, make_schedule(ScheduleConfig()).sqrt_eta)


def test_the_capped_start_of_sinsr_changes_4_steps():
    capped = make_schedule(FOUR_STEPS.model_copy(update={"capped_start": True}))
    assert_float64_close(capped.sqrt_eta, SINSR["sqrt_etas_s4m02_sinsrcode"])
    assert capped.sqrt_eta[0] < make_schedule(FOUR_STEPS).sqrt_eta[0]


@pytest.mark.parametrize(("i", "name"), [(0, "ddim_k"), (1, "ddim_m"), (2, "ddim_j")])
def test_the_deterministic_coefficients_are_the_originals(i, name):
    ours = deterministic_coefficients(make_schedule(ScheduleConfig()))[i]
    assert_float64_close(ours, SINSR[name])


# The formulas by hand


def test_the_forward_process_moves_from_hq_to_lq_and_adds_noise():
    # 18 + 1/4 (2 - 18) + 2 * 0.5 * 1
    assert q_sample(X0, Y, NOISE, T0, BY_HAND).unique().item() == 15


def test_sampling_starts_at_the_lq_with_the_last_steps_noise():
    assert initial_state(Y, NOISE, BY_HAND).unique().item() == 2 + 2 * 0.75


def test_the_network_sees_the_state_at_about_unit_deviation():
    assert scale_input(X, T1, BY_HAND).unique().item() == pytest.approx(9 / (4 * 9 / 16 + 1) ** 0.5)


def test_the_posterior_mean_weighs_the_state_and_the_prediction():
    # (1/4 * 9 + 5/16 * 18) / (9/16)
    assert posterior_mean(X, X0, T1, BY_HAND).unique().item() == pytest.approx(14)


def test_the_last_step_returns_the_prediction_without_noise():
    assert torch.equal(posterior_sample(X, X0, NOISE, T0, BY_HAND), X0)


def test_the_posterior_adds_noise_of_its_deviation():
    # variance 4 * 1/4 * (5/16) / (9/16) = 5/9
    assert posterior_sample(X, X0, NOISE, T1, BY_HAND).unique().item() == pytest.approx(14 + (5 / 9) ** 0.5)


def test_a_deterministic_step_keeps_the_noise_of_the_state():
    # With x_t = x0 + eta_t (y - x0) + kappa sqrt(eta_t) n, the result has the same n at eta_{t-1}
    x = q_sample(X0, Y, NOISE, T1, BY_HAND)
    torch.testing.assert_close(deterministic_step(x, X0, Y, T1, BY_HAND), q_sample(X0, Y, NOISE, T0, BY_HAND))


def test_the_last_deterministic_step_returns_the_prediction():
    assert torch.equal(deterministic_step(X, X0, Y, T0, BY_HAND), X0)


def test_the_inverse_step_undoes_a_deterministic_one():
    x = deterministic_step(X, X0, Y, T1, BY_HAND)
    torch.testing.assert_close(inverse_deterministic_step(x, X0, Y, T1, BY_HAND), X)


def test_each_sample_has_its_own_step():
    pair = q_sample(*(torch.cat([z, z]) for z in (X0, Y, NOISE)), torch.tensor([0, 1]), BY_HAND)
    assert torch.equal(pair[:1], q_sample(X0, Y, NOISE, T0, BY_HAND))
    assert torch.equal(pair[1:], q_sample(X0, Y, NOISE, T1, BY_HAND))


def test_half_precision_latents_are_computed_in_float32():
    assert q_sample(X0.half(), Y.half(), NOISE.half(), T0, BY_HAND).dtype == torch.float32


# Impossible schedules


@pytest.mark.parametrize("values", [{"steps": 1}, {"etas_end": 1.0}, {"min_noise_level": 0}, {"kappa": -1}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        parse_config(ScheduleConfig, values)


def test_a_schedule_must_rise():
    with pytest.raises(ConfigError, match=r"start 1\.0 must lie below its end 0\.99"):
        parse_config(ScheduleConfig, {"min_noise_level": 2})


@pytest.mark.parametrize("count", [1, 16])
def test_a_count_of_steps_that_cannot_be_kept_is_refused(count):
    with pytest.raises(ValueError, match=f"{count} steps cannot be kept of 15"):
        respaced(make_schedule(ScheduleConfig()), count)
