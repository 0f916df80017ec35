"""CrowdHuman: one JSON object per line (`annotation_*.odgt`), three boxes x, y, width, height per person.

`fbox` guesses the whole body, also what is hidden or outside the image; `vbox` is what the image shows of it,
`hbox` the head. The visible box is the default: it is what the boxes of all other data sets enclose, so that the same
limits on size mean the same. The paper does not say which it took.
"""

import json
from collections.abc import Callable, Iterator

from osdhuman.curate.record import Box, ImageRecord
from osdhuman.curate.sources.places import header_size, locate
from osdhuman.curate.sources.source import Faults, SourceConfig, image_record
from osdhuman.curate.sources.text_file import open_text
from osdhuman.curate.sources.values import AnnotationFault, corners, field, flag, identifier, plain_text

BOXES = {"visible": "vbox", "full": "fbox", "head": "hbox"}


def read(config: SourceConfig, faults: Faults) -> Iterator[ImageRecord]:
    """Images in the order of the lines; `mask` and `ignore` are ignored regions.

    The file has no sizes: that of the image is read from its header, to clip boxes that overflow it.
    """
    for path in config.annotations:
        report = faults.of(config.name, path)
        with open_text(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    yield _record(json.loads(line), number, config, report)
                except (AnnotationFault, ValueError, RecursionError) as error:
                    report(f"line {number}", f"{error}" if isinstance(error, AnnotationFault) else f"no JSON: {error}")


def _record(record: object, number: int, config: SourceConfig, report: Callable[[str, str], None]) -> ImageRecord:
    image_id, boxes = identifier(field(record, "ID")), field(record, "gtboxes")
    if not isinstance(boxes, list) or not image_id:
        raise AnnotationFault(f"needs an ID and a list of gtboxes, got ID {image_id!r}, gtboxes {boxes!r:.80}")
    persons = []
    for i, box in enumerate(boxes):
        try:
            persons.append(_person(box, i, config.extent))
        except AnnotationFault as error:
            report(f"line {number}, gtboxes[{i}]", str(error))
    file = locate(config.images, [f"{image_id}.jpg", f"Images/{image_id}.jpg", image_id])
    size = header_size(config.images / file) or (None, None)
    return image_record(config, report, file, image_id, persons, size=size)


def _person(box: object, i: int, extent: str) -> tuple[Box, bool]:
    """The box and whether it is ignored; a mask has no id of its own and gets its place in the list."""
    edges = corners(field(box, BOXES[extent]), "xywh")
    extra, head = box.get("extra") or {}, box.get("head_attr") or {}
    if not isinstance(extra, dict) or not isinstance(head, dict):
        raise AnnotationFault("its extra and head_attr must be objects")
    flags = [flag(extra.get("ignore"), "ignore")]
    flags += [flag(head.get("ignore"), "ignore of the head")] if extent == "head" else []
    ignored = field(box, "tag") != "person" or any(flags)
    return Box(*edges, plain_text(extra.get("box_id", f"gtboxes[{i}]"))), ignored
