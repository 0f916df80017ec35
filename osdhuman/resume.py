"""Continue a run in its folder: the same settings or a clear refusal, and one run at a time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


@contextmanager
def exclusive(folder: Path, remedy: str = "wait until it ends, or choose another folder") -> Iterator[None]:
    """Hold `folder`/.lock; ValueError while another process holds it.

    Two runs in one folder would delete what the other is writing. The operating system releases the lock when the
    process ends, however it ends.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another run is working in {folder}; {remedy}") from None
    try:
        yield
    finally:
        lock.release()


def differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """`(dotted key, old value, new value)` of every setting that differs between two nested mappings.

    A key that one of the two lacks counts as None there.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in {**before, **now}:
            yield from differences(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    elif before != now:
        yield key, before, now
