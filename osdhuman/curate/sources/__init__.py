"""Sources: annotations of detection data sets, and plain folders, read as one stream of `ImageRecord`.

One file per format. Memory does not grow with the data set: files are streamed, and where images and boxes must be
brought together they are sorted on disk (`spool.py`). The order is the same on every run.
"""

from collections.abc import Iterator
from itertools import islice

from osdhuman.curate.record import ImageRecord
from osdhuman.curate.sources import coco, crowdhuman, folder, objects365, openimages, voc
from osdhuman.curate.sources.source import Faults, SourceConfig
from osdhuman.curate.sources.values import AnnotationFault

__all__ = ["AnnotationFault", "Faults", "SourceConfig", "read_source"]

READERS = {
    "coco": coco.read,
    "objects365": objects365.read,
    "openimages": openimages.read,
    "crowdhuman": crowdhuman.read,
    "voc": voc.read,
    "folder": folder.read,
}


def read_source(config: SourceConfig, faults: Faults) -> Iterator[ImageRecord]:
    """Every image of a source, those without a person included (`boxes` empty), in an order that never changes.

    A malformed annotation goes to `faults` and ends nothing. Raises ValueError where a path does not exist or a label
    is unknown.
    """
    for path in (config.images, *config.annotations, *([config.classes] if config.classes else [])):
        if not path.exists():
            raise ValueError(f"source {config.name!r}: {path} does not exist; correct its path in the config")
    if not config.images.is_dir():
        raise ValueError(f"source {config.name!r}: images must be a folder, but {config.images} is a file")
    return islice(READERS[config.format](config, faults), config.max_images)
