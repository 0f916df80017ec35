"""Pascal VOC: one XML file per picture, edges xmin, ymin, xmax, ymax counted from 1, both inclusive."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from osdhuman.curate.record import Box, ImageRecord
from osdhuman.curate.sources.source import (
    AnnotationFault,
    Faults,
    SourceConfig,
    corners,
    expect_labels,
    image_record,
    locate,
    tails,
)

LABELS = ("person",)


def read(config: SourceConfig, faults: Faults) -> Iterator[ImageRecord]:
    """Pictures by the names of their XML files; objects marked `difficult` are ignored regions."""
    labels, met = {label.casefold() for label in config.labels or LABELS}, set()
    for path in config.annotations:
        for xml in _files(path):
            report = faults.of(config.name, xml)
            try:
                root = ElementTree.parse(xml).getroot()
                if root.tag != "annotation":
                    raise AnnotationFault(f"expected <annotation>, got <{root.tag}>")
            except (ElementTree.ParseError, AnnotationFault, OSError, ValueError) as error:
                report("", str(error))
                continue
            met |= {item.findtext("name", "").strip() for item in root.findall("object")}
            yield _record(root, xml, labels, config, report)
    expect_labels(config.labels, met, config.annotations[0])


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    yield from (path / name for name in sorted(os.listdir(path)) if name.lower().endswith(".xml"))


def _record(
    root: ElementTree.Element,
    xml: Path,
    labels: set[str],
    config: SourceConfig,
    report: Callable[[str, str], None],
) -> ImageRecord:
    persons = []
    for i, item in enumerate(root.findall("object")):  # children only: a <part> has a name and a box of its own
        try:
            if _text(item, "name").casefold() in labels:
                persons.append((_box(item, str(i)), item.findtext("difficult", "0").strip() == "1"))
        except AnnotationFault as error:
            report(f"object {i}", str(error))
    names = tails(root.findtext("filename", "").strip()) or [f"{xml.stem}.jpg"]
    names += [f"JPEGImages/{names[-1]}"]
    size = _pixels(root, "size/width"), _pixels(root, "size/height")
    return image_record(config, report, locate(config.images, names), xml.stem, persons, size=size)


def _box(item: ElementTree.Element, id: str) -> Box:
    edges = [_text(item, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
    x0, y0, x1, y1 = corners(edges, "xyxy")
    return Box(x0 - 1, y0 - 1, x1, y1, id)


def _text(item: ElementTree.Element, path: str) -> str:
    text = (item.findtext(path) or "").strip()
    if not text:
        raise AnnotationFault(f"has no <{path}>")
    return text


def _pixels(root: ElementTree.Element, path: str) -> int | None:
    text = root.findtext(path, "").strip()
    return int(text) or None if text.isdecimal() and len(text) < 10 else None
