"""The life of a training run, whatever it trains: begin or continue, iterate, save, validate, stop.

The algorithm is the recipe's (`osdhuman.train.recipe`). Everything random in a step is keyed by (seed, counter of the
sample), so a run that is killed and continued gives the weights of an uninterrupted one (bit for bit on a CPU; on a
GPU as far as its kernels are deterministic).
"""

import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from osdhuman.config import dump_config
from osdhuman.data.dataset import Batch, Batches, Positions, TrainingImages, load_batches
from osdhuman.data.samples import Pair
from osdhuman.files import replacing
from osdhuman.resume import exclusive
from osdhuman.train.checkpoint import (
    changed_settings,
    read_newest,
    remove_unfinished,
    restore_checkpoint,
    save_checkpoint,
    set_aside,
)
from osdhuman.train.config import TrainConfig
from osdhuman.train.learner import Learner, MovingAverage
from osdhuman.train.log import Log, SkippedImages
from osdhuman.train.precision import autocast, choose_precision
from osdhuman.train.recipe import MicroBatch, Recipe
from osdhuman.train.requirements import REMEDY, require
from osdhuman.train.validation import Validation, evaluating, validate


class TrainResult(NamedTuple):
    """How a run ended: `folder` is the finished model, or the checkpoint from which the same command continues."""

    folder: Path
    step: int
    finished: bool


def train(config: TrainConfig, recipe: type[Recipe]) -> TrainResult:
    """Train `recipe` as `config` says, or continue the run in `config.run`.

    Raises ValueError, before anything is loaded, naming all that is missing (data, validation pairs, weights).
    """
    return build_trainer(config, recipe).run()


def build_trainer(config: TrainConfig, recipe: type[Recipe]) -> "Trainer":
    """Build the recipe's networks, with the same first values on every process, and the engine around them."""
    accelerator, samples = build_accelerator(config), None
    with _same_on_all(accelerator):
        if accelerator.is_main_process:
            samples = require(config, recipe, accelerator.num_processes)
    torch.manual_seed(config.seed)
    return Trainer(config, recipe.build(config), accelerator, samples)


