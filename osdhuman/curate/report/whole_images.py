"""Table 1 as the paper measures it: whole images of the sources that show humans ("subsets with humans", Fig. 1).

Of each source a sample is drawn and scored as it is, neither cropped nor resized. Scores are kept image by image:

    whole/<source>.jsonl     a line of what the metrics are, then a line per image; a killed report loses one image
    whole_images.csv         every drawn image with its scores, or with the fault for which it has none
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from tqdm import tqdm

from osdhuman.config import load_config
from osdhuman.curate.config import HQACFConfig
from osdhuman.curate.manifest_reader import leaves_folder
from osdhuman.curate.report.csv_file import write_csv
from osdhuman.curate.report.run import Run
from osdhuman.curate.select import seeded
from osdhuman.files import replacing
from osdhuman.images import ImageError, load_rgb
from osdhuman.metrics.scorers import Scorer, identify, load_scorer
from osdhuman.metrics.weights import MetricUnavailable
from osdhuman.resume import exclusive

Values = dict[str, float | None]  # by metric; None where the metric cannot judge the image


@dataclass(frozen=True)
class Sample:
    """Images of one source that are scored: `files`, drawn from `among` that have a box of a person."""

    source: str
    files: tuple[str, ...]
    among: int


@dataclass(frozen=True)
class SampleScores:
    """What was measured of a sample: values by file, and why a file has none."""

    sample: Sample
    values: Mapping[str, Values]
    faults: Mapping[str, str]

    def means(self) -> dict[str, float]:
        """Mean of each metric over the images that it can judge; a metric that can judge none is left out."""
        columns: dict[str, list[float]] = {}
        for values in self.values.values():
            for name, value in values.items():
                if value is not None:
                    columns.setdefault(name, []).append(value)
        return {name: math.fsum(column) / len(column) for name, column in columns.items()}


def score_whole_images(
    run: Run, metrics: Sequence[str], number: int, output: Path, seed: int = 0, device: str = "cpu"
) -> tuple[list[SampleScores], dict[str, str]]:
    """Score `number` whole images of each source; also why a metric cannot be had, by its name.

    Files are written below `output`, see above. The same call continues after a stop, and a larger `number` keeps the
    scores of a smaller one. Images are read from the folders that `config.yaml` of the run names. Raises ValueError
    where there is no config.yaml or a source's folder does not exist, or while another report is working in `output`.
    """
    samples = draw_samples(run, number, seed)
    roots = source_folders(run, [sample.source for sample in samples])
    identities, missing = {}, {}
    for name in metrics:
        try:
            identities[name] = identify(name)
        except MetricUnavailable as error:
            missing[name] = error.reason
    folder = output / "whole"
    folder.mkdir(parents=True, exist_ok=True)
    scorers = LazyScorers(device)
    with exclusive(folder, "wait until it ends, or choose another --output"):
        scored = [
            score_sample(sample, roots[sample.source], folder / f"{sample.source}.jsonl", identities, scorers)
            for sample in samples
        ]
    write_whole_csv(output / "whole_images.csv", scored, list(identities))
    return scored, missing


def draw_samples(run: Run, number: int, seed: int) -> list[Sample]:
    """Of each source `number` images, or all, among those with at least one box of a person; drawn by a seeded hash."""
    images = run.rows.filter(pl.col("box_id").is_not_null()).select("source", "file").unique()
    samples = []
    for (source,), rows in images.sort("source", "file").collect().group_by("source", maintain_order=True):
        files = rows["file"].to_list()
        order = np.argsort(seeded(seed, (f"{source}/{file}" for file in files)), kind="stable")
        samples.append(Sample(source, tuple(files[place] for place in order[:number]), len(files)))
    return samples


def source_folders(run: Run, names: Sequence[str]) -> dict[str, Path]:
    """The folder of images of each source, from the run's config.yaml. Raises ValueError for one that is not there."""
    config = load_config(HQACFConfig, run.out / "config.yaml").absolute()
    folders = {source.name: source.images for source in config.sources}
    for name in names:
        if name not in folders or not folders[name].is_dir():
            raise ValueError(f"whole images of source {name} need its folder {folders.get(name)}, which does not exist")
    return folders


class LazyScorers:
    """Metrics that are loaded when the first image needs them."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._loaded: dict[str, Scorer] = {}

    def __call__(self, name: str, image: Tensor) -> float | None:
        """The score of an image (1,3,H,W) in [0,1]; None where the metric cannot judge it."""
        if name not in self._loaded:
            self._loaded[name] = load_scorer(name, self.device)
        score = self._loaded[name](image).item()
        return score if math.isfinite(score) else None


def score_sample(
    sample: Sample, folder: Path, kept: Path, identities: Mapping[str, Any], scorers: LazyScorers
) -> SampleScores:
    """Score what the file `kept` lacks of a sample, each image noted there at once."""
    values, faults = read_kept(kept, identities), {}
    with open_kept(kept, identities, values) as notes:
        for file in tqdm(sample.files, desc=f"whole {sample.source}", unit="image", disable=None):
            lacking = [name for name in identities if name not in values.get(file, {})]
            if not lacking:
                continue
            try:
                image = read_image(folder, file)[None]
                values[file] = {**values.get(file, {}), **{name: scorers(name, image) for name in lacking}}
            except ImageError as error:
                faults[file] = error.reason
            except torch.OutOfMemoryError:
                faults[file] = f"needs more memory than {scorers.device} has"
            else:
                note(notes, file, values[file])
    drawn = {file: values[file] for file in sample.files if file not in faults and file in values}
    return SampleScores(sample, drawn, faults)


def read_image(folder: Path, file: str) -> Tensor:
    """float32 RGB (3,H,W) in [0,1], upright. Raises ImageError, also for a name that leaves `folder`."""
    if leaves_folder(file):
        raise ImageError(folder / file, "is not below the source's folder")
    try:
        return load_rgb(folder / file)
    except OSError as error:
        raise ImageError(folder / file, error.strerror or type(error).__name__) from None


def read_kept(path: Path, identities: Mapping[str, Any]) -> dict[str, Values]:
    """Scores by file, of the metrics whose variant, version and weights are still these; a torn line is left out."""
    head, *rows = list(_whole_lines(path)) or [{}]
    before = head.get("identities", {})
    same = [name for name in identities if before.get(name) == identities[name]]
    return {row["file"]: {name: row[name] for name in same if name in row} for row in rows if "file" in row}


def open_kept(path: Path, identities: Mapping[str, Any], values: Mapping[str, Values]) -> IO[str]:
    """The file of scores with what is known, open for more."""
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"identities": identities}) + "\n")
        for name, scores in values.items():
            note(file, name, scores)
    return path.open("a", encoding="utf-8")


def note(file: IO[str], name: str, values: Values) -> None:
    """Append the scores of an image, so that they outlast this process."""
    file.write(json.dumps({"file": name, **values}) + "\n")
    file.flush()


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else ():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def write_whole_csv(path: Path, scored: Sequence[SampleScores], metrics: Sequence[str]) -> None:
    """source, file, a column per metric, fault: in the order in which the images were drawn."""
    rows = [
        [part.sample.source, file, *(part.values.get(file, {}).get(name) for name in metrics), part.faults.get(file)]
        for part in scored
        for file in part.sample.files
    ]
    write_csv(path, [["source", "file", *metrics, "fault"], *rows])
