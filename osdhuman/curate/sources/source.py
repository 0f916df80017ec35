"""What all readers share: the settings of a source, the list of faults, checked boxes, files that are where users
keep them."""

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Literal, TextIO

from PIL import Image
from pydantic import Field, model_validator

from osdhuman.config import Config
from osdhuman.curate.record import Box, ImageRecord
from osdhuman.files import replacing

Format = Literal["coco", "objects365", "openimages", "crowdhuman", "voc", "folder"]
UNLABELLED = ("crowdhuman", "folder")  # every box is a person: nothing to choose


class SourceConfig(Config):
    """One data set: where its pictures and annotations are, and what of them counts as a person.

    A picture must stand in one of the annotation files only: `instances_*.json` or `person_keypoints_*.json`, not both.
    """

    name: str = Field(pattern=r"^[\w.-]+$")  # appears in the manifest; chosen by the user
    format: Format
    images: Path
    annotations: tuple[Path, ...] = ()  # json, csv or odgt files; for voc xml files, or folders of them
    classes: Path | None = None  # openimages: class-descriptions-boxable.csv, with or without header
    labels: tuple[str, ...] | None = None  # None: the format's words for a human
    extent: Literal["visible", "full", "head"] = "visible"  # which of CrowdHuman's three boxes
    split: Literal["train", "test"] = "train"
    licence: str = ""  # for pictures whose annotation names none
    max_images: int | None = Field(default=None, gt=0)  # the first so many only

    @model_validator(mode="after")
    def _complete(self) -> "SourceConfig":
        if (self.format == "folder") == bool(self.annotations):
            need = "takes no annotations" if self.annotations else "needs annotations"
            raise ValueError(f"source {self.name!r} of format {self.format!r} {need}")
        if (self.format == "openimages") != (self.classes is not None):
            raise ValueError(f"source {self.name!r}: `classes` must be given for openimages, and for openimages only")
        if self.labels is not None and (not self.labels or self.format in UNLABELLED):
            raise ValueError(f"source {self.name!r}: `labels` must name at least one label of a format that has labels")
        return self


class Faults:
    """Malformed annotations, written as they come, one JSON object a line; `count` of them so far."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.count = 0

    @classmethod
    @contextmanager
    def written_to(cls, path: str | Path) -> "Iterator[Faults]":
        """Faults that appear as the file `path` when the block ends well, even if there were none."""
        with replacing(path) as part, part.open("w", encoding="utf-8") as stream:
            yield cls(stream)

    def add(self, source: str, file: str | Path, record: str, fault: str) -> None:
        """`record` says where in `file`: "line 3", "annotation 17"; "" for the whole file."""
        line = {"source": source, "file": str(file), "record": record, "fault": fault}
        self.stream.write(json.dumps(line) + "\n")
        self.count += 1

    def of(self, source: str, file: str | Path) -> Callable[[str, str], None]:
        """`add` for one file: takes record and fault."""
        return lambda record, fault: self.add(source, file, record, fault)


class AnnotationFault(ValueError):
    """One annotation that cannot be used; the message is the fault."""


def field(record: object, name: str) -> object:
    """`record[name]`; AnnotationFault where `record` is no object or lacks it."""
    if not isinstance(record, dict):
        raise AnnotationFault(f"expected an object, got {record!r:.80}")
    if name not in record:
        raise AnnotationFault(f"has no {name!r}")
    return record[name]


def corners(values: object, form: Literal["xyxy", "xywh"]) -> tuple[float, float, float, float]:
    """Four numbers as x0, y0, x1, y1; AnnotationFault unless they are finite and enclose an area."""
    try:
        x0, y0, x1, y1 = map(float, values)
    except (TypeError, ValueError, OverflowError):
        raise AnnotationFault(f"box must be four numbers, got {values!r:.80}") from None
    if form == "xywh":
        x1, y1 = x0 + x1, y0 + y1
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise AnnotationFault(f"box must be four finite numbers, got {values!r:.80}")
    if x1 <= x0 or y1 <= y0:
        raise AnnotationFault(f"box must have a positive width and height, got {values!r:.80} ({form})")
    return x0, y0, x1, y1


def image_record(
    config: SourceConfig,
    report: Callable[[str, str], None],
    file: str,
    image_id: str,
    persons: Iterable[tuple[Box, bool]],
    *,
    size: tuple[int | None, int | None] = (None, None),
    licence: str = "",
    url: str = "",
) -> ImageRecord:
    """Boxes with their `ignored`, clipped to `size` = (width, height) where it is known, sorted out and put together.

    A box whose id repeats in its picture is reported and left out.
    """
    kept: dict[str, tuple[Box, bool]] = {}
    for box, ignored in persons:
        if box.id in kept:
            report(f"image {image_id}, box {box.id}", "id repeats within its picture")
        else:
            kept[box.id] = _clip(box, *size), ignored
    return ImageRecord(
        source=config.name,
        file=file,
        image_id=image_id,
        boxes=tuple(box for box, ignored in kept.values() if not ignored),
        ignored=tuple(box for box, ignored in kept.values() if ignored),
        width=size[0],
        height=size[1],
        licence=licence or config.licence,
        url=url,
    )


def _clip(box: Box, width: int | None, height: int | None) -> Box:
    """The part inside the picture; a box that has none stays as it is, for the cut to drop it by name."""
    if width is None or height is None or box.x0 >= width or box.y0 >= height or box.x1 <= 0 or box.y1 <= 0:
        return box
    return Box(max(box.x0, 0.0), max(box.y0, 0.0), min(box.x1, float(width)), min(box.y1, float(height)), box.id)


def choose_labels(
    labels: Sequence[str] | None, default: Sequence[str], known: Collection[str], file: Path
) -> frozenset[str]:
    """Those of the names `known` to `file` that `labels` (or `default`) ask for, whatever their case.

    Raises ValueError for a label that `file` does not know, with the nearest that it does.
    """
    by_case = {name.casefold(): name for name in known}
    asked = default if labels is None else labels
    unknown = [label for label in asked if label.casefold() not in by_case]
    if unknown:
        near = {label: get_close_matches(label.casefold(), by_case, n=3, cutoff=0.5) for label in unknown}
        hints = [f"{label!r} (nearest: {', '.join(by_case[n] for n in near[label]) or 'none'})" for label in unknown]
        raise ValueError(f"{file} has no label {'; '.join(hints)}; set `labels` to names from that file")
    return frozenset(by_case[label.casefold()] for label in asked)


def expect_labels(labels: Sequence[str] | None, met: Collection[str], file: Path) -> None:
    """For formats without a list of categories, after the last picture: ValueError where none of `labels` was met."""
    if labels and met and not {label.casefold() for label in labels} & {name.casefold() for name in met}:
        choose_labels(labels, (), met, file)


def tails(name: str) -> list[str]:
    """`a/b/c.jpg` -> `a/b/c.jpg`, `b/c.jpg`, `c.jpg`: the same file seen from deeper folders."""
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
    return ["/".join(parts[i:]) for i in range(len(parts))]


def locate(root: Path, names: Sequence[str]) -> str:
    """The first of `names` that exists below `root`; the first of all where none does: the cut will miss it."""
    return next((name for name in names if (root / name).is_file()), names[0])


def header_size(path: Path) -> tuple[int, int] | None:
    """(width, height) as stored, EXIF rotation not applied, without decoding; None where that cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # Pillow raises nearly anything on a damaged file; the cut names the reason
        return None
