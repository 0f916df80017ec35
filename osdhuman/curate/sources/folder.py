"""A plain folder of images without annotations; a detector finds the persons."""

from collections.abc import Iterator

from osdhuman.curate.record import ImageRecord
from osdhuman.curate.sources.source import Faults, SourceConfig
from osdhuman.files import printable
from osdhuman.folders import Unlisted, walk_images


def read(config: SourceConfig, faults: Faults) -> Iterator[ImageRecord]:
    """All images below `images`, by their paths; hidden files are passed over, other files are faults by name."""
    for found in walk_images(config.images):
        if isinstance(found, Unlisted):
            faults.add(config.name, config.images, printable(found.path), found.reason)
            continue
        file = found.relative_to(config.images).as_posix()
        try:
            file.encode()
        except UnicodeEncodeError:
            faults.add(config.name, config.images, printable(file), "file name is not UTF-8: rename it")
            continue
        yield ImageRecord(config.name, file, file, boxes=None, licence=config.licence)
