"""Training as in section 3.2: one step of the generator (Eq. 4, 6), one of the regularizer (Eq. 7), and again.

`Trainer.iterate` is the algorithm. Everything random in a step is keyed by (seed, counter of the sample), so a run
that is killed and continued gives the weights of an uninterrupted one (bit for bit on a CPU; on a GPU as far as its
kernels repeat themselves).
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from osdhuman.config import dump_config
from osdhuman.data.dataset import Batch, Positions, TrainingImages, load_batches
from osdhuman.data.degradation import Degradation
from osdhuman.data.samples import list_samples
from osdhuman.models.diffusion import add_noise
from osdhuman.models.generator import Restoration
from osdhuman.recipes.losses import classifier_free_guidance, generator_loss, mse_loss, regularizer_loss, vsd_loss
from osdhuman.recipes.perceptual import build_perceptual
from osdhuman.recipes.vsd_networks import Networks, build_networks
from osdhuman.train.checkpoint import (
    config_changes,
    load_checkpoint,
    newest_checkpoint,
    remove_unfinished,
    save_checkpoint,
)
from osdhuman.train.config import TrainConfig
from osdhuman.train.learner import Learner, MovingAverage, learning_rate
from osdhuman.train.log import Log, add_losses
from osdhuman.train.validation import validate


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
        _require_timesteps(config, len(self.abar))
        self.negative_prompt = _require_negative_prompt(negative_prompt, config, self.device)
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


def train(config: TrainConfig) -> Path:
    """Train what `config` says; returns the folder of the model (see `Trainer.run`)."""
    return build_trainer(config).run()


def build_trainer(config: TrainConfig) -> Trainer:
    """Load the base, build the networks upon it, and encode the negative prompt once."""
    from osdhuman.models.base import load_base
    from osdhuman.pretrained import OSDHuman

    list_samples(config.data)  # a wrong path shows before gigabytes are loaded
    torch.manual_seed(config.seed)  # the adapters' first values, the same on every process
    guided = config.cfg_scale != 1
    base = load_base(config.model.base, text=guided or config.model.prompt.kind != "hfie")
    negative_prompt = base.null_prompt
    if guided and base.text_encoder is not None:
        negative_prompt = base.encode_text([config.negative_prompt])
    networks = build_networks(config.model, config.regularizer, base, config.gradient_checkpointing)
    model = OSDHuman(config.model, networks.generator, base)
    return Trainer(config, networks, negative_prompt, model.save_pretrained)


def _accelerator(config: TrainConfig):
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

    # precision and accumulation are done here, each network with its own scaler; accelerate starts the processes,
    # averages gradients and writes logs
    return Accelerator(
        mixed_precision="no",
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(str(config.run), logging_dir=str(config.run / "logs")),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )


def _require_negative_prompt(
    negative_prompt: Tensor | None, config: TrainConfig, device: torch.device
) -> Tensor | None:
    if config.cfg_scale == 1:
        return None
    if negative_prompt is None:
        raise ValueError(
            f"cfg_scale {config.cfg_scale} needs a negative prompt, and the base has neither a text encoder nor a "
            "stored prompt; use cfg_scale=1"
        )
    return negative_prompt.to(device)


def _require_timesteps(config: TrainConfig, steps: int) -> None:
    for name in ("t_range", "regularizer_t_range"):
        if getattr(config, name)[1] > steps:
            raise ValueError(f"{name} {getattr(config, name)} goes beyond the base's schedule of {steps} steps")
