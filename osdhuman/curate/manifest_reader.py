"""Read a manifest.parquet of HQ-ACF that may be damaged, or may come from somebody else."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from osdhuman.curate.sources.places import DRIVE, stays_inside

SETTINGS = "osdhuman"  # the key of the settings in the metadata of manifest.parquet
EXPECTED = "expected a manifest.parquet of HQ-ACF"


@contextmanager
def readable_manifest(path: Path) -> Iterator[None]:
    """Turn what polars raises while it reads `path` into one ValueError; FileNotFoundError where there is no file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; {EXPECTED}")
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:  # the latter is no Exception
        raise ValueError(f"{path} cannot be read ({_first_line(error)}); {EXPECTED}") from None


def scan_manifest(path: Path, columns: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    """The rows of a manifest that has at least `columns`; a column of integers may have any width.

    Raises FileNotFoundError, and ValueError that says which columns were expected.
    """
    with readable_manifest(path):
        rows = pl.scan_parquet(path, glob=False)
        schema = rows.collect_schema()
    if lacking := [name for name in columns if name not in schema]:
        raise ValueError(f"{path} has no column {', '.join(lacking)}; {EXPECTED}")
    for name, kind in columns.items():
        if schema[name] != kind and not (schema[name].is_integer() and kind.is_integer()):
            raise ValueError(f"{path}: column {name} holds {schema[name]}, expected {kind}; {EXPECTED}")
    return rows


def read_settings(path: Path) -> dict[str, Any]:
    """What `persona.settings_metadata` gave to a manifest: cut, persona, versions.

    Raises FileNotFoundError, and ValueError where the settings are missing or damaged.
    """
    with readable_manifest(path):
        text = pl.read_parquet_metadata(path).get(SETTINGS)
    if text is None:
        raise ValueError(f"{path} does not say how its crops were cut; {EXPECTED}")
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: its settings are no JSON ({error}); {EXPECTED}") from None
    names = ("cut", "persona", "versions")
    if not isinstance(settings, dict) or not all(isinstance(settings.get(name), dict) for name in names):
        raise ValueError(f"{path}: its settings lack {', '.join(names)}, or hold another kind of value; {EXPECTED}")
    return settings


def leaves_folder(file: str) -> bool:
    """Whether a relative name could lead out of the folder that it is taken from, on Linux or on Windows."""
    return DRIVE.match(file) is not None or not all(stays_inside(name) for name in (file, file.replace("\\", "/")))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
