"""COCO: instances or person keypoints in one JSON file of images, annotations and categories.

Boxes are x, y, width, height in pixels. Format: https://cocodataset.org/#format-data
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from osdhuman.curate.record import Box, ImageRecord
from osdhuman.curate.sources.json_file import JsonFile
from osdhuman.curate.sources.places import locate, tails
from osdhuman.curate.sources.source import Faults, SourceConfig, choose_labels, image_record
from osdhuman.curate.sources.spool import ImageRow, Person, Spool
from osdhuman.curate.sources.values import AnnotationFault, corners, field, flag, identifier, pixels, plain_text


def read(config: SourceConfig, faults: Faults) -> Iterator[ImageRecord]:
    """Images by their id; crowds (`iscrowd`) are ignored regions."""
    for path in config.annotations:
        yield from read_tables(path, config, faults, labels=("person",), ignored=("iscrowd",))


def read_tables(
    path: Path, config: SourceConfig, faults: Faults, labels: tuple[str, ...], ignored: tuple[str, ...]
) -> Iterator[ImageRecord]:
    """One file in COCO's layout. `labels`: its words for a human; `ignored`: flags that make a box no candidate."""
    report = faults.of(config.name, path)
    json = JsonFile(path, report)
    persons = _person_ids(json, config, labels)
    with Spool() as spool:
        if persons:
            _spool_images(json, spool, config.images)
            _spool_persons(json, spool, persons, ignored)
        yield from _join(json, spool, config)


def _person_ids(json: JsonFile, config: SourceConfig, labels: tuple[str, ...]) -> frozenset:
    """The ids of the human categories; none where the file breaks off before its categories."""
    names = {}
    for i, category in enumerate(json.items("categories.item")):
        try:
            names[identifier(field(category, "id"))] = str(field(category, "name")).strip()
        except AnnotationFault as error:
            json.report(f"categories[{i}]", str(error))
    if not names and json.broken:
        json.report("", "its categories are lost: nothing of this file can be used")
        return frozenset()
    chosen = choose_labels(config.labels, labels, set(names.values()), json.path)
    return frozenset(id for id, name in names.items() if name in chosen)


def _spool_images(json: JsonFile, spool: Spool, root: Path) -> None:
    licences = _licences(json)
    for i, image in enumerate(json.items("images.item")):
        try:
            key, url = identifier(field(image, "id")), str(image.get("coco_url") or image.get("url") or "")
            names = [*tails(plain_text(field(image, "file_name"))), *tails(urlsplit(url).path)[-2:]]
            if not names:
                raise AnnotationFault("has an empty 'file_name'")
            size = pixels(image.get("width")), pixels(image.get("height"))
            licence = licences.get(str(image.get("license")), "")
            spool.add(key, ImageRow(locate(root, names), *size, licence, url))
        except (AnnotationFault, ValueError) as error:
            json.report(f"images[{i}]", str(error))


def _licences(json: JsonFile) -> dict[str, str]:
    """Id -> its address, which says the version too, or else its name."""
    table = json.first("licenses")
    rows = [row for row in table if isinstance(row, dict)] if isinstance(table, list) else []
    return {str(row.get("id")): str(row.get("url") or row.get("name") or "") for row in rows}


def _spool_persons(json: JsonFile, spool: Spool, persons: frozenset, ignored: tuple[str, ...]) -> None:
    for i, annotation in enumerate(json.items("annotations.item")):
        try:
            if identifier(field(annotation, "category_id")) not in persons:
                continue
            box = corners(field(annotation, "bbox"), "xywh")
            flags = [flag(annotation.get(name), name) for name in ignored]
            image, id = identifier(field(annotation, "image_id")), identifier(field(annotation, "id"))
            spool.add(image, Person(*box, id, any(flags)))
        except AnnotationFault as error:
            json.report(_name(annotation, i), str(error))


def _name(annotation: object, i: int) -> str:
    known = isinstance(annotation, dict) and "id" in annotation
    return f"annotation {annotation['id']}" if known else f"annotations[{i}]"


def _join(json: JsonFile, spool: Spool, config: SourceConfig) -> Iterator[ImageRecord]:
    unread = 0
    for key, images, persons in spool.groups():
        _report_key(key, images, persons, json.report)
        if not images:
            continue
        if json.broken and not persons:  # its boxes may be among those that were lost
            unread += 1
            continue
        boxes = [(Box(p.x0, p.y0, p.x1, p.y1, p.id), p.ignored) for p in persons]
        file, width, height, licence, url = images[0]
        size = (width, height)
        yield image_record(config, json.report, file, key, boxes, size=size, licence=licence, url=url)
    if unread:
        json.report("", f"{unread} images without a person left out: their boxes may be in the part that is lost")


def _report_key(key: str, images: list, persons: list[Person], report: Callable[[str, str], None]) -> None:
    for _ in images[1:]:
        report(f"image {key}", "id repeats; the first image is taken")
    if not images:
        for person in persons:
            report(f"annotation {person.id}", f"image_id {key} is not among the images")
