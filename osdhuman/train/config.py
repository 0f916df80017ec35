"""The settings of a training run. Defaults are the paper's (section 4.2), else OSEDiff's, which the paper follows."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from osdhuman.config import Config
from osdhuman.data.degradation import DegradationConfig
from osdhuman.data.samples import DataConfig
from osdhuman.models.build import OSDHumanConfig
from osdhuman.recipes.perceptual import PerceptualName
from osdhuman.recipes.vsd_networks import RegularizerConfig

NEGATIVE_PROMPT = (
    "painting, oil painting, illustration, drawing, art, sketch, cartoon, CG Style, 3D render, unreal engine, "
    "blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, jpeg artifacts, deformed, "
    "lowres, over-smooth"
)


class OptimizerConfig(Config):
    """AdamW, the same for generator and regularizer."""

    lr: float = Field(5e-5, gt=0)  # the paper
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    eps: float = Field(1e-8, gt=0)
    clip: float = Field(1.0, gt=0)  # largest norm of each network's gradient
    warmup_steps: int = Field(0, ge=0)  # the rate rises linearly from zero
    decay: Literal["constant", "cosine"] = "constant"  # cosine: falls to zero at max_steps


class TrainConfig(Config):
    """One training run. `batch_size` counts the images of one step on all processes together."""

    run: Path = Path("runs/osdhuman")  # checkpoints, logs, pictures; the same command continues it
    model: OSDHumanConfig = OSDHumanConfig()
    regularizer: RegularizerConfig = RegularizerConfig()
    data: DataConfig = DataConfig()
    degradation: DegradationConfig = DegradationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    perceptual: PerceptualName = "lpips"
    lambda_lpips: float = Field(2.0, ge=0)  # Eq. 4, lambda_1: of the perceptual term, whichever it is
    lambda_vsd: float = Field(1.0, ge=0)  # Eq. 4, lambda_2
    t_range: tuple[int, int] = (20, 980)  # Eq. 6: t is drawn from 20..979
    regularizer_t_range: tuple[int, int] = (0, 1000)  # Eq. 7: t is drawn from 0..999
    cfg_scale: float = Field(7.5, ge=1)  # of the pretrained regularizer in Eq. 6; 1 uses the prompt alone
    negative_prompt: str = NEGATIVE_PROMPT
    sample_latent: bool = True  # z_lq is drawn from the VAE's posterior; false takes its mean, as when restoring

    batch_size: int = Field(16, gt=0)  # = images per process x processes x accumulation
    accumulation: int = Field(1, gt=0)
    max_steps: int = Field(35_000, gt=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    ema: float | None = Field(None, gt=0, lt=1)  # decay per step; validation and the saved model use the averages
    seed: int = Field(0, ge=0)

    log_every: int = Field(10, gt=0)
    trackers: tuple[str, ...] = ("tensorboard",)  # any that accelerate knows
    validation: Path | None = None  # a folder of pairs, hq/ and lq/; null validates nothing
    validate_every: int = Field(1000, gt=0)
    save_every: int = Field(500, gt=0)
    keep_last: int = Field(3, gt=0)  # checkpoints

    @model_validator(mode="after")
    def _timesteps_are_ranges(self) -> "TrainConfig":
        for name in ("t_range", "regularizer_t_range"):
            low, high = getattr(self, name)
            if not 0 <= low < high:
                raise ValueError(f"{name} must be (low, high) with 0 <= low < high, got {(low, high)}")
        return self
