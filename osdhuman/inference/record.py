"""What made each result in an output folder: `.osdhuman.jsonl`, one line of JSON per input, appended when it is done.

A later run uses it to tell results of other settings from its own, and to keep names when files are added.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from osdhuman.files import replacing
from osdhuman.resume import differences

RECORD = ".osdhuman.jsonl"
KEYS = {"target", "source", "size", "modified", "settings"}


class Record:
    """The results in an output folder, by their names in it. The last line of a name counts; damaged lines are ignored.

    `settings` are those of this run: what decides the pixels, as plain values.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]):
        self.output, self.settings = output, json.loads(json.dumps(settings))
        self.path = output / RECORD
        self.results = {line["target"]: line for line in _lines(self.path)}
        self._begun = False

    def sources(self) -> dict[str, str]:
        """Name of a result -> absolute path of its input."""
        return {target: line["source"] for target, line in self.results.items()}

    def why_other(self, source: Path, target: Path) -> str:
        """Why the existing file `target` is not the result of this run on `source`; empty if it is."""
        line = self.results.get(self._name(target))
        if line is None:
            return "it is not known what made it"
        if [line["size"], line["modified"]] != _state(source):
            same = line["source"] == str(source.resolve())
            return "the input has changed since" if same else "made from another input"
        changes = [f"{key} {before!r} there, {now!r} now" for key, before, now in self._changes(line)]
        return f"made with other settings: {', '.join(changes)}" if changes else ""

    def _changes(self, line: Mapping[str, Any]) -> Iterable[tuple[str, Any, Any]]:
        return differences(line["settings"], self.settings)

    def add(self, source: Path, target: Path) -> None:
        """Note that `target` has been written. Raises OSError."""
        size, modified = _state(source)
        line = {"target": self._name(target), "source": str(source.resolve()), "size": size, "modified": modified}
        self.results[line["target"]] = line | {"settings": self.settings}
        if not self._begun:  # without lines that no longer count, and with a whole last line
            self._begun = True
            self._write(self.results.values())
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_text(self.results[line["target"]]))

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        with replacing(self.path) as part:
            part.write_text("".join(map(_text, lines)), encoding="utf-8")

    def _name(self, target: Path) -> str:
        return target.relative_to(self.output).as_posix()


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"  # ASCII: names that are not UTF-8 are escaped


def _state(source: Path) -> list[int]:
    status = os.stat(source)
    return [status.st_size, status.st_mtime_ns]


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except ValueError:  # a line that was cut off
            continue
        if isinstance(line, dict) and line.keys() >= KEYS:
            lines.append(line)
    return lines
