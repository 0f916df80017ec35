"""JSON records of a run: written whole, and read with an error that says what to do."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from osdhuman.files import replacing


def read_json(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """The object in `path`. Raises ValueError naming the file where it is damaged or lacks one of `keys`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        if missing := [key for key in keys if key not in content]:
            raise ValueError(f"{', '.join(missing)} missing")
    except ValueError as error:
        raise ValueError(f"{path} is damaged or of another program ({error}); delete it and run again") from None
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One object per line; no file where there are none."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    if not lines:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as part:
        part.write_text("".join(lines), encoding="utf-8")
