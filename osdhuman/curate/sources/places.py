"""Find the image that an annotation names, in the folder that the user names."""

import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

from PIL import Image

from osdhuman.curate.sources.values import AnnotationFault

DRIVE = re.compile(r"[A-Za-z]:")


def tails(name: str) -> list[str]:
    """`a/b/c.jpg` -> `a/b/c.jpg`, `b/c.jpg`, `c.jpg`: the same file seen from deeper folders.

    A name with backslashes also gives the tails of its parts, as if it were written with slashes.
    """
    names = []
    for form in dict.fromkeys((name, name.replace("\\", "/"))):
        parts = [part for part in PurePosixPath(form).parts if part not in ("/", "..") and not DRIVE.fullmatch(part)]
        names += ["/".join(parts[i:]) for i in range(len(parts))]
    return list(dict.fromkeys(names))


def locate(root: Path, names: Sequence[str]) -> str:
    """The image below `root` that one of `names` means: an exact name first, then any suffix and any case.

    Where there is none, the first name: the cut then reports it as unreadable. Raises AnnotationFault for a name that
    leaves `root`, and where several files fit equally well.
    """
    for name in names:
        if not stays_inside(name):
            raise AnnotationFault(f"names {name!r:.120}, which is not below the folder of images")
    exact = next((name for name in names if _is_file(root / name)), None)
    return exact or _similar(root, names) or names[0]


def stays_inside(name: str) -> bool:
    """Whether a relative name cannot leave the folder that it is taken from."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long
        return False


def _similar(root: Path, names: Iterable[str]) -> str | None:
    for name in names:
        folder, base = PurePosixPath(name).parent, PurePosixPath(name)
        known = _by_stem(root / folder)
        found = known.get(base.stem.casefold(), ()) or known.get(base.name.casefold(), ())
        same_case = [file for file in found if file.casefold() == base.name.casefold()] or found
        if len(same_case) > 1:
            raise AnnotationFault(f"{name!r:.120} fits {len(same_case)} files: {', '.join(sorted(same_case)[:3])}")
        if same_case:
            return (folder / same_case[0]).as_posix()
    return None


@lru_cache(maxsize=16)  # folders; read only where an exact name does not exist
def _by_stem(folder: Path) -> dict[str, tuple[str, ...]]:
    """Names of the image files of a folder by their stem, regardless of case."""
    known: dict[str, tuple[str, ...]] = {}
    suffixes = Image.registered_extensions().keys()
    try:
        files = os.listdir(folder)
    except (OSError, ValueError):
        return known
    for file in files:
        path = PurePosixPath(file)
        if path.suffix.lower() in suffixes and not file.startswith("."):
            known[path.stem.casefold()] = (*known.get(path.stem.casefold(), ()), file)
    return known


def header_size(path: Path) -> tuple[int, int] | None:
    """(width, height) as stored, EXIF rotation not applied, without decoding; None where that cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # Pillow raises nearly anything on a damaged file; the cut names the reason
        return None
