"""CrowdHuman: one JSON object per line (`annotation_*.odgt`), three boxes x, y, width, height per person.

`fbox` guesses the whole body, also what is hidden or outside the picture; `vbox` is what the picture shows of it,
`hbox` the head. The visible box is the default: it is what the boxes of all other data sets enclose, so that the same
limits on size mean the same. The paper does not say which it took.
"""

import json
from collections.abc import Callable, Iterator

from osdhuman.curate.record import Box, ImageRecord
from osdhuman.curate.sources.source import (
    AnnotationFault,
    Faults,
    SourceConfig,
    corners,
    field,
    header_size,
    image_record,
    locate,
)

BOXES = {"visible": "vbox", "full": "fbox", "head": "hbox"}


def read(config: SourceConfig, faults: Faults) -> Iterator[ImageRecord]:
    """Pictures in the order of the lines; `mask` and `ignore` are ignored regions.

    The file has no sizes: that of the picture is read from its header, to clip boxes that overflow it.
    """
    for path in config.annotations:
        report = faults.of(config.name, path)
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    yield _record(json.loads(line), number, config, report)
                except (AnnotationFault, ValueError, RecursionError) as error:
                    report(f"line {number}", f"{error}" if isinstance(error, AnnotationFault) else f"no JSON: {error}")


def _record(record: object, number: int, config: SourceConfig, report: Callable[[str, str], None]) -> ImageRecord:
    image_id, boxes = _text(field(record, "ID")), field(record, "gtboxes")
    if not isinstance(boxes, list) or not image_id:
        raise AnnotationFault(f"needs an ID and a list of gtboxes, got ID {image_id!r}, gtboxes {boxes!r:.80}")
    persons = []
    for i, box in enumerate(boxes):
        try:
            persons.append(_person(box, i, config.extent))
        except AnnotationFault as error:
            report(f"line {number}, gtboxes[{i}]", str(error))
    file = locate(config.images, [f"{image_id}.jpg", f"Images/{image_id}.jpg"])
    size = header_size(config.images / file) or (None, None)
    return image_record(config, report, file, image_id, persons, size=size)


def _person(box: object, i: int, extent: str) -> tuple[Box, bool]:
    """The box and whether it is ignored; a mask has no id of its own and gets its place in the list."""
    edges = corners(field(box, BOXES[extent]), "xywh")
    extra, head = box.get("extra") or {}, box.get("head_attr") or {}
    if not isinstance(extra, dict) or not isinstance(head, dict):
        raise AnnotationFault("its extra and head_attr must be objects")
    ignored = field(box, "tag") != "person" or extra.get("ignore") or (extent == "head" and head.get("ignore"))
    return Box(*edges, _text(extra.get("box_id", f"gtboxes[{i}]"))), bool(ignored)


def _text(value: object) -> str:
    """As UTF-8 can hold it: half of a surrogate pair, which JSON can escape, becomes a question mark."""
    return str(value).encode("utf-8", "replace").decode()
