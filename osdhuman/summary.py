"""What a long command could not use: counts by reason for the reader, a list of names for programs."""

import json
from collections import Counter
from pathlib import Path

from osdhuman.files import printable, replacing

SHOWN = 10  # names of one reason


class Summary:
    """Paths that were skipped or failed, each with its reason, in the order in which they came."""

    def __init__(self) -> None:
        self.entries: list[tuple[Path, str]] = []

    def add(self, path: str | Path, reason: str) -> None:
        """Note one path."""
        self.entries.append((Path(path), reason))

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def counts(self) -> dict[str, int]:
        """Number of paths by reason, the most frequent first."""
        return dict(Counter(reason for _, reason in self.entries).most_common())

    def __str__(self) -> str:
        lines = []
        for reason, count in self.counts.items():
            names = [printable(path) for path, other in self.entries if other == reason]
            if count == 1:
                lines.append(f"{names[0]}: {reason}")
                continue
            lines += [f"{count} x {reason}", *(f"  {name}" for name in names[:SHOWN])]
            lines += [f"  and {count - SHOWN} more"] if count > SHOWN else []
        return "\n".join(lines)

    def write(self, path: Path) -> Path | None:
        """One JSON object {"path", "reason"} per line in the file `path`; no file where there is nothing to list."""
        if not self.entries:
            path.unlink(missing_ok=True)
            return None
        lines = (json.dumps({"path": printable(file), "reason": reason}) for file, reason in self.entries)
        with replacing(path) as part:
            part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path
