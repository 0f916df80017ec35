"""What all commands share: how an error, Ctrl-C and SIGTERM end them, with one line and an exit code."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SETTINGS, INTERRUPTED, TERMINATED = 2, 130, 143  # exit codes


# Libraries that restoring with OSDHuman does not need, by the extra of pyproject.toml that brings them.
EXTRAS = {
    "methods": {"spandrel"},
    "train": {"lpips", "stlpips_pytorch", "tensorboard"},
    "eval": {"matplotlib", "polars", "scipy", "stlpips_pytorch"},
    "curate": {"duckdb", "ijson", "matplotlib", "onnxruntime", "polars", "pyarrow", "simplejpeg"},
}


class Terminated(BaseException):
    """SIGTERM reached this process; not an Exception, so that no handler of errors takes it for one."""


def run_command(
    name: str,
    work: Callable[[], int],
    progress: Callable[[], str] = lambda: "the same command continues",
    errors: tuple[type[Exception], ...] = (ValueError, OSError, ImportError),
) -> int:
    """Run `work` and return its exit code; `errors` end with one message and code 2.

    Ctrl-C ends with code 130, SIGTERM with 143, each with one line: `progress()` says what is done and how to continue.
    """
    previous = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        return work()
    except errors as error:
        return _end(f"{name}: {_missing_extra(error, name) or error}", SETTINGS)
    except KeyboardInterrupt:
        return _end(f"{name}: interrupted; {progress()}", INTERRUPTED)
    except Terminated:
        return _end(f"{name}: terminated; {progress()}", TERMINATED)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _missing_extra(error: Exception, command: str) -> str | None:
    """How to install a library that is missing, if an extra brings it; of several extras the command's own."""
    library = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    extras = [extra for extra, libraries in EXTRAS.items() if library in libraries]
    if not extras:
        return None
    own = "curate" if command == "hq_acf" else command
    return f"{library} is not installed; pip install 'osdhuman[{own if own in extras else extras[0]}]'"


@contextmanager
def deferred() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block ends; for imports, as an interrupted one of torch may crash."""
    received: list[int] = []
    stopping = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in stopping}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


def _end(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def _raise_terminated(signum: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the clean-up
    raise Terminated
