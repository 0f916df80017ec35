"""Measure folders of images, alone or against a folder of references: scores per image, means, and what they are.

The folder is the interface: images that somebody else made are measured just so. For `output` = scores/<set>/<method>

    scores/<set>/<method>.parquet         one row per image: file, its and its reference's sha256, a column per metric
    scores/<set>/<method>.json            the means, with all that must agree before numbers are compared
    scores/<set>/<method>.partial.jsonl   only while measuring: a line per image, so that a killed run loses one batch

All methods of a set are measured in one pass over its references: each reference is hashed and decoded once.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from osdhuman.files import replacing
from osdhuman.metrics.listing import Reference, ScoredImage, checked, list_names, read_header
from osdhuman.metrics.score_files import Key, ScoreFiles, key_of, output_path, printable
from osdhuman.metrics.scorers import identify
from osdhuman.metrics.scoring import Task, score, score_set
from osdhuman.metrics.table import METRICS
from osdhuman.metrics.weights import MetricUnavailable

Measurement = dict[str, Any]  # what the .json holds
QUEUE = 16  # batches that may wait for workers


@dataclass(frozen=True)
class Folder:
    """Images to measure, and where their scores go (a path without suffix)."""

    images: Path
    output: Path


def measure(
    images: Path,
    output: Path,
    metrics: Sequence[str],
    reference: Path | None = None,
    names: tuple[str, str] = ("", ""),
    device: str = "cpu",
    batch: int = 8,
    png_only: bool = True,
) -> Measurement:
    """Measure the images below `images`; write the files above and return what the .json holds.

    `output` has no suffix, `names` are (set, method); the rest as in `measure_set`. Raises ValueError that lists every
    image that does not fit, or a metric that is unknown or needs a reference where there is none.
    """
    set_, method = names
    options = {"device": device, "batch": batch, "png_only": png_only}
    measured = measure_set(set_, {method: Folder(images, output)}, metrics, reference, **options)[method]
    if isinstance(measured, Exception):
        raise measured
    return measured


def measure_set(
    name: str,
    folders: Mapping[str, Folder],
    metrics: Sequence[str],
    reference: Path | None = None,
    *,
    device: str = "cpu",
    batch: int = 8,
    png_only: bool = True,
    workers: Executor | None = None,
) -> dict[str, Measurement | ValueError]:
    """Measure several methods on one set, in one pass over its references; method -> its measurement, or why not.

    `reference` must hold the same names as each folder, whatever their suffix, in the same sizes. `png_only` refuses
    lossy formats, whose compression would be measured too; photographs as they were found are measured with False.
    Files below a folder that are no images are named in the .json. A metric that cannot be had is listed there with the
    reason. The files hold the metrics asked for, no others. With `workers` the scores are computed there, `batch` names
    at a time. A ValueError of a method lists every image that does not fit; its other images are still hashed, but no
    longer scored, and it stops no other method. Raises ValueError for a metric that is unknown or needs a reference
    where there is none, and for a folder of references that cannot be used.
    """
    _check_metrics(metrics, reference)
    references, _ = list_names(reference) if reference else ({}, [])
    run = _Run(name, tuple(metrics), reference, device, workers)
    methods = {method: _Method.of(method, folder, references, run) for method, folder in folders.items()}
    with ExitStack() as files:
        _measure_images(run, [m for m in methods.values() if m.names], references, batch, png_only, files)
    return {method: found.finish(run) for method, found in methods.items()}


def comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Why the numbers of two measurements must not stand side by side, a line each; empty if they may.

    They may when the set, the number, names and sizes of its images and the references' bytes agree, and for every
    metric that both measured, its variant, library, version, weights, colour space and border.
    """
    labels = ("set", "images", "inputs_digest")
    reasons = [f"{label}: {a[label]} and {b[label]}" for label in labels if a[label] != b[label]]
    for name in a["metrics"].keys() & b["metrics"].keys():
        ours, theirs = a["metrics"][name], b["metrics"][name]
        if "unavailable" in ours or "unavailable" in theirs:
            continue
        labels = sorted((ours.keys() | theirs.keys()) - {"mean", "judged"})
        reasons += [f"{name} {k}: {ours.get(k)} and {theirs.get(k)}" for k in labels if ours.get(k) != theirs.get(k)]
    return sorted(reasons)


def _check_metrics(metrics: Sequence[str], reference: Path | None) -> None:
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"unknown metrics: {', '.join(unknown) or 'none given'}; valid: {', '.join(METRICS)}")
    unmatched = [name for name in metrics if METRICS[name].reference and reference is None]
    if unmatched:
        raise ValueError(f"{', '.join(unmatched)}: give a folder of references, or leave them out")


