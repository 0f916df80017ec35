"""From an LQ image to a restored one: ResShift's stochastic sampler, SinSR's single step, and SinSR's teacher.

A network is any callable (scaled x_t, t, lq) -> x0, so that a wrapped, compiled or stand-in one fits as well. `lq` is
the padded LQ image (B,3,h,w) in [-1,1], `y` the latent of the enlarged LQ. Functions named `*_states` yield the latent
after each step, the result last.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from osdhuman.models.resshift.schedule import (
    Schedule,
    deterministic_step,
    initial_state,
    inverse_deterministic_step,
    posterior_sample,
    scale_input,
)

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
Noise = Callable[[Tensor], Tensor]  # a tensor -> standard normal noise of its shape, on its device
Sampler = Callable[[Network, Tensor, Tensor, Schedule, Noise], Tensor]


def seeded_noise(seeds: Sequence[int]) -> Noise:
    """Noise whose i-th sample comes from the i-th seed alone, by a CPU generator of its own.

    So neither batch, order nor device changes what an image gets. Every call continues the generators. Raises
    ValueError where the batch has another size.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(like: Tensor) -> Tensor:
        if len(like) != len(generators):
            raise ValueError(f"a batch of {len(like)} needs as many seeds, not {len(generators)}")
        return torch.stack([torch.randn(like.shape[1:], generator=g) for g in generators]).to(like.device)

    return draw


def predict_x0(network: Network, x: Tensor, step: int, lq: Tensor, schedule: Schedule) -> Tensor:
    """The network's x0 (B,C,h,w) float32 for x_t at index `step` of the schedule."""
    t = torch.full((len(x),), step, device=x.device)
    return network(scale_input(x, t, schedule), schedule.timesteps.to(x.device)[t], lq).float()


# Latents


def resshift_states(network: Network, y: Tensor, lq: Tensor, schedule: Schedule, noise: Noise) -> Iterator[Tensor]:
    """ResShift: from x_T down to x0 by draws from the posterior.

    Noise is drawn for x_T, then once a step, at t = 0 too, where it has no effect: the original does, and the noise of
    a next tile depends on it.
    """
    x = initial_state(y, noise(y), schedule)
    for step in reversed(range(schedule.steps)):
        x0 = predict_x0(network, x, step, lq, schedule)
        x = posterior_sample(x, x0, noise(x), _same(x, step), schedule)
        yield x


def resshift_latent(network: Network, y: Tensor, lq: Tensor, schedule: Schedule, noise: Noise) -> Tensor:
    """Result of `resshift_states`: the network is called once for each step of the schedule."""
    return _last(resshift_states(network, y, lq, schedule, noise))


def sinsr_latent(network: Network, y: Tensor, lq: Tensor, schedule: Schedule, noise: Noise) -> Tensor:
    """SinSR: the x0 that the student predicts for x_T, in one call. Still a draw, since x_T holds noise."""
    return predict_x0(network, initial_state(y, noise(y), schedule), schedule.steps - 1, lq, schedule)


def deterministic_states(network: Network, x: Tensor, y: Tensor, lq: Tensor, schedule: Schedule) -> Iterator[Tensor]:
    """SinSR's teacher: from a given x_T down to x0 without new noise."""
    for step in reversed(range(schedule.steps)):
        x0 = predict_x0(network, x, step, lq, schedule)
        x = deterministic_step(x, x0, y, _same(x, step), schedule)
        yield x


@torch.no_grad()
def deterministic_latent(network: Network, x: Tensor, y: Tensor, lq: Tensor, schedule: Schedule) -> Tensor:
    """Result of `deterministic_states`, without a gradient: the target that SinSR distils."""
    return _last(deterministic_states(network, x, y, lq, schedule))


def inverse_states(network: Network, x0: Tensor, y: Tensor, lq: Tensor, schedule: Schedule) -> Iterator[Tensor]:
    """From a clean latent up to the x_T that `deterministic_states` leads back to it, in T-1 approximate steps."""
    x = x0
    for step in range(1, schedule.steps):
        x = inverse_deterministic_step(x, predict_x0(network, x, step, lq, schedule), y, _same(x, step), schedule)
        yield x


# Images


@dataclass(frozen=True)
class LatentRestorer:
    """What restores one tile: networks, schedule and sampler of one method."""

    network: Network
    encode: Callable[[Tensor], Tensor]  # image in [-1,1] -> latent
    decode: Callable[[Tensor], Tensor]
    schedule: Schedule
    sampler: Sampler = resshift_latent
    scale: int = 4  # the result's size by the LQ's
    padding: int = 64  # LQ sides are filled up to multiples of this, the network's lq_size


@torch.no_grad()
def restore_tile(lq: Tensor, restorer: LatentRestorer, noise: Noise) -> Tensor:
    """LQ (B,3,h,w) in [0,1] -> float32 (B,3,h*scale,w*scale) in [0,1]. Raises ValueError for too small an LQ."""
    height, width = (side * restorer.scale for side in lq.shape[-2:])
    padded = pad_to_multiple(2 * lq.float() - 1, restorer.padding)
    y = restorer.encode(enlarge(padded, restorer.scale))
    z = restorer.sampler(restorer.network, y, padded, restorer.schedule, noise)
    return (restorer.decode(z)[..., :height, :width].float().clamp(-1, 1) + 1) / 2


def enlarge(image: Tensor, scale: int) -> Tensor:
    """Bicubic, neither antialiased nor clamped; (B,3,h,w) -> (B,3,h*scale,w*scale)."""
    return image if scale == 1 else F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Fill up on the right and below by reflection. Raises ValueError where a side is too short to be reflected."""
    height, width = image.shape[-2:]
    below, right = -height % multiple, -width % multiple
    if below >= height or right >= width:
        least = multiple // 2 + 1
        raise ValueError(f"an image of {width} x {height} pixels is too small: each side needs at least {least}")
    return F.pad(image, (0, right, 0, below), mode="reflect")


def _same(x: Tensor, step: int) -> Tensor:
    return torch.full((len(x),), step, device=x.device)


def _last(states: Iterator[Tensor]) -> Tensor:
    *_, last = states
    return last
