"""A restorer over a folder of LQ images, into a folder of PNGs that says what made it.

The folder is the interface of the benchmark: images that somebody else restored are measured just so.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor
from tqdm import tqdm

from osdhuman import __version__
from osdhuman.files import file_sha256, replacing
from osdhuman.images import ImageError, load_rgb, save_png
from osdhuman.inference.folder import Job, list_jobs
from osdhuman.inference.folder import Report as RestoreReport
from osdhuman.restorers import Restorer, describe

RECORD = "restorer.json"
REMEDY = "choose another output folder, or delete this one"


def restore_folder(restorer: Restorer, lq: Path, output: Path, seed: int = 0, batch: int = 1) -> RestoreReport:
    """Restore every image of `lq` (and of its subfolders) into `output`, as PNG of the same size and name.

    An image's seed depends on `seed` and its name only. A stopped run goes on where it stopped: what is there is not
    done again. Images that cannot be read or restored are in the report and stop nothing. Raises ValueError if `output`
    was made by another restorer, other settings, weights or versions, another seed or from other images.
    """
    lq, output, report = Path(lq), Path(output), RestoreReport()
    jobs = list_jobs([lq], output)
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
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")


# -------------------------------------------------------------------------------------------------------- the images


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


def _restore(restorer: Restorer, group: list[tuple[Job, Tensor]], output: Path, seed: int, report: RestoreReport):
    seeds = [image_seed(seed, _name(job, output)) for job, _ in group]
    try:
        restored = _checked(restorer, torch.stack([image for _, image in group]), seeds)
    except (MemoryError, FloatingPointError) as error:
        if len(group) > 1:  # find the one that is to blame
            for one in group:
                _restore(restorer, [one], output, seed, report)
        else:
            report.failed.append(ImageError(group[0][0].source, str(error)))
        return
    for (job, _), image in zip(group, restored, strict=True):
        save_png(job.target, image)
        report.restored.append(job.source)


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
    """Write the record of this run, or raise ValueError if it and the images that are there are of another run."""
    record = {
        "name": restorer.name,
        **describe(restorer),
        "seed": seed,
        "versions": _versions(),
        "inputs": {_name(job, output): file_sha256(job.source) for job in jobs},
    }
    path = output / RECORD
    there = {target.relative_to(output).with_suffix("").as_posix() for target in output.rglob("*.png")}
    if there and not path.is_file():
        raise ValueError(f"{output} holds {len(there)} PNGs but no {RECORD}, so it is unknown what made them: {REMEDY}")
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        mistakes = _differences(before, json.loads(json.dumps(record)), there)
        if mistakes:
            raise ValueError("\n".join([f"{output} was made by another run: {REMEDY}", *mistakes]))
    with replacing(path) as part:
        part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    libraries = {"torch": torch.__version__, "diffusers": version("diffusers"), "opencv": cv2.__version__}
    return {"osdhuman": __version__, **libraries}


def _differences(before: dict[str, Any], now: dict[str, Any], there: set[str]) -> list[str]:
    """What speaks against going on, a line each. Of the inputs only those count whose results are `there`."""
    old, new = before.pop("inputs"), now.pop("inputs")
    old_values, new_values = _flat(before), _flat(now)
    lines = [
        f"  {key}: {old_values.get(key)!r} there, {new_values.get(key)!r} now"
        for key in sorted(old_values.keys() | new_values.keys())
        if old_values.get(key) != new_values.get(key)
    ]
    for name in sorted(there):
        if name not in new:
            lines.append(f"  {name}: restored there, but not among the inputs now")
        elif old.get(name) != new[name]:
            lines.append(f"  {name}: the input has changed since it was restored")
    return lines


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
