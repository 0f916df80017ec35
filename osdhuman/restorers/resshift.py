"""ResShift (Yue et al., 2023; journal version 2024) as a restorer: 15 or 4 steps of residual shifting.

The official models enlarge four times, but an LQ of the benchmark has the size of its ground truth. By default it is
first reduced to a quarter, the size that the models were trained on; `reduce=after` enlarges the LQ itself and reduces
the result. A network that keeps the size (`unet.lq_size=256`, as ResShift* may be trained) needs neither.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from osdhuman.images import Kernel, resize
from osdhuman.models.resshift.checkpoint import VERSIONS, VQ_FILE, load_unet, load_vq
from osdhuman.models.resshift.chopping import ChopConfig, chopped
from osdhuman.models.resshift.sampling import LatentRestorer, restore_tile, seeded_noise
from osdhuman.models.resshift.schedule import ScheduleConfig, make_schedule
from osdhuman.models.resshift.unet import UNetConfig
from osdhuman.models.resshift.vq import VQConfig
from osdhuman.restorers.device import DeviceSettings
from osdhuman.restorers.weights import WeightFile, hashes, licences, require

S_LAB = "S-Lab License 1.0, non-commercial"
RELEASE = "an asset of release v2.0 of github.com/zsyOAOA/ResShift"
REMEDY = "choose smaller tiles (chop.size and chop.stride)"


class ResidualShiftingSettings(DeviceSettings):
    """Settings of ResShift and SinSR; the defaults are the official scripts', but for float32 (float16 there).

    Sizes of the networks and the schedule are set for own weights only.
    """

    version: str | None
    weights: str | None = None  # null: the version's official file name
    autoencoder: str = VQ_FILE
    unet: UNetConfig = UNetConfig()
    vq: VQConfig = VQConfig()
    schedule: ScheduleConfig | None = None  # null: the version's; of own weights v1's, 15 steps
    reduce: Literal["before", "after"] = "before"  # the LQ before the network, or its enlarged result
    kernel: Kernel = "bicubic"  # of reducing
    chop: ChopConfig = ChopConfig()

    @property
    def scale(self) -> int:
        """Size of the network's result per size of its LQ: 4 for the official models."""
        return self.vq.factor >> self.unet.extractor_stages

    @property
    def least(self) -> int:
        """The smallest side of an LQ, in pixels: padding to the network's `lq_size` mirrors less than the whole."""
        return self.unet.lq_size // 2 + 1

    @model_validator(mode="after")
    def _can_run(self) -> "ResidualShiftingSettings":
        if self.version is None and self.weights is None:
            raise ValueError("version null stands for own weights: name their file, weights=FILE")
        if self.chop.at_scale(self.scale).size < self.least:
            raise ValueError(f"chop.size {self.chop.size} is too small for lq_size {self.unet.lq_size}")
        return self


class ResShiftSettings(ResidualShiftingSettings):
    """v1: 15 steps, NeurIPS paper; v2: the same, trained longer; v3: 4 steps, journal; null: own weights."""

    version: Literal["v1", "v2", "v3"] | None = "v1"


class ResShift:
    """Noise of an image is drawn from its seed, tile after tile, so that neither batch nor order changes a result."""

    name = "resshift"
    Settings: ClassVar[type[ResidualShiftingSettings]] = ResShiftSettings
    source, licence = RELEASE, S_LAB

    def __init__(self, settings: ResidualShiftingSettings):
        self.settings = settings = settings.resolved()
        key = f"{self.name}_{settings.version or 'v1'}"
        official = VERSIONS[key]
        weights, autoencoder = Path(settings.weights or official.file), Path(settings.autoencoder)
        self.files = [
            WeightFile(weights, "weights", f"{official.file}, {self.source}", self.licence),
            WeightFile(autoencoder, "autoencoder", f"{VQ_FILE}, {RELEASE}", S_LAB),
        ]
        require(self.files)
        self.unet = load_unet(weights, key if settings.version else None, settings.unet).to(settings.device)
        self.vq = load_vq(autoencoder, settings.vq).to(settings.device)
        self.tile = LatentRestorer(
            self.unet,
            self.vq.encode,
            self.vq.decode,
            make_schedule(settings.schedule or official.schedule),
            official.sampler,
            settings.scale,
            padding=settings.unet.lq_size,
        )

    def restore(self, lq: Tensor, seeds: Sequence[int]) -> Tensor:
        settings, noise = self.settings, seeded_noise(seeds)
        reduction = settings.scale if settings.reduce == "before" else 1
        image = filled_up(lq.float().to(settings.device), reduction, settings.least * reduction)
        small = resize(image, _sides(image, 1 / reduction), settings.kernel)
        with settings.running(REMEDY):
            chop = settings.chop.at_scale(settings.scale)
            restored = chopped(small, chop, settings.scale, lambda tile: restore_tile(tile, self.tile, noise))
        height, width = _sides(lq, settings.scale // reduction)
        return resize(restored[..., :height, :width], _sides(lq), settings.kernel).to(lq.device)

    def modules(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "vq": self.vq}

    def describe(self) -> dict[str, Any]:
        return {
            "settings": self.settings.model_dump(mode="json"),
            "weights": hashes(self.files),
            "licences": licences(self.files),
            "trained_parameters": sum(p.numel() for p in self.unet.parameters()),
        }


def filled_up(image: Tensor, multiple: int, least: int) -> Tensor:
    """Repeat the last column and row of (B,3,H,W) up to multiples of `multiple`, at least `least` pixels a side."""
    below, right = (max(side + -side % multiple, least) - side for side in image.shape[-2:])
    return F.pad(image, (0, right, 0, below), mode="replicate")


def _sides(image: Tensor, factor: float = 1) -> tuple[int, int]:
    height, width = image.shape[-2:]
    return round(height * factor), round(width * factor)
