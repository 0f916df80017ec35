"""Restore files and folders of images into a folder."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from osdhuman.images import SUFFIXES, ImageError, StoredImage, read_image, write_image

if TYPE_CHECKING:
    from osdhuman.models.generator import Generator
    from osdhuman.pretrained import OSDHuman
from osdhuman.inference.config import RestoreConfig
from osdhuman.inference.tensors import restore_pictures


@dataclass
class Report:
    """What became of each input: written, skipped because its output exists, or failed with a reason."""

    restored: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[ImageError] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{len(self.restored)} restored, {len(self.skipped)} skipped, {len(self.failed)} failed"
        return "\n".join([counts, *(f"  {error}" for error in self.failed)])


@dataclass(frozen=True)
class Job:
    source: Path
    target: Path


def restore_files(
    model: "OSDHuman", inputs: Iterable[str | Path], output: str | Path, config: RestoreConfig | None = None
) -> Report:
    """Restore files and folders (recursively, structure kept) into the folder `output`.

    A picture that cannot be read, held or written is reported at the end and stops nothing. Before the work raises
    ValueError for an input that does not exist or holds no picture, for two inputs with one output, and for an output
    that is an input.
    """
    from tqdm import tqdm

    config, report = config or RestoreConfig(), Report()
    jobs = []
    for job in list_jobs(inputs, Path(output), config.format):
        done = job.target.exists() and not config.overwrite
        report.skipped.append(job.source) if done else jobs.append(job)
    with tqdm(total=len(jobs), unit="picture", desc="restoring", disable=not jobs) as bar:
        for batch in _batches(jobs, config.batch_size, report):
            _restore_batch(model.generator, batch, config, report)
            bar.update(len(report.restored) + len(report.failed) - bar.n)
        bar.update(len(report.failed) + len(report.restored) - bar.n)  # those that failed to be read at the very end
    return report


def list_jobs(inputs: Iterable[str | Path], output: Path, format: str = "png") -> list[Job]:
    """Every picture to restore and where it goes; raises ValueError as `restore_files` says."""
    jobs: dict[Path, Job] = {}  # by source, so that a file named twice is done once
    for root in map(Path, inputs):
        if not root.exists():
            raise ValueError(f"input {root} does not exist")
        found = sorted(_pictures(root, output)) if root.is_dir() else [root]
        if not found:
            raise ValueError(f"folder {root} holds no picture ({', '.join(SUFFIXES)})")
        for path in found:
            name = path.relative_to(root) if root.is_dir() else Path(path.name)
            suffix = path.suffix if format == "same" and path.suffix.lower() in SUFFIXES else ".png"
            jobs.setdefault(path.resolve(), Job(path, output / name.with_suffix(suffix)))
    _check_targets(list(jobs.values()))
    return list(jobs.values())


def _pictures(folder: Path, output: Path) -> Iterator[Path]:
    inside = output.resolve() if output.resolve() != folder.resolve() else None  # earlier results are not inputs
    for path in folder.rglob("*"):
        hidden = path.name.startswith(".")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not hidden and inside not in path.resolve().parents:
            yield path


def _check_targets(jobs: list[Job]) -> None:
    sources = {job.source.resolve() for job in jobs}
    taken: dict[Path, Path] = {}
    for job in jobs:
        target = job.target.resolve()
        if target in sources:
            raise ValueError(f"{job.source} would be written over the input {job.target}: choose another output folder")
        if target in taken:
            raise ValueError(
                f"{taken[target]} and {job.source} would both be written to {job.target}: "
                "restore them into different folders, or rename one"
            )
        taken[target] = job.source


def _batches(jobs: list[Job], size: int, report: Report) -> Iterator[list[tuple[Job, StoredImage]]]:
    """Read pictures and group them by size; few wait at a time, so that a folder of mixed sizes stays out of memory."""
    waiting: dict[tuple[int, ...], list[tuple[Job, StoredImage]]] = {}
    for job in jobs:
        try:
            picture = read_image(job.source)
        except ImageError as error:
            report.failed.append(error)
            continue
        group = waiting.setdefault(tuple(picture.rgb.shape), [])
        group.append((job, picture))
        if len(group) == size or sum(map(len, waiting.values())) >= 4 * size:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def _restore_batch(
    generator: "Generator", batch: list[tuple[Job, StoredImage]], config: RestoreConfig, report: Report
) -> None:
    try:
        pictures = restore_pictures(generator, [picture for _, picture in batch], config)
    except (MemoryError, FloatingPointError) as error:
        if len(batch) > 1:  # find the one that is to blame
            for one in batch:
                _restore_batch(generator, [one], config, report)
        else:
            report.failed.append(ImageError(batch[0][0].source, str(error)))
        return
    for (job, _), picture in zip(batch, pictures, strict=True):
        try:
            write_image(job.target, picture)
            report.restored.append(job.source)
        except ImageError as error:
            report.failed.append(error)
