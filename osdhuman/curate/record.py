"""The records that flow through HQ-ACF, and the reasons for which one is dropped.

Boxes are `x0, y0, x1, y1` in pixels of the upright image at its full size, half-open, floats.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

import polars as pl


class Reason(StrEnum):
    """Why a candidate is not in PERSONA. Members stand in the order in which the pipeline asks."""

    NO_PERSON = "no person"  # the annotation, or the detector, shows nobody
    UNREADABLE = "unreadable"  # missing, empty, damaged or not an image
    TRUNCATED = "truncated"
    TOO_MANY_PIXELS = "too many pixels"  # more than the config allows: a decompression bomb, or a panorama
    CMYK = "cmyk"
    GRAYSCALE = "grayscale"
    SIZE_DIFFERS = "size differs from annotation"  # also: rotated by EXIF after it was annotated
    BLURRED = "blurred"  # variance of the Laplacian below the threshold
    BAD_BOX = "box outside picture"
    TOO_SMALL = "box too small"
    NO_FIT = "square does not fit"
    TOO_DENSE = "boxes too dense"
    OVERLAP = "overlaps a box nearer the centre"
    DUPLICATE = "duplicate picture"  # the same bytes came with another record
    NOT_TOP_THIRD = "not in the top third"
    BELOW_FLOOR = "below a metric's floor"
    OUTSIDE_LIMITS = "outside the limits of test"
    NOT_SAMPLED = "not sampled"  # good enough, but its split is full
    HELD_OUT = "shares its picture with val"


class Box(NamedTuple):
    """One person; `id` is the annotation's own, unique within its image."""

    x0: float
    y0: float
    x1: float
    y1: float
    id: str = ""

    @property
    def side(self) -> float:
        """The longer side, which becomes the side of the square crop."""
        return max(self.x1 - self.x0, self.y1 - self.y0)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a source with its persons.

    `file` is relative to the source's folder of images. `boxes` is None where a detector has yet to look. `ignored`
    are regions that hold persons but are no candidates: crowds, groups, depictions, masks. `width` and `height` are
    the annotation's, None where it is silent.
    """

    source: str
    file: str
    image_id: str
    boxes: tuple[Box, ...] | None
    ignored: tuple[Box, ...] = ()
    width: int | None = None
    height: int | None = None
    licence: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One box of one image, or a whole image that was dropped before its boxes were looked at (`box_id` None).

    `reason` is None as long as it is kept; then `id` names its crop, `<id>.png`. `crop_x, crop_y, crop_side` are whole
    pixels of the full image; `persons` counts those the crop shows, the ignored included. `overflow` is "shrink" or
    "pad" where the box is longer than the image's short side, and `box_inside` the share of the box that the crop
    shows. `sharpness` is the variance of the Laplacian. `sha256` is that of the image's file.
    """

    id: str
    source: str
    file: str
    image_id: str
    licence: str = ""
    url: str = ""
    width: int | None = None
    height: int | None = None
    sha256: str | None = None
    sharpness: float | None = None
    box_id: str | None = None
    x0: float | None = None
    y0: float | None = None
    x1: float | None = None
    y1: float | None = None
    crop_x: int | None = None
    crop_y: int | None = None
    crop_side: int | None = None
    persons: int | None = None
    overflow: str | None = None
    box_inside: float | None = None
    reason: str | None = None
    detail: str | None = None  # what exactly was wrong, in words


BOX = pl.Struct({"x0": pl.Float64, "y0": pl.Float64, "x1": pl.Float64, "y1": pl.Float64, "id": pl.String})
IMAGES = pl.Schema(
    {
        "source": pl.String,
        "file": pl.String,
        "image_id": pl.String,
        "boxes": pl.List(BOX),
        "ignored": pl.List(BOX),
        "width": pl.Int32,
        "height": pl.Int32,
        "licence": pl.String,
        "url": pl.String,
    }
)
CANDIDATES = pl.Schema(
    {
        **{name: pl.String for name in ("id", "source", "file", "image_id", "licence", "url")},
        "width": pl.Int32,
        "height": pl.Int32,
        "sha256": pl.String,
        "sharpness": pl.Float64,
        "box_id": pl.String,
        **{name: pl.Float64 for name in ("x0", "y0", "x1", "y1")},
        **{name: pl.Int32 for name in ("crop_x", "crop_y", "crop_side", "persons")},
        "overflow": pl.String,
        "box_inside": pl.Float64,
        "reason": pl.String,
        "detail": pl.String,
    }
)


def candidate_id(source: str, file: str, box_id: str | None) -> str:
    """16 hexadecimal digits that depend on what the candidate is, never on where or when it is met."""
    return sha256("\n".join([source, file, box_id or ""]).encode()).hexdigest()[:16]


def images_frame(records: Iterable[ImageRecord]) -> pl.DataFrame:
    """Records as the table of images/*.parquet."""
    rows = [
        {name: getattr(record, name) for name in IMAGES}
        | {"boxes": _structs(record.boxes), "ignored": _structs(record.ignored)}
        for record in records
    ]
    return pl.DataFrame(rows, schema=IMAGES)


def _structs(boxes: tuple[Box, ...] | None) -> list[dict] | None:
    return None if boxes is None else [box._asdict() for box in boxes]


def images_of(frame: pl.DataFrame) -> Iterator[ImageRecord]:
    """The records of a table of images/*.parquet, in its order."""
    for row in frame.iter_rows(named=True):
        boxes = row["boxes"]
        row["boxes"] = None if boxes is None else tuple(Box(**box) for box in boxes)
        row["ignored"] = tuple(Box(**box) for box in row["ignored"] or ())
        yield ImageRecord(**row)


def candidates_frame(candidates: Iterable[Candidate]) -> pl.DataFrame:
    """Candidates as the table of crops/*/candidates.parquet."""
    return pl.DataFrame([asdict(candidate) for candidate in candidates], schema=CANDIDATES)
