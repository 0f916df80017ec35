"""A plain folder of images without annotations; a detector finds the persons."""

import os
from collections.abc import Iterator
from pathlib import Path

from osdhuman.curate.record import ImageRecord
from osdhuman.curate.sources.source import Faults, SourceConfig
from osdhuman.images import SUFFIXES


def read(config: SourceConfig, faults: Faults) -> Iterator[ImageRecord]:
    """All images below `images`, by their paths; hidden files and folders are passed over."""
    for file in _images(config.images, ""):
        try:
            file.encode()
        except UnicodeEncodeError:
            faults.add(config.name, config.images, ascii(file), "file name is not UTF-8: rename it")
            continue
        yield ImageRecord(config.name, file, file, boxes=None, licence=config.licence)


def _images(root: Path, below: str) -> Iterator[str]:
    """Depth first; only one folder's names are in memory. A link to a folder is followed if it leads to none above."""
    inside = (root / below).resolve()
    for name in sorted(os.listdir(root / below)):
        path = root / below / name
        if name.startswith("."):
            continue
        if path.is_dir():
            if path.resolve() not in (inside, *inside.parents):
                yield from _images(root, f"{below}{name}/")
        elif path.suffix.lower() in SUFFIXES:
            yield f"{below}{name}"
