"""What all readers share: the settings of a source, the list of faults, and the record of an image."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TextIO

from pydantic import Field, model_validator

from osdhuman.config import Config
from osdhuman.curate.record import Box, ImageRecord
from osdhuman.files import replacing

Format = Literal["coco", "objects365", "openimages", "crowdhuman", "voc", "folder"]
UNLABELLED = ("crowdhuman", "folder")  # every box is a person: nothing to choose


class SourceConfig(Config):
    """One data set: where its images and annotations are, and what of them counts as a person.

    Name one annotation file per image: `instances_*.json` or `person_keypoints_*.json`, not both. Of an image that
    comes twice the first record is used, the other is a fault.
    """

    name: str = Field(pattern=r"^[\w.-]+$")  # appears in the manifest; chosen by the user
    format: Format
    images: Path
    annotations: tuple[Path, ...] = ()  # json, csv or odgt files; for voc xml files, or folders of them
    classes: Path | None = None  # openimages: class-descriptions-boxable.csv, with or without header
    labels: tuple[str, ...] | None = None  # None: the format's words for a human
    extent: Literal["visible", "full", "head"] = "visible"  # which of CrowdHuman's three boxes
    split: Literal["train", "test"] = "train"
    licence: str = ""  # for images whose annotation names none
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

    A box whose id repeats in its image is reported and left out.
    """
    kept: dict[str, tuple[Box, bool]] = {}
    for box, ignored in persons:
        if box.id in kept:
            report(f"image {image_id}, box {box.id}", "id repeats within its image")
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
    """The part inside the image; a box that has none stays as it is, for the cut to drop it by name."""
    if width is None or height is None or box.x0 >= width or box.y0 >= height or box.x1 <= 0 or box.y1 <= 0:
        return box
    return Box(max(box.x0, 0.0), max(box.y0, 0.0), min(box.x1, float(width)), min(box.y1, float(height)), box.id)


def choose_labels(
    labels: Sequence[str] | None, default: Sequence[str], known: Collection[str], file: Path
) -> frozenset[str]:
    """Those of the names `known` to `file` that `labels` (or `default`) ask for, whatever their case.

    Raises ValueError for a label that `file` does not know, with the nearest that it does.
    """
    by_case: dict[str, list[str]] = {}
    for name in known:  # a file may hold `person` and `Person` as two categories: both are meant
        by_case.setdefault(name.casefold(), []).append(name)
    asked = default if labels is None else labels
    unknown = [label for label in asked if label.casefold() not in by_case]
    if unknown:
        near = {label: get_close_matches(label.casefold(), by_case, n=3, cutoff=0.5) for label in unknown}
        hints = [f"{label!r} (nearest: {', '.join(by_case[n][0] for n in near[label]) or 'none'})" for label in unknown]
        raise ValueError(f"{file} has no label {'; '.join(hints)}; set `labels` to names from that file")
    return frozenset(name for label in asked for name in by_case[label.casefold()])


def expect_labels(labels: Sequence[str] | None, met: Collection[str], file: Path) -> None:
    """For formats without a list of categories, after the last image: ValueError where none of `labels` was met."""
    if labels and met and not {label.casefold() for label in labels} & {name.casefold() for name in met}:
        choose_labels(labels, (), met, file)
