"""What a run reports while it trains: progress bar, trackers, skipped images; and a stop at a non-finite loss."""

import json
import math
import time
from collections import Counter
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from osdhuman.train.config import TrainConfig


class Log:
    """After each step: check and average the losses, move the progress bar, pass means to the trackers."""

    def __init__(self, config: TrainConfig, accelerator, step: int, check_gradients: bool = True):
        self.config, self.accelerator, self.check_gradients = config, accelerator, check_gradients
        self.sums: dict[str, float] = {}
        self.steps, self.seconds, self.started = 0, 0.0, 0.0
        main = accelerator.is_main_process
        self.bar = tqdm(total=config.max_steps, initial=step, disable=not main, unit="step", dynamic_ncols=True)

    def start_step(self) -> None:
        """Validation and saving do not count in images/s."""
        self.started = time.perf_counter()

    def __call__(self, losses: dict[str, float], step: int) -> None:
        """Take the losses of `step`, means over all processes. Raises FloatingPointError if one is not finite."""
        check_finite(losses, step, self.check_gradients)
        add_losses(self.sums, losses)
        self.steps += 1
        self.seconds += time.perf_counter() - self.started
        self.bar.update()
        if step % self.config.log_every == 0:
            self.report(step)

    def report(self, step: int) -> None:
        means = {name: value / self.steps for name, value in self.sums.items()}
        means["images/s"] = self.config.batch_size * self.steps / self.seconds
        shown = {name: f"{value:.4g}" for name, value in means.items() if "gradient" not in name}
        self.bar.set_postfix(shown)
        self.accelerator.log({f"train/{name}": value for name, value in means.items()}, step)
        self.sums, self.steps, self.seconds = {}, 0, 0.0

    def close(self) -> None:
        self.bar.close()


class SkippedImages:
    """Training images that could not be used, each once, in a file of one JSON object a line: path and reason."""

    def __init__(self, path: Path):
        self.path = path
        self.known = set(self.reasons())

    def reasons(self) -> dict[str, str]:
        """Path -> reason, of all processes and of earlier runs in the same folder."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may cut the last line
        return {record["path"]: record["reason"] for record in records}

    def add(self, skipped: dict[str, str]) -> None:
        if new := {path: reason for path, reason in skipped.items() if path not in self.known}:
            self.known |= new.keys()
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"path": path, "reason": reason}) + "\n" for path, reason in new.items())

    def summary(self, total: int) -> str | None:
        """One line with counts by reason, or None if no image was skipped."""
        reasons = self.reasons()
        if not reasons:
            return None
        counts = Counter(reason.partition(":")[0] for reason in reasons.values())
        kinds = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        return f"{len(reasons)} of {total} training images could not be used ({kinds}): see {self.path}"


def add_losses(sums: dict, losses: dict, weight: float = 1.0) -> None:
    """Add each loss, times `weight`, to the sum of its name."""
    for name, value in losses.items():
        value = value.detach() if isinstance(value, Tensor) else value
        sums[name] = sums.get(name, 0) + weight * value


def check_finite(losses: dict[str, float], step: int, gradients: bool = True) -> None:
    """Raise FloatingPointError naming the first term that is not finite.

    In fp16 a gradient may overflow; the scaler then skips the step, so gradients are not checked.
    """
    for name, value in losses.items():
        if not math.isfinite(value) and (gradients or "gradient" not in name):
            raise FloatingPointError(
                f"step {step}: the term {name!r} is {value}; all terms: {losses}. Nothing was saved since the last "
                "checkpoint. Try a lower optimizer.lr, bf16 instead of fp16, or look at the images of this step"
            )
