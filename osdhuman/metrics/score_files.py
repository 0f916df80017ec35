"""The files of scores of one folder of images: `OUTPUT.parquet`, and `OUTPUT.partial.jsonl` while it is measured.

A score belongs to the bytes of an image, those of its reference, and the identity of the metric
(`osdhuman.metrics.scorers.identify`). While these stay it is never computed again, whatever else changes.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import polars as pl

from osdhuman.files import replacing
from osdhuman.metrics.table import METRICS

Key = tuple[str, str | None]  # sha256 of an image and of the reference that a metric saw


class Hashed(Protocol):
    """An image that is scored: its name below its folder, the sha256 of its file and of its reference's."""

    file: str
    sha256: str
    reference_sha256: str | None


def key_of(metric: str, image: Hashed) -> Key:
    """What a score of `metric` belongs to: a metric without reference does not depend on the reference's bytes."""
    return image.sha256, image.reference_sha256 if METRICS[metric].reference else None


def output_path(output: Path, suffix: str) -> Path:
    """`output` with `suffix` appended: a method's name may hold dots, so `with_suffix` would cut it."""
    return output.with_name(output.name + suffix)


def printable(name: str) -> str:
    """A file name as UTF-8 can hold it: bytes that are not UTF-8 become `\\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@dataclass
class ScoreFiles:
    """Scores by metric and by what they belong to, and the identity of each metric."""

    identities: dict[str, dict[str, Any]] = field(default_factory=dict)
    values: dict[str, dict[Key, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, output: Path) -> "ScoreFiles":
        """What an earlier run left, finished or killed; empty if nothing. The last line of a killed one may be torn.

        Raises ValueError that names a file which is damaged or was not written by `write`.
        """
        scores = cls()
        for suffix, read in ((".parquet", _read_parquet), (".partial.jsonl", _read_lines)):
            path = output_path(output, suffix)
            if path.is_file():
                try:
                    scores._add(*read(path))
                except (pl.exceptions.PolarsError, ValueError, LookupError, TypeError, AttributeError) as error:
                    raise ValueError(
                        f"{path} is damaged or does not hold scores ({_first_line(error)}); delete it and run again"
                    ) from None
        return scores

    def _add(self, head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        known = {name: identity for name, identity in head["identities"].items() if name in METRICS}
        for name, identity in known.items():
            if identity != self.identities.get(name):
                self.identities[name], self.values[name] = identity, {}
            for row in rows:
                if row.get(name) is not None:
                    self.values[name][row["sha256"], row["reference_sha256"] if METRICS[name].reference else None] = (
                        float(row[name])
                    )
        for name, (digest, value) in head["sets"].items():
            if name in known:
                self.values[name][digest, None] = float(value)

    def open_partial(self, output: Path) -> IO[str]:
        """A partial file that begins with all that is known, open for more."""
        path = output_path(output, ".partial.jsonl")
        with replacing(path) as part, part.open("w", encoding="utf-8") as file:
            file.write(json.dumps(self._head()) + "\n")
            for row in self._rows_by_key():
                file.write(json.dumps(row) + "\n")
        return path.open("a", encoding="utf-8")

    def note(self, file: IO[str], image: Hashed) -> None:
        """Append the scores of one image."""
        file.write(json.dumps(self._row(image)) + "\n")

    def write(self, output: Path, images: Sequence[Hashed]) -> None:
        """Write the .parquet: one row for each image, a column for each metric of images."""
        text = dict.fromkeys(("file", "sha256", "reference_sha256"), pl.String)
        schema = text | dict.fromkeys(self._image_metrics(), pl.Float64)
        frame = pl.DataFrame(list(map(self._row, images)), schema=schema)
        with replacing(output_path(output, ".parquet")) as part:
            frame.write_parquet(part, metadata={"osdhuman": json.dumps(self._head())})

    def _image_metrics(self) -> list[str]:
        return [name for name in self.identities if METRICS[name].scope == "image"]

    def _head(self) -> dict[str, Any]:
        sets = {name: values for name, values in self.values.items() if METRICS[name].scope == "set"}
        pairs = {name: [digest, value] for name, values in sets.items() for (digest, _), value in values.items()}
        return {"identities": self.identities, "sets": pairs}

    def _row(self, image: Hashed) -> dict[str, Any]:
        row = {"file": image.file, "sha256": image.sha256, "reference_sha256": image.reference_sha256}
        return row | {n: self.values[n][k] for n in self._image_metrics() if (k := key_of(n, image)) in self.values[n]}

    def _rows_by_key(self) -> Iterable[dict[str, Any]]:
        rows: dict[Key, dict[str, Any]] = {}
        for name in self._image_metrics():
            for key, value in self.values[name].items():
                rows.setdefault(key, {"sha256": key[0], "reference_sha256": key[1]})[name] = value
        return rows.values()


def _read_parquet(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    head = json.loads(pl.read_parquet_metadata(path)["osdhuman"])
    return head, pl.read_parquet(path).to_dicts()


def _read_lines(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    head, *rows = _whole_lines(path)  # the head comes with the file's name, so it is always there
    return head, rows


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
