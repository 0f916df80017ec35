"""Objects365: version 2 (`zhiyuan_objv2_*.json`, COCO's layout) and the layout of the website's samples.

Version 2 names a image `images/v1/patch8/objects365_v1_00420917.jpg`; `images` may be the folder that holds
`images`, `v1`, `patch8` or the images themselves. The website's files are lists of
`{"url", "gtboxes": [{"rect": [x0, y0, x1, y1], "iscrowd", "category"}]}`; the image is the last part of its url.
"""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from osdhuman.curate.record import Box, ImageRecord
from osdhuman.curate.sources.coco import read_tables
from osdhuman.curate.sources.json_file import JsonFile
from osdhuman.curate.sources.places import locate, tails
from osdhuman.curate.sources.source import Faults, SourceConfig, expect_labels, image_record
from osdhuman.curate.sources.values import AnnotationFault, corners, field, flag, plain_text

LABELS = ("Person",)
IGNORED = ("iscrowd", "isfake", "isreflected")  # groups, depictions, mirror images


def read(config: SourceConfig, faults: Faults) -> Iterator[ImageRecord]:
    """Images by their id, those of a website file in its order; crowds, fakes and reflections are ignored regions."""
    met: set[str] = set()
    for path in config.annotations:
        if JsonFile(path, faults.of(config.name, path)).is_list():
            yield from _read_website(path, config, faults, met)
        else:
            yield from read_tables(path, config, faults, LABELS, IGNORED)
    expect_labels(config.labels, met, config.annotations[0])


def _read_website(path: Path, config: SourceConfig, faults: Faults, met: set[str]) -> Iterator[ImageRecord]:
    """One file; the categories in it are added to `met`."""
    report = faults.of(config.name, path)
    labels = {label.casefold() for label in config.labels or LABELS}
    for i, record in enumerate(JsonFile(path, report).items("item")):
        try:
            url, boxes = plain_text(field(record, "url")), field(record, "gtboxes")
            if not isinstance(boxes, list) or not PurePosixPath(url).name:
                raise AnnotationFault("needs a url that ends in a file's name, and a list of gtboxes")
        except AnnotationFault as error:
            report(f"record {i}", str(error))
            continue
        try:
            file = locate(config.images, tails(PurePosixPath(url).name))
        except AnnotationFault as error:
            report(f"record {i}", str(error))
            continue
        met |= {str(box.get("category")) for box in boxes if isinstance(box, dict)}
        name = PurePosixPath(url).name
        persons = _website_persons(boxes, labels, lambda j, fault, i=i: report(f"record {i}, gtboxes[{j}]", fault))
        yield image_record(config, report, file, PurePosixPath(name).stem, persons, url=url)


def _website_persons(boxes: list, labels: set[str], report: Callable[[int, str], None]) -> Iterator[tuple[Box, bool]]:
    for j, box in enumerate(boxes):
        try:
            if str(field(box, "category")).casefold() in labels:
                yield (
                    Box(*corners(field(box, "rect"), "xyxy"), str(j)),
                    any([flag(box.get(name), name) for name in IGNORED]),
                )
        except AnnotationFault as error:
            report(j, str(error))
