"""A restorer over a folder of LQ images, into a folder of PNGs that says what made it.

The folder is the interface of the benchmark: images that somebody else restored are measured just so.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch
from torch import Tensor
from tqdm import tqdm

from osdhuman import __version__
from osdhuman.evaluation.json_files import read_json, write_json
from osdhuman.files import file_sha256
from osdhuman.folders import Unlisted, list_images
from osdhuman.images import ImageError, load_rgb, save_png
from osdhuman.machine import out_of_memory
from osdhuman.metrics.score_files import printable
from osdhuman.restorers import Restorer, describe
from osdhuman.resume import differences

RECORD = "restorer.json"
REMEDY = "choose another output folder, or delete this one"


class Job(NamedTuple):
    """An LQ image and the PNG that its result becomes."""

    source: Path
    target: Path


@dataclass
class RestoreReport:
    """What became of each input: restored, skipped because its result exists, failed, or not listed as an image."""

    restored: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[ImageError] = field(default_factory=list)
    unlisted: list[Unlisted] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{len(self.restored)} restored, {len(self.skipped)} skipped, {len(self.failed)} failed"
        return "\n".join([counts, *(f"  {printable(str(error))}" for error in self.failed)])


def restore_folder(restorer: Restorer, lq: Path, output: Path, seed: int = 0, batch: int = 1) -> RestoreReport:
    """Restore every image of `lq` (and of its subfolders) into `output`, as PNG of the same size and name.

    An image's seed depends on `seed` and its name only. A stopped run goes on where it stopped: what exists is not done
    again. Images that cannot be read, restored or written are in the report and stop nothing; a full disk ends the run
    with its OSError. Raises ValueError if `output` was made by another restorer, other settings, weights or versions,
    another seed or from other images.
    """
    lq, output, report = Path(lq), Path(output), RestoreReport()
    jobs, report.unlisted = list_jobs(lq, output)
    _claim(restorer, jobs, output, seed)
    open_jobs = []
    for job in jobs:
        report.skipped.append(job.source) if job.target.exists() else open_jobs.append(job)
    with tqdm(total=len(open_jobs), unit="image", desc=restorer.name, disable=None if open_jobs else True) as bar:
        for group in _batches(open_jobs, batch, report):
            _restore(restorer, group, output, seed, report)
            bar.update(len(report.restored) + len(report.failed) - bar.n)
    return report


def image_seed(seed: int, name: str) -> int:
    """A number in 0..2**32-1 for one image of a run; `name` is its path in the folder, without suffix."""
    return int.from_bytes(hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest()[:4], "big")


# -------------------------------------------------------------------------------------------------------- the images


def list_jobs(lq: Path, output: Path) -> tuple[list[Job], list[Unlisted]]:
    """Every image below `lq` and where its result goes; and the other files there. ValueError where there is none."""
    images, unlisted = list_images(lq, skip=[output])
    if not images:
        raise ValueError(f"folder {lq} holds no image")
    jobs: dict[Path, Job] = {}
    for source in images:
        target = output / source.relative_to(lq).with_suffix(".png")
        if target in jobs:
            names = f"{printable(str(jobs[target].source))} and {printable(str(source))}"
            raise ValueError(f"{names} would both become {printable(target.name)}: rename one, or move it elsewhere")
        jobs[target] = Job(source, target)
    return list(jobs.values()), unlisted


def _batches(jobs: Sequence[Job], size: int, report: RestoreReport) -> Iterator[list[tuple[Job, Tensor]]]:
    """Read images in order; neighbours of one size (3,H,W) go together, at most `size` of them."""
    group: list[tuple[Job, Tensor]] = []
    for job in jobs:
        try:
            image = load_rgb(job.source)
        except ImageError as error:
            report.failed.append(error)
            continue
        if group and (len(group) == size or image.shape != group[0][1].shape):
            yield group
            group = []
        group.append((job, image))
    if group:
        yield group


def _restore(
    restorer: Restorer, group: list[tuple[Job, Tensor]], output: Path, seed: int, report: RestoreReport
) -> None:
    seeds = [image_seed(seed, _name(job, output)) for job, _ in group]
    try:
        restored = _checked(restorer, torch.stack([image for _, image in group]), seeds)
    except Exception as error:
        if not (isinstance(error, FloatingPointError) or out_of_memory(error)):
            raise
        if len(group) > 1:  # find the one that is to blame
            for one in group:
                _restore(restorer, [one], output, seed, report)
        else:
            report.failed.append(ImageError(group[0][0].source, str(error)))
        return
    for (job, _), image in zip(group, restored, strict=True):
        _write(job, image, report)


def _write(job: Job, image: Tensor, report: RestoreReport) -> None:
    try:
        save_png(job.target, image)
        report.restored.append(job.source)
    except ImageError as error:
        report.failed.append(error)
    except OSError as error:
        if disk_full(error):
            raise
        report.failed.append(ImageError(job.source, f"its result cannot be written ({error})"))


def disk_full(error: BaseException) -> bool:
    """Whether no further file can be written."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _checked(restorer: Restorer, lq: Tensor, seeds: list[int]) -> Tensor:
    restored = restorer.restore(lq, seeds)
    if restored.shape != lq.shape:
        raise ValueError(
            f"restorer {restorer.name!r} gave {tuple(restored.shape)} for {tuple(lq.shape)}: "
            "a restorer must keep the size (see osdhuman.restorers.Restorer)"
        )
    if not torch.isfinite(restored).all():
        raise FloatingPointError(f"restorer {restorer.name!r} gave values that are not finite")
    return restored


def _name(job: Job, output: Path) -> str:
    return job.target.relative_to(output).with_suffix("").as_posix()


# -------------------------------------------------------------------------------------------------------- the record


def _claim(restorer: Restorer, jobs: Sequence[Job], output: Path, seed: int) -> None:
    """Write the record of this run, or raise ValueError if it and the existing images are of another run."""
    record = {
        "name": restorer.name,
        **describe(restorer),
        "seed": seed,
        "versions": _versions(),
        "inputs": {printable(_name(job, output)): file_sha256(job.source) for job in jobs},
    }
    path = output / RECORD
    images = list_images(output)[0] if output.is_dir() else []
    existing = {printable(image.relative_to(output).with_suffix("").as_posix()) for image in images}
    if existing and not path.is_file():
        raise ValueError(f"{output} holds {len(existing)} PNGs but no {RECORD}, so their maker is unknown: {REMEDY}")
    if path.is_file():
        mistakes = _reasons_not_to_resume(read_json(path, ["inputs"]), json.loads(json.dumps(record)), existing)
        if mistakes:
            raise ValueError("\n".join([f"{output} was made by another run: {REMEDY}", *mistakes]))
    write_json(path, record)


def _versions() -> dict[str, str]:
    libraries = {"torch": torch.__version__, "diffusers": version("diffusers"), "opencv": cv2.__version__}
    return {"osdhuman": __version__, **libraries}


def _reasons_not_to_resume(before: dict[str, Any], now: dict[str, Any], existing: set[str]) -> list[str]:
    """One line each. Of the inputs only those count whose results exist."""
    old, new = before.pop("inputs"), now.pop("inputs")
    lines = [f"  {key}: {was!r} there, {is_!r} now" for key, was, is_ in sorted(differences(before, now), key=_first)]
    for name in sorted(existing):
        if name not in new:
            lines.append(f"  {name}: restored there, but not among the inputs now")
        elif old.get(name) != new[name]:
            lines.append(f"  {name}: the input has changed since it was restored")
    return lines


def _first(difference: tuple[str, Any, Any]) -> str:
    return difference[0]
