"""Measure a folder of images, alone or against a folder of references: scores per image, means, and what they are.

The folder is the interface: images that somebody else made are measured just so. For `output` = scores/<set>/<method>

    scores/<set>/<method>.parquet         one row per image: file, its and its reference's sha256, a column per metric
    scores/<set>/<method>.json            the means, with all that must agree before numbers are compared
    scores/<set>/<method>.partial.jsonl   only while measuring: a line per image, so that a killed run loses one batch

A score belongs to the bytes of an image, those of its reference, and the identity of the metric
(`osdhuman.metrics.scorers.identify`). While these stay it is never computed again, whatever else changes.
"""

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import polars as pl
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from osdhuman.files import replacing
from osdhuman.images import SUFFIXES, load_rgb
from osdhuman.metrics.scorers import Scorer, SetScorer, identify, load_scorer
from osdhuman.metrics.table import METRICS
from osdhuman.metrics.weights import MetricUnavailable

Measurement = dict[str, Any]  # what the .json holds
Key = tuple[str, str | None]  # sha256 of an image and of the reference that a metric saw
ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


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
    """Measure the pictures below `images`; write the files above and return what the .json holds.

    `output` has no suffix, `names` are (set, method). `reference` must hold the same names, whatever their suffix, in
    the same sizes. `png_only` refuses lossy formats, whose compression would be measured too; photographs as they were
    found are measured with False. A metric that cannot be had is listed with the reason. The files hold the metrics
    asked for, no others. Raises ValueError that lists every picture that does not fit, or a metric that is unknown or
    needs a reference where there is none.
    """
    _check_metrics(metrics, reference)
    pictures = find_pictures(images, reference, png_only)
    measured = _Scores.read(output)
    digest = _digest(f"{p.file} {p.sha256} {p.reference_sha256}" for p in pictures)
    keys = {name: _keys(name, pictures, digest) for name in metrics}
    scores, scorers, unavailable = _Scores(), {}, {}
    for name in metrics:
        try:
            _plan(name, keys[name], measured, scores, scorers, device)
        except MetricUnavailable as error:
            unavailable[name] = error.reason
    _measure_images(pictures, {n: s for n, s in scorers.items() if isinstance(s, Scorer)}, scores, output, batch)
    for name, scorer in scorers.items():
        if isinstance(scorer, SetScorer):
            scores.values[name][digest, None] = scorer(images, reference)
    scores.write(output, pictures)
    measurement = {
        "set": names[0],
        "method": names[1],
        "images": len(pictures),
        "digest": digest,
        "inputs_digest": _digest(f"{p.stem} {p.size} {p.reference_sha256}" for p in pictures),
        "metrics": {name: _summary(name, scores, keys[name], unavailable) for name in metrics},
    }
    with replacing(_path(output, ".json")) as part:
        part.write_text(json.dumps(measurement, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _path(output, ".partial.jsonl").unlink(missing_ok=True)
    return measurement


def comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Why the numbers of two measurements must not stand side by side, a line each; empty if they may.

    They may when the set, the number, names and sizes of its pictures and the references' bytes agree, and for every
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


# ----------------------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Picture:
    """A picture to be measured: `file` is relative to its folder, `size` (width, height) as shown upright."""

    file: str
    path: Path
    size: tuple[int, int]
    sha256: str
    reference: Path | None = None
    reference_sha256: str | None = None

    @property
    def stem(self) -> str:
        return str(Path(self.file).with_suffix("").as_posix())


def find_pictures(images: Path, reference: Path | None = None, png_only: bool = True) -> list[Picture]:
    """The pictures below `images`, sorted by name, with their references. Raises ValueError listing all that misfit."""
    found = _search(images)
    others = _search(reference) if reference else {}
    mistakes = [f"  {stem}: only in {images}" for stem in sorted(found.keys() - others.keys()) if reference]
    mistakes += [f"  {stem}: only in {reference}" for stem in sorted(others.keys() - found.keys())]
    pictures = []
    for stem, path in sorted(found.items()):
        try:
            pictures.append(_read(path, images, others.get(stem), png_only))
        except ValueError as error:
            mistakes.append(f"  {path.relative_to(images).as_posix()}: {error}")
    if mistakes:
        raise ValueError("\n".join([f"{len(mistakes)} picture(s) of {images} cannot be measured:", *mistakes]))
    return pictures


def _search(folder: Path) -> dict[str, Path]:
    """Name without suffix -> picture, for all below `folder`."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of pictures")
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not paths:
        raise ValueError(f"no picture ({', '.join(SUFFIXES)}) in {folder}")
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
    if len(found) < len(paths):
        twice = sorted({path.name for path in paths} - {path.name for path in found.values()})
        raise ValueError(f"{folder}: two pictures have the same name but for the suffix: {', '.join(twice)}")
    return found


def _read(path: Path, folder: Path, reference: Path | None, png_only: bool) -> Picture:
    size, kind, digest = _header(path)
    if png_only and kind != "PNG":
        raise ValueError(f"is a {kind}, but its compression would be measured too: save restored pictures as PNG")
    file = path.relative_to(folder).as_posix()
    if reference is None:
        return Picture(file, path, size, digest)
    expected, _, reference_digest = _header(reference)
    if size != expected:
        raise ValueError(f"is {size[0]}x{size[1]}, its reference {expected[0]}x{expected[1]}")
    return Picture(file, path, size, digest, reference, reference_digest)


def _header(path: Path) -> tuple[tuple[int, int], str, str]:
    """Size as shown upright, format by content, sha256 of the file."""
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            turned = image.getexif().get(0x0112) in ROTATED
            size = image.size[::-1] if turned else image.size
            return size, str(image.format), sha256(data).hexdigest()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"cannot be read ({error})") from None


def _digest(lines: Iterable[str]) -> str:
    return sha256("\n".join(lines).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------- measuring


def _check_metrics(metrics: Sequence[str], reference: Path | None) -> None:
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"unknown metrics: {', '.join(unknown) or 'none given'}; valid: {', '.join(METRICS)}")
    lonely = [name for name in metrics if METRICS[name].reference and reference is None]
    if lonely:
        raise ValueError(f"{', '.join(lonely)}: give a folder of references, or leave them out")


def _keys(name: str, pictures: Sequence[Picture], digest: str) -> list[Key]:
    """What the scores of a metric belong to: each picture, or the whole set."""
    if METRICS[name].scope == "set":
        return [(digest, None)]
    return [_key(name, picture) for picture in pictures]


def _key(name: str, picture: Picture) -> Key:
    return picture.sha256, picture.reference_sha256 if METRICS[name].reference else None


def _plan(
    name: str, keys: Sequence[Key], measured: "_Scores", scores: "_Scores", scorers: dict[str, Any], device: str
) -> None:
    """Take over what was measured alike; load the metric if something lacks. Raises MetricUnavailable."""
    before = measured.values.get(name, {})
    try:
        identity = identify(name)
    except MetricUnavailable:
        if not all(key in before for key in keys):
            raise
        identity = measured.identities[name]  # measured where it could be had
    if identity != measured.identities.get(name):
        before = {}
    before = {key: before[key] for key in keys if key in before}
    if len(before) < len(set(keys)):
        scorers[name] = load_scorer(name, device)
    scores.identities[name], scores.values[name] = identity, before


def _measure_images(
    pictures: Sequence[Picture], scorers: Mapping[str, Scorer], scores: "_Scores", output: Path, batch: int
) -> None:
    """Fill in the scores that lack, batch by batch, each at once noted in the partial file."""
    work = [(picture, lacking) for picture in pictures if (lacking := tuple(scores.lacking(picture, scorers)))]
    if not work:
        return
    with scores.open_partial(output, pictures) as partial, tqdm(total=len(work), desc=output.name, disable=None) as bar:
        for group, lacking in _batches(work, batch):
            image, reference = _stack(group)
            for name in lacking:
                values = scorers[name](image, reference if METRICS[name].reference else None)
                scores.values[name] |= zip((_key(name, p) for p in group), values.tolist(), strict=True)
            for picture in group:
                scores.note(partial, picture)
            partial.flush()
            bar.update(len(group))


def _batches(
    work: Iterable[tuple[Picture, tuple[str, ...]]], batch: int
) -> Iterator[tuple[list[Picture], tuple[str, ...]]]:
    """Neighbours of one size that lack the same metrics."""
    for (_, lacking), same in groupby(work, key=lambda pair: (pair[0].size, pair[1])):
        group = [picture for picture, _ in same]
        for start in range(0, len(group), batch):
            yield group[start : start + batch], lacking


def _stack(group: Sequence[Picture]) -> tuple[Tensor, Tensor | None]:
    image = torch.stack([load_rgb(picture.path) for picture in group])
    if group[0].reference is None:
        return image, None
    return image, torch.stack([load_rgb(picture.reference) for picture in group if picture.reference])


def _summary(name: str, scores: "_Scores", keys: Sequence[Key], unavailable: Mapping[str, str]) -> dict[str, Any]:
    """Mean over the images that the metric can judge, how many those are, and the metric's identity."""
    if name in unavailable:
        return {"unavailable": unavailable[name]}
    values = [scores.values[name][key] for key in keys]
    judged = [value for value in values if not math.isnan(value)]
    if not judged:
        return {"unavailable": "it can judge none of these pictures (too few, too small, or without texture)"}
    return {
        "mean": math.fsum(judged) / len(judged),
        "judged": len(judged),
        **scores.identities[name],
        "higher_is_better": METRICS[name].higher_is_better,
    }


# -------------------------------------------------------------------------------------------------------------- files


def _path(output: Path, suffix: str) -> Path:
    return output.with_name(output.name + suffix)  # a method's name may hold dots: no with_suffix


@dataclass
class _Scores:
    """Scores by metric and by what they belong to, and the identity of each metric; kept in the two files of rows."""

    identities: dict[str, dict[str, Any]] = field(default_factory=dict)
    values: dict[str, dict[Key, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, output: Path) -> "_Scores":
        """What an earlier run left, finished or killed; empty if nothing. The last line of a killed one may be torn."""
        scores = cls()
        parquet, partial = _path(output, ".parquet"), _path(output, ".partial.jsonl")
        if parquet.is_file():
            head = json.loads(pl.read_parquet_metadata(parquet)["osdhuman"])
            scores._add(head, pl.read_parquet(parquet).to_dicts())
        if partial.is_file():
            lines = list(_whole_lines(partial))  # the head comes with the file's name, so it is always there
            scores._add(lines[0], lines[1:])
        return scores

    def _add(self, head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        for name, identity in head["identities"].items():
            if identity != self.identities.get(name):
                self.identities[name], self.values[name] = identity, {}
            for row in rows:
                if row.get(name) is not None:
                    key = row["sha256"], row["reference_sha256"] if METRICS[name].reference else None
                    self.values[name][key] = row[name]
        for name, (digest, value) in head["sets"].items():
            self.values[name][digest, None] = value

    def lacking(self, picture: Picture, names: Iterable[str]) -> Iterator[str]:
        return (name for name in names if _key(name, picture) not in self.values[name])

    def open_partial(self, output: Path, pictures: Sequence[Picture]) -> IO[str]:
        """A partial file that begins with all that is known, open for more."""
        path = _path(output, ".partial.jsonl")
        with replacing(path) as part, part.open("w", encoding="utf-8") as file:
            file.write(json.dumps(self._head()) + "\n")
            for picture in pictures:
                self.note(file, picture)
        return path.open("a", encoding="utf-8")

    def note(self, file: IO[str], picture: Picture) -> None:
        if len(row := self._row(picture)) > 3:
            file.write(json.dumps(row) + "\n")

    def write(self, output: Path, pictures: Sequence[Picture]) -> None:
        names = [name for name in self.identities if METRICS[name].scope == "image"]
        text = dict.fromkeys(("file", "sha256", "reference_sha256"), pl.String)
        frame = pl.DataFrame(list(map(self._row, pictures)), schema=text | dict.fromkeys(names, pl.Float64))
        with replacing(_path(output, ".parquet")) as part:
            frame.write_parquet(part, metadata={"osdhuman": json.dumps(self._head())})

    def _head(self) -> dict[str, Any]:
        sets = {name: values for name, values in self.values.items() if METRICS[name].scope == "set"}
        pairs = {name: [digest, value] for name, values in sets.items() for (digest, _), value in values.items()}
        return {"identities": self.identities, "sets": pairs}

    def _row(self, picture: Picture) -> dict[str, Any]:
        row = {"file": picture.file, "sha256": picture.sha256, "reference_sha256": picture.reference_sha256}
        names = (name for name in self.identities if METRICS[name].scope == "image")
        return row | {n: self.values[n][k] for n in names if (k := _key(n, picture)) in self.values[n]}


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
