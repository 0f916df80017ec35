"""Files of any kind: they appear whole or not at all, are known by the sha256 of their bytes, and are shown safely."""

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name in the folder of `path`; rename it to `path` on success, remove it on an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{uuid.uuid4().hex[:12]}.part"  # short: the name itself may be as long as allowed
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def file_sha256(path: str | Path) -> str:
    """64 hexadecimal digits; reads the file piece by piece."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_disk(path: str | Path) -> None:
    """Return when a file, or the names in a folder, have left the caches and would outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def printable(path: str | Path) -> str:
    """A path as one line of text that any terminal takes: `caf\\xe9.png` where the name is not UTF-8.

    Line breaks, control and invisible characters and bytes that are not UTF-8 are escaped; other letters stay.
    """
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in str(path))


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


def write_fault(error: OSError, path: str | Path) -> str:
    """Why a file could not be written, in words."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        blocking = next((above for above in Path(path).parents if above.exists() and not above.is_dir()), path)
        return f"{printable(blocking)} is a file, but a folder is needed there"
    if isinstance(error, IsADirectoryError):
        return "a folder of this name is in the way"
    return error.strerror or str(error)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, says that no space is left: each further write would fail too."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False