# ---------------------------------------------------------------------------------------------------------- measuring


@dataclass
class _Run:
    """What all methods of a set share: the settings, and each metric's identity, asked for once."""

    set: str
    metrics: tuple[str, ...]
    reference: Path | None
    device: str
    workers: Executor | None
    scorers: dict[str, Any] = field(default_factory=dict)  # of this process
    identities: dict[str, dict[str, Any]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)  # metric -> reason

    def __post_init__(self) -> None:
        for name in self.metrics:
            try:
                self.identities[name] = identify(name)
            except MetricUnavailable as error:
                self.unavailable[name] = error.reason

    def call(self, function: Any, *arguments: Any) -> "Future[Any]":
        """Call `function` in a worker, or at once in this process with its scorers."""
        if self.workers is not None:
            return self.workers.submit(function, *arguments)
        future: Future[Any] = Future()
        future.set_result(function(*arguments, self.scorers))
        return future


@dataclass
class _Method:
    """One method on one set while it is measured."""

    name: str
    folder: Folder
    names: dict[str, Path]
    skipped: list[dict[str, str]]
    mistakes: list[str]
    scores: ScoreFiles
    images: list[ScoredImage] = field(default_factory=list)
    partial: IO[str] | None = None

    @classmethod
    def of(cls, name: str, folder: Folder, references: Mapping[str, Path], run: _Run) -> "_Method":
        """Its images, paired with the references, and the scores of an earlier run that are still valid."""
        try:
            (names, skipped), before = list_names(folder.images), ScoreFiles.read(folder.output)
        except ValueError as error:
            return cls(name, folder, {}, [], [str(error)], ScoreFiles())
        mistakes = []
        if run.reference:
            mistakes += [f"  {printable(stem)}: only in {folder.images}" for stem in names if stem not in references]
            mistakes += [f"  {printable(stem)}: only in {run.reference}" for stem in references if stem not in names]
        return cls(name, folder, names, skipped, mistakes, _still_valid(before, run))

    def add(self, stem: str, reference: "Reference | None", png_only: bool) -> ScoredImage | None:
        """Hash and check an image; None, and a line in `mistakes`, where it does not fit."""
        path = self.names[stem]
        file = path.relative_to(self.folder.images).as_posix()
        try:
            header = checked(read_header(path), reference.header() if reference else None, png_only)
        except ValueError as error:
            self.mistakes.append(f"  {printable(file)}: {error}")
            return None
        pair = (reference.path, reference.header().sha256) if reference else (None, None)
        self.images.append(ScoredImage(printable(file), path, header.size, header.sha256, *pair))
        return self.images[-1]

    def lacking(self, image: ScoredImage, run: _Run) -> tuple[str, ...]:
        """Metrics of images that must still be computed for `image`."""
        return tuple(
            name
            for name in run.metrics
            if METRICS[name].scope == "image"
            and name not in run.unavailable
            and key_of(name, image) not in self.scores.values[name]
        )

    def take(self, image: ScoredImage, values: Mapping[str, float], files: ExitStack) -> None:
        """Keep new scores of an image and note them at once in the partial file."""
        for name, value in values.items():
            self.scores.values[name][key_of(name, image)] = value
        if self.partial is None:
            self.partial = files.enter_context(self.scores.open_partial(self.folder.output))
        else:
            self.scores.note(self.partial, image)
        self.partial.flush()

    def finish(self, run: _Run) -> Measurement | ValueError:
        """Measure the whole folder, write the files; or a ValueError with all mistakes."""
        if self.mistakes:
            if not self.names:
                return ValueError(self.mistakes[0])
            head = f"{len(self.mistakes)} image(s) of {self.folder.images} cannot be measured:"
            return ValueError("\n".join([head, *self.mistakes]))
        digest = _digest(f"{image.file} {image.sha256} {image.reference_sha256}" for image in self.images)
        unavailable = dict(self._set_scores(digest, run))
        unavailable |= {name: reason for name, reason in run.unavailable.items() if not self._complete(name, digest)}
        for name in unavailable:
            self.scores.identities.pop(name, None)
            self.scores.values.pop(name, None)
        self.scores.write(self.folder.output, self.images)
        measurement = {
            "set": run.set,
            "method": self.name,
            "images": len(self.images),
            "digest": digest,
            "inputs_digest": _digest(f"{i.stem} {i.size} {i.reference_sha256}" for i in self.images),
            "metrics": {name: self._summary(name, digest, unavailable) for name in run.metrics},
            "skipped": self.skipped,
        }
        with replacing(output_path(self.folder.output, ".json")) as part:
            part.write_text(json.dumps(measurement, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        output_path(self.folder.output, ".partial.jsonl").unlink(missing_ok=True)
        return measurement

    def _set_scores(self, digest: str, run: _Run) -> Iterator[tuple[str, str]]:
        """Compute the metrics of whole sets that are not known; those that cannot be had, with the reason."""
        for name in run.metrics:
            if METRICS[name].scope == "image" or name in run.unavailable or self._complete(name, digest):
                continue
            value, reason = run.call(score_set, name, self.folder.images, run.reference, run.device).result()
            if reason:
                yield name, reason
            else:
                self.scores.values[name][digest, None] = value

    def _keys(self, name: str, digest: str) -> list[Key]:
        if METRICS[name].scope == "set":
            return [(digest, None)]
        return [key_of(name, image) for image in self.images]

    def _complete(self, name: str, digest: str) -> bool:
        return name in self.scores.values and all(k in self.scores.values[name] for k in self._keys(name, digest))

    def _summary(self, name: str, digest: str, unavailable: Mapping[str, str]) -> dict[str, Any]:
        """Mean over the images that the metric can judge, how many those are, and the metric's identity."""
        if name in unavailable:
            return {"unavailable": unavailable[name]}
        values = [self.scores.values[name][key] for key in self._keys(name, digest)]
        judged = [value for value in values if not math.isnan(value)]
        if not judged:
            return {"unavailable": "it can judge none of these images (too few, too small, or without texture)"}
        return {
            "mean": math.fsum(judged) / len(judged),
            "judged": len(judged),
            **self.scores.identities[name],
            "higher_is_better": METRICS[name].higher_is_better,
        }


def _still_valid(before: ScoreFiles, run: _Run) -> ScoreFiles:
    """The scores of an earlier run whose metric is the same today, or cannot be identified today."""
    scores = ScoreFiles()
    for name in run.metrics:
        identity = run.identities.get(name) or before.identities.get(name)
        if identity is not None:
            same = identity == before.identities.get(name)
            scores.identities[name], scores.values[name] = identity, dict(before.values[name]) if same else {}
    return scores


def _measure_images(
    run: _Run,
    methods: Sequence[_Method],
    references: Mapping[str, Path],
    batch: int,
    png_only: bool,
    files: ExitStack,
) -> None:
    """One pass over all names, `batch` at a time: hash, check, and compute the scores that lack."""
    stems = sorted(set[str]().union(*(method.names for method in methods)))
    pending: list[tuple[list[_Work], Future[Any]]] = []
    with tqdm(total=len(stems), desc=f"measuring {run.set}".rstrip(), unit="image", disable=None) as bar:
        for start in range(0, len(stems), batch):
            chunk = stems[start : start + batch]
            work = list(_open(run, methods, references, chunk, png_only))
            if work:
                pending.append((work, run.call(score, [w.task for w in work], run.device)))
            _take(run, pending, files, wait=run.workers is None or len(pending) > QUEUE)
            bar.update(len(chunk))
        while pending:
            _take(run, pending, files, wait=True)


@dataclass(frozen=True)
class _Work:
    """An image of a method that lacks scores."""

    method: _Method
    image: ScoredImage
    lacking: tuple[str, ...]

    @property
    def task(self) -> "Task":
        return Task(self.method.name, self.image.path, self.image.reference, self.image.size, self.lacking)


def _open(
    run: _Run, methods: Sequence[_Method], references: Mapping[str, Path], chunk: Sequence[str], png_only: bool
) -> Iterator[_Work]:
    """Hash and check the images of `chunk`, each reference once; what must be scored, method by method."""
    shared = {stem: Reference(references[stem]) for stem in chunk if stem in references}
    for method in methods:
        found = (method.add(stem, shared.get(stem), png_only) for stem in chunk if _paired(stem, method, run, shared))
        for image in list(found):
            if image and not method.mistakes and (lacking := method.lacking(image, run)):
                yield _Work(method, image, lacking)


def _paired(stem: str, method: _Method, run: _Run, references: Mapping[str, Any]) -> bool:
    return stem in method.names and (run.reference is None or stem in references)


def _take(run: _Run, pending: list[tuple[list[_Work], "Future[Any]"]], files: ExitStack, wait: bool) -> None:
    """Keep the results at the head of the queue: one of them at least if `wait`, and all that are ready."""
    while pending and (wait or pending[0][1].done()):
        work, future = pending.pop(0)
        values, unavailable = future.result()
        run.unavailable |= unavailable
        for one, scores in zip(work, values, strict=True):
            if isinstance(scores, str):
                one.method.mistakes.append(f"  {one.image.file}: {scores}")
            elif scores:
                one.method.take(one.image, scores, files)
        wait = False


def _digest(lines: Iterable[str]) -> str:
    return sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
