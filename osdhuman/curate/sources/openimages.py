"""Open Images V4 to V7: `*-annotations-bbox.csv`, one box per row, edges as fractions of the image.

Columns are found by the names in the header, in any order. A file without a header has the order of the published ones.
"""

import csv
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from osdhuman.curate.record import Box, ImageRecord
from osdhuman.curate.sources.places import header_size, locate
from osdhuman.curate.sources.source import Faults, SourceConfig, choose_labels, image_record
from osdhuman.curate.sources.spool import ImageRow, Person, Spool
from osdhuman.curate.sources.text_file import open_text
from osdhuman.curate.sources.values import AnnotationFault, corners, flag

# The whole person, in its words for age and sex; not the parts: face, head, hair, arm, hand, leg, foot, ...
LABELS = ("Person", "Man", "Woman", "Boy", "Girl", "Human body")
PUBLISHED = [
    "ImageID",
    "Source",
    "LabelName",
    "Confidence",
    "XMin",
    "XMax",
    "YMin",
    "YMax",
    "IsOccluded",
    "IsTruncated",
    "IsGroupOf",
    "IsDepiction",
    "IsInside",
]
NEEDED = ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax", "IsGroupOf", "IsDepiction")
UNKNOWN = "-1"  # Open Images's own value for a flag that nobody set
ROUNDING = 1e-3  # by which a fraction may lie beyond 0 or 1
SAME_BODY = 0.8  # IoU from which two boxes of different classes are one person


def read(config: SourceConfig, faults: Faults) -> Iterator[ImageRecord]:
    """Images by their id, boxes named by their lines; groups and depictions are ignored regions.

    Fractions become pixels by the size in the image's header, as stored. Where that cannot be read, `boxes` is None,
    as for a image of which nothing is known: then no step can use it, and the cut says what is wrong with the file.
    """
    persons = _person_ids(config, faults)
    for path in config.annotations:
        report = faults.of(config.name, path)
        with Spool() as spool:
            _spool(path, spool, persons, report)
            for key, _, found in spool.groups():
                try:
                    yield _record(key, found, config, report)
                except AnnotationFault as error:
                    report(f"image {key}", str(error))


def _person_ids(config: SourceConfig, faults: Faults) -> dict[str, str]:
    """Label id ("/m/01g317") -> name ("Person") of the human classes."""
    names = {}
    with open_text(config.classes) as file:
        for row in csv.reader(file, skipinitialspace=True):
            row = [value.strip() for value in row]
            if len(row) == 2:
                names[row[0]] = row[1]  # a header line stays in as one more class, which no box has
            elif any(row):
                faults.add(config.name, config.classes, ",".join(row), f"expected 2 columns, got {len(row)}")
    chosen = choose_labels(config.labels, LABELS, set(names.values()), config.classes)
    return {id: name for id, name in names.items() if name in chosen}


def _spool(path: Path, spool: Spool, persons: dict[str, str], report: Callable[[str, str], None]) -> None:
    last, columns = None, {name: i for i, name in enumerate(PUBLISHED)}
    with open_text(path) as file:
        reader = csv.reader(file, skipinitialspace=True)
        for row in tqdm(reader, desc=path.name, unit="row", disable=None, leave=False):
            line = f"line {reader.line_num}"
            try:
                if reader.line_num == 1 and (header := _header(row)):
                    columns = header
                elif row:
                    values = _values(row, columns)
                    if values["ImageID"] != last:
                        last = values["ImageID"]
                        spool.add(last, ImageRow(f"{last}.jpg"))  # rows of an image need not stand together
                    if label := persons.get(values["LabelName"]):
                        spool.add(last, _person(values, reader.line_num, label))
            except AnnotationFault as error:
                report(line, str(error))


def _header(row: list[str]) -> dict[str, int]:
    """Column by name, empty if the row is not a header."""
    known = {name.casefold(): name for name in PUBLISHED}
    names = [known.get(value.strip().casefold(), "") for value in row]
    return {name: i for i, name in enumerate(names) if name} if "ImageID" in names else {}


def _values(row: list[str], columns: dict[str, int]) -> dict[str, str]:
    """The needed values of a row by name."""
    if missing := [name for name in NEEDED if columns.get(name, len(row)) >= len(row)]:
        raise AnnotationFault(f"has no {', '.join(missing)}: {len(row)} columns, expected {', '.join(PUBLISHED)}")
    return {name: row[columns[name]].strip() for name in NEEDED}


def _person(values: dict[str, str], number: int, label: str) -> Person:
    edges = corners([values[name] for name in ("XMin", "YMin", "XMax", "YMax")], "xyxy")
    if min(edges) < -ROUNDING or max(edges) > 1 + ROUNDING:
        raise AnnotationFault(f"edges must be fractions from 0 to 1, got {edges}")
    edges = corners([min(max(edge, 0.0), 1.0) for edge in edges], "xyxy")
    flags = [flag(values[name], name) for name in ("IsGroupOf", "IsDepiction") if values[name] != UNKNOWN]
    return Person(*edges, str(number), any(flags), label)


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
