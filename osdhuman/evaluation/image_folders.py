"""Which images there are of a set: by the name that LQ, results and HQ share."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from osdhuman.evaluation.config import EvalConfig
from osdhuman.folders import list_images

T = TypeVar("T")


def images_of(config: EvalConfig, set_: str, method: str) -> Path:
    """The folder of a method's restored images of a set."""
    return config.methods[method].images.get(set_, config.output / "restored" / set_ / method)


def by_stem(folder: Path | None) -> dict[str, Path]:
    """Name without suffix, relative -> image, sorted; empty where there is no folder."""
    if folder is None or not folder.is_dir():
        return {}
    images, _ = list_images(folder)
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in images}


def common_stems(config: EvalConfig, set_: str) -> list[str]:
    """Sorted names of the images that every method with any has restored."""
    found = [by_stem(images_of(config, set_, method)).keys() for method in config.methods]
    found = [names for names in found if names]
    return sorted(set.intersection(*map(set, found))) if found else []


def evenly_spaced(names: Sequence[T], count: int) -> list[T]:
    """`count` of the names, from the middles of as many equal parts."""
    count = min(count, len(names))
    return [names[int((i + 0.5) * len(names) / count)] for i in range(count)]
