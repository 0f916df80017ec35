"""JSON files larger than memory, read as far as they are sound."""

import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from osdhuman.curate.sources.text_file import Utf8, encoding_of, open_text

NOT_JSON = re.compile(rb'(?<![\w".-])-?(?:NaN|Infinity)(?=[\s,\]}])')


class JsonFile:
    """Streams arrays of one file. Where it stops being JSON the place is reported once, `broken` is set, and what
    came before it is kept."""

    def __init__(self, path: Path, report: Callable[[str, str], None]) -> None:
        self.path, self.report = path, report
        self.broken = False

    def items(self, prefix: str) -> Iterator[Any]:
        """The values at `prefix` ("images.item": every element of the array "images"), one at a time."""
        import ijson

        size, name = self.path.stat().st_size, f"{self.path.name} {prefix}"
        encoding, given, big = encoding_of(self.path), 0, False
        while True:
            with (
                self.path.open("rb") as raw,
                tqdm.wrapattr(raw, "read", total=size, desc=name, disable=None, leave=False) as file,
            ):
                source = _Source(file if encoding == "utf-8" else Utf8(file, encoding))
                try:
                    for value in islice(ijson.items(source, prefix, use_float=not big), given, None):
                        yield value
                        given += 1
                    return
                except ijson.JSONError as error:
                    if "integer overflow" not in str(error) or big:
                        self._break(source, error)
                        return
                    big = True  # a number beyond 64 bits: read on from this value with the slower exact numbers

    def _break(self, source: "_Source", error: Exception) -> None:
        if not self.broken:
            self.report("", f"{source.place()} ({str(error).splitlines()[0]})")
        self.broken = True

    def is_list(self) -> bool:
        """Whether the file's outermost value is an array."""
        with open_text(self.path) as file:
            return file.read(1000).lstrip().startswith("[")

    def first(self, prefix: str) -> Any:
        """The first value at `prefix`, None where there is none; reads no further."""
        return next(self.items(prefix), None)


class _Source:
    """A file that knows how far it was read, and that gives null for NaN and Infinity.

    Python writes those two words, but they are no JSON: without this one bad box would end the whole file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.start = self.end = 0
        self.exhausted = False

    def read(self, size: int) -> bytes:
        block = self.file.read(size)
        self.exhausted = not block and size > 0
        for _ in range(len(b"Infinity")):  # never end a block within one of the words
            if not (block[-1:].isalpha() or block[-1:] == b"-"):
                break
            block += self.file.read(1)
        self.start, self.end = (self.end, self.end + len(block)) if block else (self.start, self.end)
        return NOT_JSON.sub(b"null", block) if b"NaN" in block or b"Infinity" in block else block

    def place(self) -> str:
        if self.exhausted:
            return f"breaks off at byte {self.end}, the end of the file"
        return f"is not JSON from somewhere between the bytes {self.start} and {self.end}"
