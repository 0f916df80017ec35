"""Settings that every training run has, whatever it trains. A recipe adds its own in a subclass of `TrainConfig`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from osdhuman.config import Config
from osdhuman.data.degradation import DegradationConfig
from osdhuman.data.samples import DataConfig


class OptimizerConfig(Config):
    """AdamW of one learner. Defaults: the paper (section 4.2), else OSEDiff's, which the paper follows."""

    lr: float = Field(5e-5, gt=0)  # the paper
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    eps: float = Field(1e-8, gt=0)
    clip: float = Field(1.0, gt=0)  # largest norm of each network's gradient
    warmup_steps: int = Field(0, ge=0)  # the rate rises linearly from zero
    decay: Literal["constant", "cosine"] = "constant"  # cosine: falls to zero at max_steps


class TrainConfig(Config):
    """One training run. `batch_size` counts the images of one step on all processes together.

    Defaults are those of OSDHuman (section 4.2).
    """

    recipe: str = "osdhuman"  # a name of osdhuman.recipes.RECIPES
    run: Path = Path("runs/osdhuman")  # checkpoints, logs, images; the same command continues it
    data: DataConfig = DataConfig()
    degradation: DegradationConfig = DegradationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    batch_size: int = Field(16, gt=0)  # = images per process x processes x accumulation
    accumulation: int = Field(1, gt=0)
    max_steps: int = Field(35_000, gt=0)
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"  # auto: bf16 where it is fast, else no
    ema: float | None = Field(None, gt=0, lt=1)  # decay per step; validation and the saved model use the averages
    seed: int = Field(0, ge=0)

    log_every: int = Field(10, gt=0)
    trackers: tuple[str, ...] = ("tensorboard",)  # any that accelerate knows
    validation: Path | None = None  # a folder of pairs, hq/ and lq/; null validates nothing
    validate_every: int = Field(1000, gt=0)
    save_every: int = Field(500, gt=0)
    keep_last: int = Field(3, gt=0)  # checkpoints
