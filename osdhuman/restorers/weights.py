"""Published files that a restorer needs: where each is to be had, under which licence, and its hash."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from osdhuman.files import file_sha256, printable


class WeightFile(NamedTuple):
    """A file, the setting that holds its place, and who publishes it under which licence."""

    path: Path
    setting: str
    source: str
    licence: str


def require(files: Iterable[WeightFile]) -> None:
    """Raise FileNotFoundError that names every missing file, its source, its licence and where to put it."""
    lines = [
        f"{printable(file.path)} does not exist. It is {file.source} (licence: {file.licence}). "
        f"Download it to that path, or pass {file.setting}=PATH"
        for file in files
        if not file.path.is_file()
    ]
    if lines:
        raise FileNotFoundError("\n".join(lines))


def hashes(files: Iterable[WeightFile]) -> dict[str, str]:
    """sha256 of each file by its name, for `describe()`."""
    return {file.path.name: file_sha256(file.path) for file in files}


def licences(files: Iterable[WeightFile]) -> dict[str, str]:
    """Licence of each file by its name, for `describe()`."""
    return {file.path.name: file.licence for file in files}
