"""List the images below a folder: one rule for the whole package.

Links are followed, and each real folder is listed once. Names that an operating system or a program keeps for itself
(`is_hidden`) are passed over. A file is an image if Pillow reads files of its suffix or, for any other suffix, if its
first bytes say so; what is neither is reported as `Unlisted`. Memory holds the names of one folder at a time.
"""

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from osdhuman.image_files import image_suffixes, starts_like_an_image

HIDDEN = frozenset(  # besides names that begin with a dot; compared in lower case
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),  # Windows
        *("__macosx", "icon\r", "lost+found"),  # macOS, Linux
        *("@eadir", "#recycle", "#snapshot", "@recycle"),  # network storages
    )
)


class Unlisted(NamedTuple):
    """Something below a folder that is not given as an image, and why."""

    path: Path
    reason: str


def walk_images(folder: str | Path, skip: Iterable[str | Path] = ()) -> Iterator[Path | Unlisted]:
    """Every image below `folder`, sorted by name; for other files, dangling links and unreadable folders an `Unlisted`.

    `skip`: folders that are not entered. A link to a folder that the walk reaches by its own name is passed over, so
    that its files keep that name. Raises FileNotFoundError if `folder` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder.absolute()} is not a folder of images")
    entered = {_identity(path) for path in skip if os.path.isdir(path)}
    yield from _walk(folder, (os.path.realpath(folder),), entered)


def list_images(folder: str | Path, skip: Iterable[str | Path] = ()) -> tuple[list[Path], list[Unlisted]]:
    """The images below `folder`, and what was not listed, both in the order of `walk_images`."""
    images: list[Path] = []
    unlisted: list[Unlisted] = []
    for found in walk_images(folder, skip):
        unlisted.append(found) if isinstance(found, Unlisted) else images.append(found)
    return images, unlisted


def find_images(folder: str | Path, skip: Iterable[str | Path] = ()) -> list[Path]:
    """The images below `folder`; warns about what was not listed. Raises FileNotFoundError where there are none."""
    images, unlisted = list_images(folder, skip)
    others = f"not listed: {describe(unlisted)}" if unlisted else ""
    if not images:
        raise FileNotFoundError("; ".join(filter(None, [f"no image in {Path(folder).absolute()}", others])))
    if others:
        warnings.warn(f"{folder}: {others}", stacklevel=2)
    return images


def describe(unlisted: Iterable[Unlisted], most: int = 3) -> str:
    """Counts by reason with the first names: `2 x not an image (a.txt, b.txt); 1 x ...`; empty for nothing."""
    names: dict[str, list[str]] = {}
    for path, reason in unlisted:
        names.setdefault(reason, []).append(path.name)
    return "; ".join(
        f"{len(found)} x {reason} ({', '.join(found[:most])}{', ...' * (len(found) > most)})"
        for reason, found in names.items()
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is kept by a system or program for itself: `._a.png`, `@eaDir`."""
    return name.startswith(".") or name.lower() in HIDDEN


def _walk(folder: Path, roots: tuple[str, ...], entered: set[tuple[int, int]]) -> Iterator[Path | Unlisted]:
    """Depth first. `roots`: real paths of the folder that the walk began in and of the links that led here."""
    try:
        entered.add(_identity(folder))
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        yield Unlisted(folder, f"folder cannot be read ({error.strerror})")
        return
    for entry in found:
        path = folder / entry.name
        if not os.path.isdir(path) if entry.is_symlink() else not entry.is_dir():
            yield _file(entry, path)
        elif not entry.is_symlink():
            if _identity(path) not in entered:  # a mount may show a folder twice without a link
                yield from _walk(path, roots, entered)
        elif _identity(path) not in entered and not _reached_by_name(os.path.realpath(path), roots):
            yield from _walk(path, (*roots, os.path.realpath(path)), entered)


def _file(entry: "os.DirEntry[str]", path: Path) -> Path | Unlisted:
    if not entry.is_symlink():
        regular = entry.is_file()
    elif not os.path.exists(path):
        return Unlisted(path, "link to a file that does not exist")
    else:
        regular = os.path.isfile(path)
    if not regular:
        return Unlisted(path, "not a regular file")
    if path.suffix.lower() in image_suffixes():
        return path
    try:
        return path if starts_like_an_image(path) else Unlisted(path, "not an image")
    except OSError as error:
        return Unlisted(path, f"cannot be read ({error.strerror})")


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _reached_by_name(real: str, roots: Iterable[str]) -> bool:
    """Whether a walk through one of `roots` comes to the real folder `real` without a link and without hidden names."""
    for root in roots:
        below = Path(real).relative_to(root).parts if Path(real).is_relative_to(root) else (".",)
        if not any(is_hidden(name) for name in below):
            return True
    return False
