"""Pascal VOC: one XML file per image, edges xmin, ymin, xmax, ymax counted from 1, both inclusive."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from osdhuman.curate.record import Box, ImageRecord
from osdhuman.curate.sources.places import locate, tails
from osdhuman.curate.sources.source import Faults, SourceConfig, expect_labels, image_record
from osdhuman.curate.sources.text_file import parse_xml
from osdhuman.curate.sources.values import AnnotationFault, corners, flag, pixels
from osdhuman.folders import is_hidden

LABELS = ("person",)


def read(config: SourceConfig, faults: Faults) -> Iterator[ImageRecord]:
    """Images by the names of their XML files; objects marked `difficult` are ignored regions."""
    labels, met = {label.casefold() for label in config.labels or LABELS}, set()
    for path in config.annotations:
        for xml in _files(path):
            report = faults.of(config.name, xml)
            try:
                root = parse_xml(xml)
                if root.tag != "annotation":
                    raise AnnotationFault(f"expected <annotation>, got <{root.tag}>")
            except (ElementTree.ParseError, AnnotationFault, OSError, ValueError) as error:
                report("", str(error))
                continue
            met |= {item.findtext("name", "").strip() for item in root.findall("object")}
            try:
                yield _record(root, xml, labels, config, report)
            except AnnotationFault as error:
                report("", str(error))
    expect_labels(config.labels, met, config.annotations[0])


def _files(path: Path) -> Iterator[Path]:
    """`path` itself, or the XML files below it; hidden ones, such as the `._*` of macOS, are passed over."""
    if path.is_file():
        yield path
        return
    for folder, folders, files in os.walk(path, followlinks=False):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (Path(folder, name) for name in sorted(files) if _is_xml(name))


def _is_xml(name: str) -> bool:
    return name.lower().endswith(".xml") and not is_hidden(name)


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
                persons.append((_box(item, str(i)), flag(item.findtext("difficult"), "difficult")))
        except AnnotationFault as error:
            report(f"object {i}", str(error))
    named = tails(root.findtext("filename", "").strip())
    names = [*named, *(f"JPEGImages/{name}" for name in named[-1:]), f"{xml.stem}.jpg", f"JPEGImages/{xml.stem}.jpg"]
    size = pixels(root.findtext("size/width")), pixels(root.findtext("size/height"))
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
