"""Annotation files as text, whatever encoding they were saved in."""

import codecs
import json
import re
from pathlib import Path
from typing import BinaryIO, TextIO
from xml.etree import ElementTree

DECLARED = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.-]+)["']""")
SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030"}  # files that declare the older set hold characters of the newer


def encoding_of(path: Path) -> str:
    """UTF-8, -16 or -32, with or without byte order mark: told by the first bytes, which hold ASCII in all formats."""
    with path.open("rb") as file:
        return json.detect_encoding(file.read(4))


def open_text(path: Path) -> TextIO:
    """The file as text without byte order mark; bytes that are not of its encoding become U+FFFD.

    Lines end at newlines only, not at the other separators of Unicode.
    """
    return path.open(encoding=encoding_of(path), errors="replace", newline="")


class Utf8:
    """A binary file of another encoding, read as UTF-8 bytes."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self.file, self.decoder = file, codecs.getincrementaldecoder(encoding)("replace")
        self.rest = b""

    def read(self, size: int) -> bytes:
        while len(self.rest) < size and (block := self.file.read(max(size, 4096))):
            self.rest += self.decoder.decode(block).encode()
        block, self.rest = self.rest[:size], self.rest[size:]
        return block


def parse_xml(path: Path) -> ElementTree.Element:
    """The root element. Raises ElementTree.ParseError or ValueError; reads encodings that expat does not know."""
    data = path.read_bytes()
    declared = DECLARED.match(data)
    encoding = declared.group(1).decode().casefold() if declared else "utf-8"
    if encoding in ("utf-8", "utf-16", "us-ascii", "iso-8859-1"):
        return ElementTree.fromstring(data)
    try:
        return ElementTree.fromstring(data.decode(SUPERSETS.get(encoding, encoding)))
    except LookupError:
        raise ValueError(f"declares the unknown encoding {encoding!r}") from None
