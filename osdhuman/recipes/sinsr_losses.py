"""Distillation of ResShift into SinSR's one step, as a pure function.

The student maps in both directions: told step T-1 it predicts the clean latent for a noisy one, told step 0 the noisy
one for a clean latent. Latents are (B,3,h,w).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from osdhuman.models.resshift.sampling import Network
from osdhuman.models.resshift.schedule import Schedule, scale_input


class DistillationLosses(NamedTuple):
    """The three terms, each the mean of each sample (B,)."""

    distill: Tensor  # the teacher's result from x_T
    inverse: Tensor  # x_T from the teacher's result
    ground_truth: Tensor  # the HQ latent from the x_T that the student itself gives it

    @property
    def total(self) -> Tensor:
        """The loss: the sum of the terms, with weights 1, averaged over the batch."""
        return sum(self).mean()


def distillation_losses(
    student: Network, x_T: Tensor, teacher_z0: Tensor, z_gt: Tensor, lq: Tensor, schedule: Schedule
) -> DistillationLosses:
    """SinSR's loss: three passes of the student with gradient and one without.

    `x_T` is `schedule.initial_state` of the enlarged LQ's latent, `teacher_z0` what `sampling.deterministic_latent`
    makes of it, `z_gt` the latent of the HQ image. Every input is scaled as that of step T-1, clean latents too.
    """
    last = schedule.steps - 1

    def student_at(z: Tensor, step: int) -> Tensor:
        t = torch.full((len(z),), step, device=z.device)
        scaled = scale_input(z, torch.full_like(t, last), schedule)
        return student(scaled, schedule.timesteps.to(z.device)[t], lq).float()

    with torch.no_grad():
        x_gt = student_at(z_gt, 0)
    return DistillationLosses(
        distill=_mse(teacher_z0.detach(), student_at(x_T, last)),
        inverse=_mse(x_T, student_at(teacher_z0.detach(), 0)),
        ground_truth=_mse(z_gt, student_at(x_gt, last)),
    )


def _mse(target: Tensor, prediction: Tensor) -> Tensor:
    return (target.float() - prediction).square().mean(dim=(1, 2, 3))