class Trainer:
    """One run of `config`; `run()` begins it or continues it from its newest checkpoint."""

    def __init__(self, config: TrainConfig, recipe: Recipe, accelerator=None, samples: list[Pair] | None = None):
        """`samples`: the training images, where they have been listed already."""
        self.config, self.recipe = config, recipe
        self.accelerator = accelerator or build_accelerator(config)
        self.device = self.accelerator.device
        self.precision = choose_precision(config.mixed_precision, self.device)
        for learner in recipe.learners.values():
            learner.prepare(self.accelerator, config.accumulation, self.precision)
        for network in recipe.frozen:
            network.to(self.device)
        averaged = recipe.learners[recipe.averaged].parameters
        self.ema = MovingAverage(averaged, config.ema) if config.ema else None
        self.degradation = recipe.degradation()
        self.images = TrainingImages(config.data, config.seed, samples)
        self.skipped = SkippedImages(config.run / "skipped.jsonl")
        self.step = 0
        self.stop_requested = False  # of this process, by a signal
        recipe.run = self

    # ------------------------------------------------------------------------------------------------- the run

    def run(self) -> TrainResult:
        """Train up to `max_steps`, or up to the step during which SIGTERM arrives."""
        config, stopping = self.config, False
        with self.alone_in_the_folder(), self.saving_on_sigterm():
            self.begin()
            log = Log(config, self.accelerator, self.step, check_gradients=self.precision != "fp16")
            epoch_end = -(-len(self.images) // config.batch_size)
            with closing(log), closing(self.open_batches()):
                while self.step < config.max_steps and not stopping:
                    log.start_step()
                    losses = self.iterate()
                    self.step += 1
                    if self.ema:
                        self.ema.update()
                    losses, stopping = self.agree(losses)
                    log(losses, self.step)
                    if self.due(config.save_every) or stopping:
                        self.save()
                    if self.due(config.validate_every) and not stopping:
                        self.validate()
                    if self.step == epoch_end:
                        self.say(self.skipped.summary(len(self.images)))
            return self.end()

    def iterate(self) -> dict[str, Tensor]:
        """One iteration of the recipe; returns its losses by name, not yet on the CPU."""
        for learner in self.recipe.learners.values():
            learner.set_rate(self.step, self.config.max_steps)
        return self.recipe.iterate()

    def begin(self) -> None:
        """Write the settings into the run folder, and continue from the newest whole checkpoint if there is one."""
        config, accelerator = self.config, self.accelerator
        if accelerator.is_main_process:
            remove_unfinished(config.run)
        accelerator.wait_for_everyone()
        self.restore_newest()
        if accelerator.is_main_process:
            with replacing(config.run / "config.yaml") as part:
                part.write_text(dump_config(config), encoding="utf-8")
        accelerator.init_trackers("osdhuman")
        self.say(f"computing on {self.device} in {self.precision.replace('no', 'float32')}")

    def restore_newest(self) -> None:
        """Put back the state of the newest checkpoint that is whole; damaged ones are named and set aside."""
        checkpoint, damaged = read_newest(self.config.run)
        if checkpoint is not None:
            restore_checkpoint(checkpoint, self.parts, self.config, self.accelerator.process_index)
            self.step = checkpoint.step
            self.say(*(f"not used: {reason}" for reason in damaged.values()))
            self.say(f"continuing {checkpoint.folder} at step {self.step}")
            if changes := changed_settings(checkpoint, self.config):
                self.say("settings changed since then:", *(f"  {change}" for change in changes))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            set_aside(damaged)

    def end(self) -> TrainResult:
        """Write the finished model, or say how to continue."""
        config, finished = self.config, self.step >= self.config.max_steps
        folder = config.run / "model" if finished else config.run / "checkpoints" / f"step-{self.step:08d}"
        self.say(self.skipped.summary(len(self.images)))
        if not finished:
            self.say(f"stopped by SIGTERM after step {self.step} of {config.max_steps}; the same command continues")
        else:
            if self.accelerator.is_main_process:
                self.save_model(folder)
            self.say(f"finished after step {self.step}: {folder}")
        self.accelerator.end_training()
        return TrainResult(folder, self.step, finished)

    @property
    def parts(self) -> dict[str, Learner | MovingAverage]:
        """The state of the run, beside the step."""
        return self.recipe.learners | ({"ema": self.ema} if self.ema else {})

    def save(self) -> None:
        config, accelerator = self.config, self.accelerator
        save_checkpoint(
            config.run,
            self.step,
            self.parts,
            config,
            self.save_model,
            config.keep_last,
            accelerator.process_index,
            accelerator.num_processes,
            accelerator.wait_for_everyone,
        )

    def save_model(self, folder: Path) -> None:
        with self.averaged():
            self.recipe.save_model(folder)

    def validate(self) -> None:
        """Score the validation pairs; whatever goes wrong is reported and training goes on."""
        if self.config.validation is None:
            return
        image = self.config.run / "validation" / f"step-{self.step:08d}.png"
        try:
            with self.averaged(), evaluating(learner.module for learner in self.recipe.learners.values()):
                self.report(validate(self.recipe.restore, self.config.validation, image, self.accelerator))
        except Exception as error:
            self.say(f"step {self.step}: validation failed, training goes on: {type(error).__name__}: {error}")

    def report(self, validation: Validation) -> None:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in validation.scores.items())
        self.say(f"step {self.step}: {scores or 'validation gave no score'}")
        if validation.failures:
            (path, reason), *_ = validation.failures.items()
            total = validation.count + len(validation.failures)
            self.say(f"step {self.step}: {len(validation.failures)} of {total} pairs failed; {path}: {reason}")
        self.accelerator.log({f"validation/{name}": value for name, value in validation.scores.items()}, self.step)

    def averaged(self):
        return self.ema.in_place() if self.ema else nullcontext()

    def due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.max_steps

    def agree(self, losses: dict[str, Tensor]) -> tuple[dict[str, float], bool]:
        """Means of the losses over all processes, and whether any process was asked to stop: one exchange, one wait."""
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        stop = torch.tensor([float(self.stop_requested)], device=values.device)
        *means, stop = self.accelerator.reduce(torch.cat([values, stop]), "mean").tolist()
        return dict(zip(losses, means, strict=True)), stop > 0

    # --------------------------------------------------------------------------------------- what a recipe calls

    def micro_batches(self, learner: Learner, items: Iterable | None = None) -> Iterator:
        """The `accumulation` micro-batches of one step of `learner`: those of the data, or of `items`.

        Gradients are averaged between processes in the backward pass of the last.
        """
        source = iter(self.batches if items is None else items)
        last = self.config.accumulation - 1
        for i in range(self.config.accumulation):
            with nullcontext() if i == last else self.accelerator.no_sync(learner.network):
                item = next(source)
                yield self.to_device(item) if items is None else item

    def autocast(self) -> torch.autocast | nullcontext:
        """A context in which networks compute in the run's precision."""
        return autocast(self.precision, self.device)

    # ------------------------------------------------------------------------------------------------- the data

    def open_batches(self) -> Batches:
        """Start to load the micro-batches of the steps from `step` on."""
        config, accelerator = self.config, self.accelerator
        processes, rank = accelerator.num_processes, accelerator.process_index
        positions = Positions(config.batch_size, config.accumulation, processes, rank, self.step)
        degrade = self.degradation if config.data.degrades_in_workers else None
        self.batches = load_batches(self.images, positions, self.device.type == "cuda", degrade)
        return self.batches

    def to_device(self, batch: Batch) -> MicroBatch:
        """Move a batch to the device; degrade it there if no worker did."""
        self.skipped.add(batch.skipped)
        tensors = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.tensors.items()}
        if "lq" not in tensors:
            degraded = self.degradation(tensors["hq"], self.config.seed, batch.counters)
            tensors |= degraded if isinstance(degraded, dict) else {"lq": degraded}
        seed = np.random.SeedSequence([self.config.seed, batch.counters[0]]).generate_state(1, np.uint64)
        rng = torch.Generator(self.device).manual_seed(int(seed[0]))
        return MicroBatch(tensors.pop("hq"), tensors.pop("lq"), tensors, rng)

    # ------------------------------------------------------------------------------------- processes and signals

    def say(self, *lines: str | None) -> None:
        if self.accelerator.is_main_process:
            for line in filter(None, lines):  # a file name may hold bytes that are no text
                tqdm.write(line.encode("utf-8", "backslashreplace").decode("utf-8"))

    @contextmanager
    def alone_in_the_folder(self) -> Iterator[None]:
        """Hold the lock of the run folder; ValueError on every process if another run holds it."""
        with ExitStack() as stack:
            with _same_on_all(self.accelerator):
                if self.accelerator.is_main_process:
                    self.config.run.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(exclusive(self.config.run, REMEDY))
            yield

    @contextmanager
    def saving_on_sigterm(self) -> Iterator[None]:
        """SIGTERM asks to stop after the step under way."""

        def request(*_: object) -> None:
            self.stop_requested = True

        previous = signal.signal(signal.SIGTERM, request)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)


def build_accelerator(config: TrainConfig):
    """accelerate starts the processes, averages gradients and writes logs.

    Precision and accumulation are done here, since each learner has its own scaler.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

    return Accelerator(
        mixed_precision="no",
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(str(config.run), logging_dir=str(config.run / "logs")),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )


@contextmanager
def _same_on_all(accelerator) -> Iterator[None]:
    """An error that the main process meets within ends the others too; they leave the message to it."""
    from accelerate.utils import broadcast_object_list

    error = None
    try:
        yield
    except (ValueError, OSError) as caught:
        error = caught
    if accelerator.num_processes > 1:
        [failed] = broadcast_object_list([error is not None])
        if failed and error is None:
            sys.exit(2)
    if error is not None:
        raise error
