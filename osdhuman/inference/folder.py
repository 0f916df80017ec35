"""Restore files and folders of images into a folder.

The folder keeps a record of what made each result (`record.py`). So the same command continues after a stop, and a
result of another input or of other settings is told apart.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osdhuman.files import disk_is_full, printable
from osdhuman.folders import list_images
from osdhuman.images import SUFFIXES, ImageError, StoredImage, read_image, write_image
from osdhuman.inference.config import CallConfig, RestoreConfig
from osdhuman.inference.record import Record
from osdhuman.inference.tensors import restore_stored
from osdhuman.result_names import as_png, result_names
from osdhuman.summary import SHOWN, Summary

if TYPE_CHECKING:
    from osdhuman.models.generator import Generator
    from osdhuman.pretrained import OSDHuman

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
    outdated: dict[Path, str] = field(default_factory=dict)  # skipped, but not made by this run, and why
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
            lines.append(f"{len(self.outdated)} of the skipped differ (overwrite=true restores them again):")
            lines += [f"  {printable(path)}: {why}" for path, why in list(self.outdated.items())[:SHOWN]]
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
    for job in list_jobs(inputs, output, config.format, report.unlisted, record.sources()):
        if not job.target.exists() or config.overwrite:
            jobs.append(job)
            continue
        report.skipped.append(job.source)
        if why := record.why_other(job.source, job.target):
            report.outdated[job.source] = why
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
    inputs: Iterable[str | Path],
    output: Path,
    format: str = "png",
    unlisted: Summary | None = None,
    known: Mapping[str, str] | None = None,
) -> list[Job]:
    """Every image to restore and where it goes; what a folder holds besides images goes to `unlisted`.

    The result of `a.jpg` is `a.png`; `result_names` says what becomes of several inputs that would share it. `known`
    are the results of earlier runs: name below `output` -> absolute input. Raises ValueError as `restore_files` says.
    """
    sources: dict[Path, Path] = {}  # name below its root -> input
    seen: set[Path] = set()  # real paths, so that a file named twice is done once
    for root in map(Path, inputs):
        if not root.exists():
            raise ValueError(f"input {printable(root)} does not exist")
        for path in _images(root, output, unlisted):
            name = path.relative_to(root) if root.is_dir() else Path(path.name)
            if path.resolve() in seen:
                continue
            if name in sources:
                raise ValueError(
                    f"{printable(sources[name])} and {printable(path)} would both be written to {printable(name)}: "
                    "restore them into different folders"
                )
            seen.add(path.resolve())
            sources[name] = path
    results = result_names(sources, lambda name: _wanted(name, format), _known(sources, known or {}))
    jobs = [Job(source, output / results[name]) for name, source in sources.items()]
    _refuse_inputs_as_targets(jobs)
    return jobs


def _known(sources: Mapping[Path, Path], known: Mapping[str, str]) -> dict[Path, Path]:
    """Name below its root -> name of its result, for the inputs of earlier runs."""
    results = {source: Path(target) for target, source in known.items()}
    found = {name: results.get(str(source.resolve())) for name, source in sources.items()}
    return {name: result for name, result in found.items() if result is not None}


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


def _wanted(name: Path, format: str) -> Path:
    keeps = format == "same" and name.suffix.lower() in SUFFIXES
    return name if keeps else as_png(name)


def _refuse_inputs_as_targets(jobs: list[Job]) -> None:
    sources = {job.source.resolve() for job in jobs}
    for job in jobs:
        if job.target.resolve() in sources:
            raise ValueError(
                f"{printable(job.source)} would be written over the input {printable(job.target)}: choose another "
                "output folder"
            )


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
            record.add(job.source, job.target)
            report.restored.append(job.source)
        except (ImageError, OSError) as error:
            reason = error.reason if isinstance(error, ImageError) else str(error)
            report.failed.append(ImageError(job.source, f"its result {printable(job.target)} {reason}"))
            report.full |= disk_is_full(error)
            if report.full:
                return
