"""The score pass: the crops of one shard -> one row of no-reference metrics each (paper 3.1)."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import cv2
import polars as pl
import torch
from pydantic import Field
from torch import Tensor

from osdhuman.config import Config
from osdhuman.metrics.scorers import Scorer, load_scorers

READERS = 4  # threads that decode crops while the network scores those before


class ScoreConfig(Config):
    """Which metrics. `batch` and `device` change the speed alone."""

    metrics: tuple[str, ...] = Field(("clipiqa", "maniqa", "musiq", "niqe", "brisque"), min_length=1)  # Eq. 1; Table 1
    batch: int = Field(16, gt=0)
    device: str = "auto"  # cuda where there is one, else cpu


def score_crops(folder: Path, ids: Sequence[str], config: ScoreConfig) -> pl.DataFrame:
    """Score `<id>.png` of `folder`: `id` and one Float64 column per metric, raw, in the order of `ids`.

    Raises ValueError for a crop that cannot be read, MetricUnavailable for metrics that cannot be had.
    """
    scorers = _scorers(config.metrics, device(config))
    columns: dict[str, list[float]] = {name: [] for name in config.metrics}
    with torch.inference_mode():
        for images in _batches(folder, ids, config):
            for name, scorer in scorers.items():
                columns[name] += scorer(images).tolist()
    return pl.DataFrame({"id": list(ids), **columns}, schema={"id": pl.String, **dict.fromkeys(columns, pl.Float64)})


def device(config: ScoreConfig) -> str:
    """The device that `config` names; for auto CUDA where there is one."""
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


@lru_cache(maxsize=1)
def _scorers(names: tuple[str, ...], device: str) -> dict[str, Scorer]:
    """Once per process: a worker scores many shards."""
    return load_scorers(names, device)


def _batches(folder: Path, ids: Sequence[str], config: ScoreConfig) -> Iterator[Tensor]:
    """Crops as float32 RGB (B,3,H,W) in [0,1]; the next batch is read while the caller scores this one."""
    with ThreadPoolExecutor(READERS) as readers:

        def start(place: int) -> list[Future[Tensor]]:
            return [readers.submit(read_crop, folder / f"{crop}.png") for crop in ids[place : place + config.batch]]

        ahead = start(0)
        for place in range(0, len(ids), config.batch):
            current, ahead = ahead, start(place + config.batch)
            yield torch.stack([crop.result() for crop in current]).to(device(config)) / 255


def read_crop(path: Path) -> Tensor:
    """A crop's PNG as uint8 RGB (3,H,W)."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise ValueError(f"{path} cannot be read; delete the folder {path.parent} and run again, which makes it anew")
    return torch.from_numpy(pixels).permute(2, 0, 1)
