"""Which images a training run reads: folders, manifests and pairs."""

import csv
import json
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from osdhuman.config import Config
from osdhuman.folders import find_images


class DataConfig(Config):
    """Which photographs, and how they are cropped."""

    kind: Literal["folder", "manifest", "pairs"] = "folder"
    paths: Annotated[tuple[Path, ...], BeforeValidator(lambda paths: [paths] if isinstance(paths, str) else paths)] = ()
    column: str = "path"  # of a .jsonl or .csv manifest; a .txt manifest holds one path per line
    size: int = Field(512, gt=0)  # pixels a side
    shrink: tuple[float, float] | None = None  # downscale by a random factor of this range, [0.5, 1.0] say; then crop
    upscale_small: bool = True  # enlarge an image whose short side is below `size`; false skips it
    flip: bool = True  # horizontally, with probability 1/2
    workers: int = Field(4, ge=0)  # reading processes for each training process
    # where LQ is made, which does not change it; workers keep JPEG off the training process. auto: if there are any
    degrade: Literal["auto", "workers", "device"] = "auto"
    cache: bool = False  # keep the decoded images in memory as 8 bits (3 bytes a pixel)

    @property
    def degrades_in_workers(self) -> bool:
        """Whether the loader makes LQ, rather than the training process on its device."""
        return self.degrade == "workers" or (self.degrade == "auto" and self.workers > 0)

    @model_validator(mode="after")
    def _shrink_is_a_range(self) -> "DataConfig":
        if self.shrink is not None and not 0 < self.shrink[0] <= self.shrink[1] <= 1:
            raise ValueError(f"shrink must be (low, high) with 0 < low <= high <= 1, got {self.shrink}")
        return self


class Pair(NamedTuple):
    """The files of one sample; `lq` is None where degradation makes it."""

    hq: Path
    lq: Path | None


def find_pairs(folder: Path) -> list[Pair]:
    """The pairs `hq/NAME`, `lq/NAME` below `folder`, matched without their suffix (hq/a.jpg and lq/a.png match).

    Raises FileNotFoundError naming the images that have no partner.
    """
    hq, lq = (
        {path.relative_to(folder / side).with_suffix(""): path for path in find_images(folder / side)}
        for side in Pair._fields
    )
    if lonely := sorted(map(str, hq.keys() ^ lq.keys())):
        some = ", ".join(lonely[:5]) + " ..." * (len(lonely) > 5)
        raise FileNotFoundError(f"{folder}: {len(lonely)} image(s) lack a partner in hq/ or lq/: {some}")
    return [Pair(hq[name], lq[name]) for name in sorted(hq)]


def read_manifest(manifest: Path, column: str = "path") -> list[Path]:
    """The paths listed by a .jsonl, .csv or .txt file, relative ones taken from its folder."""
    lines = [line for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        if manifest.suffix == ".jsonl":
            names = [json.loads(line)[column] for line in lines]
        elif manifest.suffix == ".csv":
            names = [row[column] for row in csv.DictReader(lines)]
        else:
            names = [line.strip() for line in lines]
    except KeyError:
        raise ValueError(f"manifest {manifest} has no column {column!r}; name it with data.column=...") from None
    return [manifest.parent / name for name in names]


def list_samples(config: DataConfig) -> list[Pair]:
    """Every sample of every path of the config, in order; a path given twice counts twice."""
    if not config.paths:
        raise ValueError("no training images are named: give data.paths=FOLDER (or [FOLDER, FOLDER])")
    if config.kind == "pairs":
        return [pair for path in config.paths for pair in find_pairs(path)]
    find = find_images if config.kind == "folder" else lambda path: read_manifest(path, config.column)
    return [Pair(image, None) for path in config.paths for image in find(path)]
