"""Restore files and folders of images into a folder.

The folder keeps, in `.restored.jsonl`, from which input and with which settings each image was made. So the same
command continues after a stop, and an image that was made with other settings is told apart.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osdhuman.files import disk_is_full, printable
from osdhuman.folders import list_images
from osdhuman.images import SUFFIXES, ImageError, StoredImage, read_image, write_image
from osdhuman.inference.config import CallConfig, RestoreConfig
from osdhuman.inference.tensors import restore_stored
from osdhuman.summary import Summary

if TYPE_CHECKING:
    from osdhuman.models.generator import Generator
    from osdhuman.pretrained import OSDHuman

RECORD = ".restored.jsonl"
LIST = "not_restored.jsonl"  # beside the restored images: every input without a result, with its reason


@dataclass(frozen=True)
class Job:
    """One image to restore: where it is read and where the result is written."""

    source: Path
    target: Path


@dataclass
class Report:
    """What became of each input: restored, skipped because its output exists, or not restored with a reason."""

    restored: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    outdated: list[Path] = field(default_factory=list)  # skipped, but made from another input or with other settings
    failed: list[ImageError] = field(default_factory=list)
    unlisted: Summary = field(default_factory=Summary)  # files of a folder that are no images
    frames: dict[Path, int] = field(default_factory=dict)  # files with several images, of which the first is restored
    full: bool = False  # no space was left: the rest was not tried

    @property
    def not_restored(self) -> Summary:
        """Everything without a result, by reason."""
        summary = Summary()
        for error in self.failed:
            summary.add(error.path, error.reason)
        for path, reason in self.unlisted.entries:
            summary.add(path, reason)
        return summary

    def __str__(self) -> str:
        lines = [f"{len(self.restored)} restored, {len(self.skipped)} skipped, {len(self.failed)} failed"]
        if self.outdated:
            names = ", ".join(map(printable, self.outdated[:5])) + ", ..." * (len(self.outdated) > 5)
            lines.append(
                f"{len(self.outdated)} of the skipped were made from another input or with other settings "
                f"(overwrite=true restores them again): {names}"
            )
        if self.frames:
            names = ", ".join(f"{printable(path)} ({count})" for path, count in list(self.frames.items())[:5])
            lines.append(f"{len(self.frames)} files hold several images, the first was restored: {names}")
        lines += [str(self.not_restored)] if self.not_restored.entries else []
        lines += ["no space is left on the device: the run ended early"] if self.full else []
        return "\n".join(lines)


def restore_files(
    model: "OSDHuman",
    inputs: Iterable[str | Path],
    output: str | Path,
    config: RestoreConfig | None = None,
    report: Report | None = None,
) -> Report:
    """Restore files and folders (recursively, structure kept) into the folder `output`.

    An image that cannot be read, held or written is reported at the end and stops nothing; a full disk ends the run.
    `report` is filled as the run goes. Raises ValueError before the work for an input that does not exist or holds no
    image, for an output that is a file, and for an output that is an input.
    """
    from tqdm import tqdm

    config, report, output = config or RestoreConfig(), report or Report(), Path(output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {printable(output)} is a file, but a folder is needed")
    record = Record(output, _made_with(model, config))
    jobs = []
    for job in list_jobs(inputs, output, config.format, report.unlisted):
        if not job.target.exists() or config.overwrite:
            jobs.append(job)
            continue
        report.skipped.append(job.source)
        if not record.agrees(job):
            report.outdated.append(job.source)
    call = CallConfig(**config.model_dump(include=set(CallConfig.model_fields)))
    with tqdm(total=len(jobs), unit="image", desc="restoring", disable=not jobs) as bar:
        for batch in _batches(jobs, config, report):
            _restore_batch(model.generator, batch, call, report, record)
            bar.update(len(report.restored) + len(report.failed) - bar.n)
            if report.full:
                break
        bar.update(len(report.failed) + len(report.restored) - bar.n)  # those that failed to be read at the very end
    if output.is_dir() and not report.full:
        report.not_restored.write(output / LIST)
    return report


def _made_with(model: "OSDHuman", config: RestoreConfig) -> dict[str, Any]:
    """What a result depends on besides its input."""
    settings = config.model_dump(
        mode="json", exclude={"memory", "batch_size", "format", "overwrite", "dtype", "max_pixels"}
    )
    dtype = next(model.generator.parameters()).dtype
    return settings | {"model": model.identity, "dtype": str(dtype).removeprefix("torch.")}


# ------------------------------------------------------------------------------------------------- inputs and outputs


def list_jobs(
    inputs: Iterable[str | Path], output: Path, format: str = "png", unlisted: Summary | None = None
) -> list[Job]:
    """Every image to restore and where it goes; what a folder holds besides images goes to `unlisted`.

    The result of `a.jpg` is `a.png`. Where two inputs would share it, the PNG keeps the name and the others are written
    under their full name: `a.jpg.png`. Raises ValueError as `restore_files` says.
    """
    sources: dict[Path, tuple[Path, Path]] = {}  # by real path, so that a file named twice is done once
    for root in map(Path, inputs):
        if not root.exists():
            raise ValueError(f"input {printable(root)} does not exist")
        for path in _images(root, output, unlisted):
            name = path.relative_to(root) if root.is_dir() else Path(path.name)
            sources.setdefault(path.resolve(), (path, name))
    wanted = Counter(_result_name(name, format) for _, name in sources.values())
    jobs = [
        Job(path, output / _distinct_name(name, format, wanted[_result_name(name, format)] > 1))
        for path, name in sources.values()
    ]
    _check_targets(jobs)
    return jobs


def _images(root: Path, output: Path, unlisted: Summary | None) -> list[Path]:
    if not root.is_dir():
        return [root]
    inside = () if output.resolve() == root.resolve() else (output,)  # earlier results are not inputs
    images, others = list_images(root, skip=inside)
    if not images:
        raise ValueError(f"folder {printable(root)} holds no image")
    for path, reason in others:
        if unlisted is not None and path.name != LIST:
            unlisted.add(path, reason)
    return images


def _result_name(name: Path, format: str) -> Path:
    keep = format == "same" and name.suffix.lower() in SUFFIXES
    return name if keep else name.with_suffix(".png")


def _distinct_name(name: Path, format: str, shared: bool) -> Path:
    result = _result_name(name, format)
    return result if not shared or result == name else name.with_name(f"{name.name}.png")


def _check_targets(jobs: list[Job]) -> None:
    sources = {job.source.resolve() for job in jobs}
    taken: dict[Path, Path] = {}
    for job in jobs:
        target = job.target.resolve()
        if target in sources:
            raise ValueError(
                f"{printable(job.source)} would be written over the input {printable(job.target)}: choose another "
                "output folder"
            )
        if target in taken:
            raise ValueError(
                f"{printable(taken[target])} and {printable(job.source)} would both be written to "
                f"{printable(job.target)}: restore them into different folders, or rename one"
            )
        taken[target] = job.source


class Record:
    """Which input and settings made each image of an output folder: one line per image, the last one counts."""

    def __init__(self, output: Path, made_with: dict[str, Any]) -> None:
        self.output, self.made_with = output, made_with
        self.known: dict[str, dict] = {}
        path = output / RECORD
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        for line in lines:
            try:
                entry = json.loads(line)
                self.known[entry["file"]] = entry
            except (ValueError, KeyError, TypeError):  # the torn line of a killed run
                continue

    def agrees(self, job: Job) -> bool:
        """Whether an existing result was made from this input with these settings; unknown ones are taken as such."""
        known = self.known.get(self._name(job))
        return known is None or known == self._entry(job)

    def note(self, job: Job) -> None:
        """Write that a result was made."""
        with (self.output / RECORD).open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._entry(job)) + "\n")

    def _name(self, job: Job) -> str:
        return printable(job.target.relative_to(self.output))

    def _entry(self, job: Job) -> dict[str, Any]:
        return {"file": self._name(job), "source": printable(job.source.name), "made_with": self.made_with}


# ------------------------------------------------------------------------------------------------------------ batches


def _batches(jobs: list[Job], config: RestoreConfig, report: Report) -> Iterator[list[tuple[Job, StoredImage]]]:
    """Read images and group them by size; few wait at a time, so that a folder of mixed sizes stays out of memory."""
    size, waiting = config.batch_size, dict[tuple[int, ...], list[tuple[Job, StoredImage]]]()
    for job in jobs:
        try:
            image = read_image(job.source, config.max_pixels)
        except ImageError as error:
            report.failed.append(error)
            continue
        if image.frames > 1:
            report.frames[job.source] = image.frames
        group = waiting.setdefault(tuple(image.rgb.shape), [])
        group.append((job, image))
        if len(group) == size or sum(map(len, waiting.values())) >= 4 * size:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def _restore_batch(
    generator: "Generator",
    batch: list[tuple[Job, StoredImage]],
    config: CallConfig,
    report: Report,
    record: Record,
) -> None:
    try:
        images = restore_stored(generator, [image for _, image in batch], config)
    except (MemoryError, FloatingPointError) as error:
        if len(batch) > 1:  # find the one that is to blame
            for one in batch:
                _restore_batch(generator, [one], config, report, record)
        else:
            report.failed.append(ImageError(batch[0][0].source, str(error)))
        return
    for (job, _), image in zip(batch, images, strict=True):
        try:
            write_image(job.target, image)
            record.note(job)
            report.restored.append(job.source)
        except (ImageError, OSError) as error:
            reason = error.reason if isinstance(error, ImageError) else str(error)
            report.failed.append(ImageError(job.source, f"its result {printable(job.target)} {reason}"))
            report.full |= disk_is_full(error)
            if report.full:
                return
