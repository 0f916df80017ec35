"""What a run tells while it goes: progress bar, trackers, and a stop where a loss is no longer a number."""

import math
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

if TYPE_CHECKING:
    from osdhuman.train.loop import Trainer


class Log:
    """After each step: check and average the losses, move the progress bar, pass means to the trackers."""

    def __init__(self, trainer: "Trainer"):
        self.trainer, self.sums = trainer, {}
        self.steps, self.seconds, self.started = 0, 0.0, 0.0
        main, total = trainer.accelerator.is_main_process, trainer.config.max_steps
        self.bar = tqdm(total=total, initial=trainer.step, disable=not main, unit="step", dynamic_ncols=True)
        self.epoch_end = math.ceil(len(trainer.images) / trainer.config.batch_size)

    def start_step(self) -> None:
        """Validation and saving do not count in images/s."""
        self.started = time.perf_counter()

    def __call__(self, losses: dict[str, Tensor]) -> None:
        trainer = self.trainer
        names = list(losses)
        values = self.gather(torch.stack([losses[name].detach().float() for name in names]))
        losses = dict(zip(names, values, strict=True))
        check_finite(losses, trainer.step, gradients=trainer.config.mixed_precision != "fp16")
        add_losses(self.sums, losses)
        self.steps += 1
        self.seconds += time.perf_counter() - self.started
        self.bar.update()
        if trainer.step % trainer.config.log_every == 0:
            self.report()
        if trainer.step == self.epoch_end:
            self.report_skipped()

    def gather(self, values: Tensor) -> list[float]:
        """Means over the processes, and with them the request of any one to stop: one exchange, one wait."""
        trainer = self.trainer
        stop = torch.tensor([float(trainer.stop_requested)], device=values.device)
        *means, stop = trainer.accelerator.reduce(torch.cat([values, stop]), "mean").tolist()
        trainer.stopping = stop > 0
        return means

    def report(self) -> None:
        trainer = self.trainer
        means = {name: value / self.steps for name, value in self.sums.items()}
        means["images/s"] = trainer.config.batch_size * self.steps / self.seconds
        shown = {name: f"{value:.4g}" for name, value in means.items() if "gradient" not in name}
        self.bar.set_postfix(shown)
        trainer.accelerator.log({f"train/{name}": value for name, value in means.items()}, trainer.step)
        self.sums, self.steps, self.seconds = {}, 0, 0.0

    def report_skipped(self) -> None:
        trainer = self.trainer
        path = trainer.config.run / "skipped.txt"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        names = {line.partition("\t")[0] for line in lines}
        if names:
            trainer.say(f"{len(names)} of {len(trainer.images)} training images could not be used: see {path}")


def add_losses(sums: dict, losses: dict, weight: float = 1.0) -> None:
    """Add each loss, times `weight`, to the sum of its name."""
    for name, value in losses.items():
        value = value.detach() if isinstance(value, Tensor) else value
        sums[name] = sums.get(name, 0) + weight * value


def check_finite(losses: dict[str, float], step: int, gradients: bool = True) -> None:
    """Raise FloatingPointError naming the first term that is not finite.

    In fp16 a gradient may overflow; the scaler then skips the step, so gradients are not looked at.
    """
    for name, value in losses.items():
        if not math.isfinite(value) and (gradients or "gradient" not in name):
            raise FloatingPointError(
                f"step {step}: the term {name!r} is {value}; all terms: {losses}. Nothing was saved since the last "
                "checkpoint. Try a lower optimizer.lr, bf16 instead of fp16, or look at the images of this step"
            )
