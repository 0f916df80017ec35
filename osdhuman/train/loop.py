"""Training as in section 3.2: one step of the generator (Eq. 4, 6), one of the regularizer (Eq. 7), and again.

`Trainer.iterate` is the algorithm. Everything random in a step is keyed by (seed, counter of the sample), so a run
that is killed and continued gives the weights of an uninterrupted one.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from osdhuman.config import dump_config
from osdhuman.data.dataset import Batch, Positions, TrainingImages, load_batches
from osdhuman.data.degradation import Degradation
from osdhuman.models.diffusion import add_noise
from osdhuman.models.generator import Restoration
from osdhuman.train.checkpoint import (
    config_changes,
    load_checkpoint,
    newest_checkpoint,
    remove_unfinished,
    save_checkpoint,
)
from osdhuman.train.config import OptimizerConfig, TrainConfig
from osdhuman.train.losses import (
    build_perceptual,
    classifier_free_guidance,
    generator_loss,
    mse_loss,
    regularizer_loss,
    vsd_loss,
)
from osdhuman.train.regularizer import Networks, build_networks
from osdhuman.train.validation import validate


class Learner:
    """A trained network with its optimizer: forward through the wrapper that averages gradients, backward, step.

    Only parameters that require a gradient are optimized, clipped and stored.
    """

    def __init__(self, module: nn.Module, config: TrainConfig, accelerator):
        self.network = accelerator.prepare_model(module)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        options = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=options.lr,
            betas=options.betas,
            weight_decay=options.weight_decay,
            eps=options.eps,
            fused=True,
        )
        self.clip, self.accumulation = options.clip, config.accumulation
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=config.mixed_precision == "fp16")

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch."""
        self.scaler.scale(loss / self.accumulation).backward()

    def step(self, lr: float) -> Tensor:
        """Clip, update the weights, forget the gradient; returns the gradient's norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return norm

    def state(self) -> tuple[dict[str, Tensor], dict]:
        tensors = {name: parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"{key}:{name}": value for key, value in self.optimizer.state[parameter].items()}
        return tensors, self.scaler.state_dict()

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor], numbers: dict) -> None:
        names = {key for key in tensors if ":" not in key}
        if names != self.parameters.keys():
            raise ValueError(f"the checkpoint's parameters differ: {sorted(names ^ self.parameters.keys())[:5]}")
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])
        for key, value in tensors.items():
            slot, colon, name = key.partition(":")
            if colon:
                parameter = self.parameters[name]
                self.optimizer.state[parameter][slot] = value.to(parameter.device)
        self.scaler.load_state_dict(numbers)


class MovingAverage:
    """Exponential moving average of the generator's trained parameters."""

    def __init__(self, parameters: dict[str, Tensor], decay: float):
        self.parameters, self.decay = parameters, decay
        self.averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        averages, parameters = list(self.averages.values()), list(self.parameters.values())
        torch._foreach_lerp_(averages, parameters, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the parameters hold the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.averages[name] = self.averages[name], parameter.data

    def state(self) -> tuple[dict[str, Tensor], dict]:
        return self.averages, {}

    def load_state(self, tensors: dict[str, Tensor], numbers: dict) -> None:
        for name, average in self.averages.items():
            average.copy_(tensors[name])


class Trainer:
    """One run of `config` on `networks`; `run()` begins it or continues it from its newest checkpoint.

    `negative_prompt` (1,tokens,width) is needed where `cfg_scale` is not 1. `save_pretrained(folder)` writes the
    model folder of the generator as it is.
    """

    def __init__(
        self,
        config: TrainConfig,
        networks: Networks,
        negative_prompt: Tensor | None,
        save_pretrained: Callable[[Path], object],
    ):
        self.config, self.networks, self.save_pretrained = config, networks, save_pretrained
        self.accelerator = accelerator = _accelerator(config)
        self.device = accelerator.device
        if config.compile:
            for network in networks:
                network.compile()
        self.generator = Learner(networks.generator, config, accelerator)
        self.regularizer = Learner(networks.regularizer, config, accelerator)
        self.frozen = networks.frozen.to(self.device)
        self.ema = MovingAverage(self.generator.parameters, config.ema) if config.ema else None
        self.perceptual = build_perceptual(config.perceptual).to(self.device)
        self.degradation = Degradation(config.degradation)
        self.abar = networks.generator.abar
        _check_timesteps(config, len(self.abar))
        self.negative_prompt = _checked(negative_prompt, config, self.device)
        self.images = TrainingImages(config.data, config.seed)
        self.step, self.skipped = 0, set()
        self.stop_requested = False  # of this process, by a signal
        self.stopping = False  # agreed by all processes after a step

    # --------------------------------------------------------------------------------------------- the algorithm

    def iterate(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """One iteration of the paper; returns every loss and gradient norm by name (Eq. 4, 6, 7), not yet on the CPU.

        With accumulation each network sees its micro-batches before its one step.
        """
        config = self.config
        lr = learning_rate(config.optimizer, self.step, config.max_steps)
        losses, latents = {}, []
        for sync, batch in self.micro_batches(batches, self.generator):
            with sync:
                hq, lq, rng = self.prepare(batch)
                image, z_hat, prompt = self.restore(lq, hq, rng)  # Eq. 2, 3, 5
                mse = mse_loss(image, hq)
                perceptual = self.perceptual(image, hq)
                vsd = self.distill(z_hat, prompt.detach(), rng)  # Eq. 6
                loss = generator_loss(mse, perceptual, vsd, config.lambda_lpips, config.lambda_vsd)  # Eq. 4
                self.generator.backward(loss)
            add_losses(losses, {"mse": mse, config.perceptual: perceptual, "vsd": vsd}, 1 / config.accumulation)
            latents.append((z_hat.detach(), prompt.detach(), rng))
        losses["generator gradient"] = self.generator.step(lr)

        for sync, (z_hat, prompt, rng) in self.micro_batches(iter(latents), self.regularizer):
            with sync:
                loss = self.diffuse(z_hat, prompt, rng)  # Eq. 7
                self.regularizer.backward(loss)
            add_losses(losses, {"regularizer": loss}, 1 / config.accumulation)
        losses["regularizer gradient"] = self.regularizer.step(lr)
        return losses

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor, torch.Generator]:
        """hq and lq (B,3,H,W) in [0,1] on the device, and the source of all further randomness of this batch."""
        self.note_skipped(batch.skipped)
        hq = batch.hq.to(self.device, non_blocking=True)
        if batch.lq is not None:
            lq = batch.lq.to(self.device, non_blocking=True)
        else:
            lq = self.degradation(hq, self.config.seed, batch.counters)
        seed = np.random.SeedSequence([self.config.seed, batch.counters[0]]).generate_state(1, np.uint64)
        return hq, lq, torch.Generator(self.device).manual_seed(int(seed[0]))

    def restore(self, lq: Tensor, hq: Tensor, rng: torch.Generator) -> Restoration:
        """Eq. 2 and 3; the prompt (Eq. 5) is drawn from LQ, or from HQ where the model's settings say so."""
        prompt_image = hq if self.config.model.prompt.source == "hq" else None
        with self.autocast():
            return self.generator.network(
                lq, prompt_image=prompt_image, sample=self.config.sample_latent, generator=rng
            )

    def distill(self, z_hat: Tensor, prompt: Tensor, rng: torch.Generator) -> Tensor:
        """Eq. 6: t first, then the noise, one of each per sample."""
        t = self.draw_t(self.config.t_range, len(z_hat), rng)
        noise = self.draw_noise(z_hat, rng)
        with torch.no_grad(), self.autocast():
            z_t = add_noise(z_hat, noise, t, self.abar)
            noise_finetuned = self.regularizer.network(z_t, t, prompt)
            noise_pretrained = self.pretrained_noise(z_t, t, prompt)
        return vsd_loss(z_hat, z_t, t, noise_pretrained, noise_finetuned, self.abar)

    def pretrained_noise(self, z_t: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        """The frozen regularizer with guidance; both halves in one call."""
        if self.negative_prompt is None:
            return self.frozen(z_t, t, prompt)
        negative = self.negative_prompt.expand(len(prompt), -1, -1).to(prompt.dtype)
        noise = self.frozen(torch.cat([z_t, z_t]), torch.cat([t, t]), torch.cat([negative, prompt]))
        return classifier_free_guidance(*noise.chunk(2), self.config.cfg_scale)

    def diffuse(self, z_hat: Tensor, prompt: Tensor, rng: torch.Generator) -> Tensor:
        """Eq. 7: fresh noise first, then t, one of each per sample."""
        noise = self.draw_noise(z_hat, rng)
        t = self.draw_t(self.config.regularizer_t_range, len(z_hat), rng)
        with self.autocast():
            prediction = self.regularizer.network(add_noise(z_hat, noise, t, self.abar), t, prompt)
        return regularizer_loss(prediction, noise)

    def draw_t(self, limits: tuple[int, int], count: int, rng: torch.Generator) -> Tensor:
        return torch.randint(*limits, (count,), generator=rng, device=self.device)

    def draw_noise(self, z: Tensor, rng: torch.Generator) -> Tensor:
        return torch.randn(z.shape, generator=rng, device=self.device)

    def autocast(self) -> torch.autocast | nullcontext:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.mixed_precision)
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()

    def micro_batches(self, batches: Iterator, learner: Learner) -> Iterator:
        """The micro-batches of one step; gradients are averaged between processes in the backward pass of the last."""
        last = self.config.accumulation - 1
        for i in range(self.config.accumulation):
            yield nullcontext() if i == last else self.accelerator.no_sync(learner.network), next(batches)

    # ------------------------------------------------------------------------------------------------- the run

    def run(self) -> Path:
        """Train up to `max_steps`; returns the folder of the finished model, or of the checkpoint after SIGTERM."""
        self.begin()
        config, batches, log = self.config, self.load_batches(), Log(self)
        with self.saving_on_sigterm():
            while self.step < config.max_steps and not self.stopping:
                log.start_step()
                losses = self.iterate(batches)
                self.step += 1
                if self.ema:
                    self.ema.update()
                log(losses)
                if self.due(config.validate_every):
                    self.validate()
                if self.due(config.save_every) or self.stopping:
                    self.save()
        log.bar.close()
        return self.end()

    def begin(self) -> None:
        """Write the settings into the run folder, and continue from the newest checkpoint if there is one."""
        config, accelerator = self.config, self.accelerator
        if accelerator.is_main_process:
            config.run.mkdir(parents=True, exist_ok=True)
            remove_unfinished(config.run)
        accelerator.wait_for_everyone()
        if checkpoint := newest_checkpoint(config.run):
            self.step = load_checkpoint(checkpoint, self.parts, accelerator.process_index)
            self.say(f"continuing {checkpoint} at step {self.step}")
            if changes := config_changes(checkpoint, config):
                self.say("settings changed since then:", *(f"  {change}" for change in changes))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (config.run / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        accelerator.init_trackers("osdhuman")

    def end(self) -> Path:
        """Write the finished model, or say how to continue."""
        config = self.config
        if self.step < config.max_steps:
            self.say(f"stopped by SIGTERM after step {self.step}; run the same command again to continue")
            folder = newest_checkpoint(config.run)
        else:
            folder = config.run / "model"
            if self.accelerator.is_main_process:
                self.save_model(folder)
            self.say(f"finished after step {self.step}: {folder}")
        self.accelerator.end_training()
        return folder

    @property
    def parts(self) -> dict[str, Learner | MovingAverage]:
        """The state of the run; besides, there is only the step."""
        parts = {"generator": self.generator, "regularizer": self.regularizer}
        return parts | ({"ema": self.ema} if self.ema else {})

    def save(self) -> None:
        config, accelerator = self.config, self.accelerator
        rank, barrier = accelerator.process_index, accelerator.wait_for_everyone
        save_checkpoint(config.run, self.step, self.parts, config, self.save_model, config.keep_last, rank, barrier)

    def save_model(self, folder: Path) -> None:
        with self.averaged():
            self.save_pretrained(folder)

    def validate(self) -> None:
        if self.config.validation is None:
            return
        with self.averaged(), self.autocast():
            scores = validate(self.networks.generator, self.config.validation, self.picture_path(), self.accelerator)
        self.accelerator.log({f"validation/{name}": value for name, value in scores.items()}, self.step)
        self.say(f"step {self.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))

    def picture_path(self) -> Path:
        return self.config.run / "validation" / f"step-{self.step:08d}.png"

    def averaged(self):
        return self.ema.in_place() if self.ema else nullcontext()

    def due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.max_steps

    def load_batches(self) -> Iterator[Batch]:
        config, accelerator = self.config, self.accelerator
        processes, rank = accelerator.num_processes, accelerator.process_index
        positions = Positions(config.batch_size, config.accumulation, processes, rank, self.step)
        return load_batches(self.images, positions, pin_memory=self.device.type == "cuda")

    def note_skipped(self, skipped: dict[str, str]) -> None:
        """Name each unusable training image once, in `skipped.txt` of the run folder."""
        if new := {path: reason for path, reason in skipped.items() if path not in self.skipped}:
            self.skipped |= new.keys()
            with (self.config.run / "skipped.txt").open("a", encoding="utf-8") as file:
                file.writelines(f"{path}\t{reason}\n" for path, reason in new.items())

    def say(self, *lines: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write("\n".join(lines))

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


class Log:
    """After each step: check and average the losses, move the progress bar, pass means to the trackers."""

    def __init__(self, trainer: Trainer):
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


def train(config: TrainConfig) -> Path:
    """Train what `config` says; returns the folder of the model (see `Trainer.run`)."""
    return build_trainer(config).run()


def build_trainer(config: TrainConfig) -> Trainer:
    """Load the base, build the networks upon it, and encode the negative prompt once."""
    from osdhuman.models.base import load_base
    from osdhuman.models.osdhuman import OSDHuman

    torch.manual_seed(config.seed)  # the adapters' first values, the same on every process
    guided = config.cfg_scale != 1
    base = load_base(config.model.base, text=guided or config.model.prompt.kind != "hfie")
    negative_prompt = base.null_prompt
    if guided and base.text_encoder is not None:
        negative_prompt = base.encode_text([config.negative_prompt])
    networks = build_networks(config.model, config.regularizer, base, config.gradient_checkpointing)
    model = OSDHuman(config.model, networks.generator, base)
    return Trainer(config, networks, negative_prompt, model.save_pretrained)


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """The rate of step `step` (from 0): linear warm-up, then constant or half a cosine down to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    if config.decay == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    return config.lr * (1 + math.cos(math.pi * progress)) / 2


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


def _accelerator(config: TrainConfig):
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

    # precision and accumulation are done here, each network with its own scaler; accelerate starts the processes,
    # averages gradients and writes logs
    return Accelerator(
        mixed_precision="no",
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(str(config.run), logging_dir=str(config.run / "logs")),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )


def _checked(negative_prompt: Tensor | None, config: TrainConfig, device: torch.device) -> Tensor | None:
    if config.cfg_scale == 1:
        return None
    if negative_prompt is None:
        raise ValueError(
            f"cfg_scale {config.cfg_scale} needs a negative prompt, and the base has neither a text encoder nor a "
            "stored prompt; use cfg_scale=1"
        )
    return negative_prompt.to(device)


def _check_timesteps(config: TrainConfig, steps: int) -> None:
    for name in ("t_range", "regularizer_t_range"):
        if getattr(config, name)[1] > steps:
            raise ValueError(f"{name} {getattr(config, name)} goes beyond the base's schedule of {steps} steps")
