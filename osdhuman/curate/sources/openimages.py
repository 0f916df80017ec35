"""Open Images V4 to V7: `*-annotations-bbox.csv`, one box per row, edges as fractions of the picture.

Columns by position, which all versions share, so that the header line may be missing; V6 adds more behind them.
"""

import csv
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from osdhuman.curate.record import Box, ImageRecord
from osdhuman.curate.sources.source import (
    AnnotationFault,
    Faults,
    SourceConfig,
    choose_labels,
    corners,
    header_size,
    image_record,
    locate,
)
from osdhuman.curate.sources.spool import Person, Picture, Spool

# The whole person, in its words for age and sex; not the parts: face, head, hair, arm, hand, leg, foot, ...
LABELS = ("Person", "Man", "Woman", "Boy", "Girl", "Human body")
IMAGE, LABEL, EDGES, GROUP, DEPICTION, COLUMNS = 0, 2, slice(4, 8), 10, 11, 13
SAME_BODY = 0.8  # IoU from which two boxes of different classes are one person


def read(config: SourceConfig, faults: Faults) -> Iterator[ImageRecord]:
    """Pictures by their id, boxes named by their lines; groups and depictions are ignored regions.

    Fractions become pixels by the size in the picture's header, as stored. Where that cannot be read, `boxes` is None,
    as for a picture of which nothing is known: then no step can use it, and the cut says what is wrong with the file.
    """
    persons = _person_ids(config, faults)
    for path in config.annotations:
        report = faults.of(config.name, path)
        with Spool() as spool:
            _spool(path, spool, persons, report)
            for key, _, found in spool.groups():
                yield _record(key, found, config, report)


def _person_ids(config: SourceConfig, faults: Faults) -> dict[str, str]:
    """Label id ("/m/01g317") -> name ("Person") of the human classes."""
    names = {}
    with config.classes.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        for row in csv.reader(file):
            if len(row) != 2:
                faults.add(config.name, config.classes, ",".join(row), f"expected 2 columns, got {len(row)}")
            else:
                names[row[0]] = row[1]  # a header line stays in as one more class, which no box has
    chosen = choose_labels(config.labels, LABELS, set(names.values()), config.classes)
    return {id: name for id, name in names.items() if name in chosen}


def _spool(path: Path, spool: Spool, persons: dict[str, str], report: Callable[[str, str], None]) -> None:
    last = None
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(tqdm(file, desc=path.name, unit="row", disable=None, leave=False), 1):
            row = line.rstrip("\r\n").split(",")
            if number == 1 and row[IMAGE] == "ImageID":
                continue
            try:
                if len(row) < COLUMNS:
                    raise AnnotationFault(f"expected at least {COLUMNS} columns, got {len(row)}")
                if row[IMAGE] != last:
                    last = row[IMAGE]
                    spool.add(last, Picture(f"{last}.jpg"))  # rows of a picture need not stand together
                if row[LABEL] in persons:
                    spool.add(last, _person(row, number, persons[row[LABEL]]))
            except AnnotationFault as error:
                report(f"line {number}", str(error))


def _person(row: list[str], number: int, label: str) -> Person:
    x0, x1, y0, y1 = row[EDGES]
    edges = corners((x0, y0, x1, y1), "xyxy")
    if min(edges) < 0 or max(edges) > 1:
        raise AnnotationFault(f"edges must be fractions from 0 to 1, got {edges}")
    return Person(*edges, str(number), "1" in (row[GROUP], row[DEPICTION]), label)


def _record(key: str, persons: list[Person], config: SourceConfig, report: Callable[[str, str], None]) -> ImageRecord:
    names = [f"{folder}{key}.jpg" for folder in ("", "train/", f"train_{key[:1]}/", "validation/", "test/")]
    file = locate(config.images, names)
    if not persons:
        return image_record(config, report, file, key, ())
    size = header_size(config.images / file)
    if size is None:
        return ImageRecord(config.name, file, key, boxes=None, licence=config.licence)
    width, height = size
    boxes = [
        (Box(p.x0 * width, p.y0 * height, p.x1 * width, p.y1 * height, p.id), p.ignored) for p in _distinct(persons)
    ]
    return image_record(config, report, file, key, boxes, size=size)


def _distinct(persons: list[Person]) -> list[Person]:
    """One box per body: of near-identical boxes of different classes (Person and Man) the first row stays."""
    repeated = set()
    for a, b in combinations([p for p in persons if not p.ignored], 2):
        if a.id not in repeated and a.label != b.label and _iou(a, b) >= SAME_BODY:
            repeated.add(b.id)
    return [p for p in persons if p.id not in repeated]


def _iou(a: Person, b: Person) -> float:
    """Intersection over union; the same in fractions as in pixels."""
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    shared = max(width, 0) * max(height, 0)
    return shared / ((a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0) - shared)
