"""Residual shifting: the noise schedule, the forward process and the posterior of ResShift; pure functions.

`x0` is the HQ latent, `y` the latent of the enlarged LQ; latents are (B,C,h,w). Steps `t` are int64 (B,), 0..T-1, and
index the schedule. Along them x moves from x0 to y while noise of deviation kappa * sqrt(eta_t) is added. Schedules
are float64; the formulas on latents run in float32.
"""

import math
from dataclasses import dataclass, replace

import torch
from pydantic import Field, model_validator
from torch import Tensor

from osdhuman.config import Config


class ScheduleConfig(Config):
    """The defaults are those of ResShift v1 and v2 and of SinSR; v3 has 4 steps and min_noise_level 0.2."""

    steps: int = Field(15, ge=2)
    min_noise_level: float = Field(0.04, gt=0)
    etas_end: float = Field(0.99, gt=0, lt=1)  # of sqrt(eta), despite its official name: eta ends at 0.9801
    power: float = Field(0.3, gt=0)
    kappa: float = Field(2.0, gt=0)
    capped_start: bool = False  # SinSR's source caps eta_0 at 0.001; equal at 15 steps, wrong for ResShift v3

    @property
    def start(self) -> float:
        """sqrt(eta_0)."""
        start = self.min_noise_level / max(self.kappa, 1)
        return min(start, math.sqrt(0.001)) if self.capped_start else start

    @model_validator(mode="after")
    def _rises(self) -> "ScheduleConfig":
        if self.start >= self.etas_end:
            raise ValueError(f"the schedule's start {self.start} must lie below its end {self.etas_end}")
        return self


@dataclass(frozen=True)
class Schedule:
    """`sqrt_eta` float64 (T,) ascending, `timesteps` int64 (T,): what the network is told at each step."""

    sqrt_eta: Tensor
    timesteps: Tensor
    kappa: float

    @property
    def steps(self) -> int:
        return len(self.sqrt_eta)

    @property
    def eta(self) -> Tensor:
        return self.sqrt_eta**2

    @property
    def eta_prev(self) -> Tensor:
        """eta_{t-1}, with eta_{-1} = 0."""
        return torch.cat([self.eta.new_zeros(1), self.eta[:-1]])

    @property
    def alpha(self) -> Tensor:
        """eta_t - eta_{t-1}."""
        return self.eta - self.eta_prev

    @property
    def posterior_variance(self) -> Tensor:
        """Of q(x_{t-1} | x_t, x0): kappa^2 eta_{t-1} alpha_t / eta_t; 0 at t = 0."""
        return self.kappa**2 * self.eta_prev * self.alpha / self.eta

    @property
    def clipped_posterior_variance(self) -> Tensor:
        """The same with its first entry replaced by the second, so that its logarithm is finite."""
        variance = self.posterior_variance
        return torch.cat([variance[1:2], variance[1:]])

    @property
    def input_std(self) -> Tensor:
        """Divisor of the network's input: sqrt(kappa^2 eta_t + 1)."""
        return (self.kappa**2 * self.eta + 1).sqrt()


def make_schedule(config: ScheduleConfig) -> Schedule:
    """sqrt(eta_t) = s (end / s)^((t/(T-1))^power), with s the start; see `ScheduleConfig`."""
    progress = torch.linspace(0, 1, config.steps, dtype=torch.float64) ** config.power
    sqrt_eta = config.start * (config.etas_end / config.start) ** progress
    return Schedule(sqrt_eta, torch.arange(config.steps), config.kappa)


def respaced(schedule: Schedule, count: int) -> Schedule:
    """Keep the steps int(T/count * i) for i = 0..count-1; the network is still told the original ones.

    As in the original, the last step is kept by `count` = T alone, so sampling starts with less noise. Raises
    ValueError for a count that is not in 2..T.
    """
    if not 2 <= count <= schedule.steps:
        raise ValueError(f"{count} steps cannot be kept of {schedule.steps}: choose 2 to {schedule.steps}")
    kept = torch.tensor([int(schedule.steps / count * i) for i in range(count)])
    return replace(schedule, sqrt_eta=schedule.sqrt_eta[kept], timesteps=schedule.timesteps[kept])


def q_sample(x0: Tensor, y: Tensor, noise: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """x_t ~ q(x_t | x0, y): mean x0 + eta_t (y - x0), deviation kappa sqrt(eta_t)."""
    eta, std = _at(schedule.eta, t, x0), _at(schedule.kappa * schedule.sqrt_eta, t, x0)
    return x0.float() + eta * (y.float() - x0.float()) + std * noise.float()


def initial_state(y: Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """x_T, where sampling starts: y with noise of the last step's deviation, x0 being unknown."""
    return y.float() + float(schedule.kappa * schedule.sqrt_eta[-1]) * noise.float()


def scale_input(x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """What the network sees of x_t; the other formulas take x_t itself."""
    return x.float() / _at(schedule.input_std, t, x)


def posterior_mean(x: Tensor, x0: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Of q(x_{t-1} | x_t, x0): (eta_{t-1} x_t + alpha_t x0) / eta_t; x0 itself at t = 0."""
    of_x, of_x0 = schedule.eta_prev / schedule.eta, schedule.alpha / schedule.eta
    return _at(of_x, t, x) * x.float() + _at(of_x0, t, x) * x0.float()


def posterior_sample(x: Tensor, x0: Tensor, noise: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """One step of ResShift's sampler: x_{t-1} ~ q(x_{t-1} | x_t, x0)."""
    std = _at(schedule.posterior_variance.sqrt(), t, x)
    return posterior_mean(x, x0, t, schedule) + std * noise.float()


def deterministic_coefficients(schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """(k, m, j), each float64 (T,), with x_{t-1} = k x0 + m x_t + j y and k + m + j = 1 (SinSR)."""
    m = (schedule.eta_prev / schedule.eta).sqrt()
    j = schedule.eta_prev - (schedule.eta_prev * schedule.eta).sqrt()
    return 1 - j - m, m, j


def deterministic_step(x: Tensor, x0: Tensor, y: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """One step of SinSR's teacher: x_t -> x_{t-1} without new noise; x0 itself at t = 0."""
    k, m, j = (_at(values, t, x) for values in deterministic_coefficients(schedule))
    return k * x0.float() + m * x.float() + j * y.float()


def inverse_deterministic_step(x: Tensor, x0: Tensor, y: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Undoes `deterministic_step` for t >= 1: x_{t-1} -> x_t."""
    k, m, j = (_at(values, t, x) for values in deterministic_coefficients(schedule))
    return (x.float() - k * x0.float() - j * y.float()) / m


def _at(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    return values.float().to(like.device)[t.to(like.device)].view(-1, *(1,) * (like.ndim - 1))
