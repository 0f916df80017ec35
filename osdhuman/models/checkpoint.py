"""Read weight files safely, and load them strictly into a network.

Every failure is one line that names the file, says why, and ends with where the file is published.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor, nn

from osdhuman.files import printable

LONGEST_REASON = 200  # characters of a library's message that are repeated


def read_checkpoint(path: str | Path, published: str, wrappers: Sequence[str] = ("model",)) -> dict[str, Tensor]:
    """Tensors of a PyTorch file by name, found under one of `wrappers` or at the top level; errors as `read_content`.

    Memory-mapped: tensors that are not used are not read.
    """
    content = read_content(path, published)
    for wrapper in wrappers:
        content = content.get(wrapper, content) if isinstance(content, dict) else content
    if not is_state(content):
        under = " or ".join(map(repr, wrappers))
        raise ValueError(
            f"{printable(path)} must hold a dictionary of tensors, at the top level or under {under}. {published}"
        )
    return content


def is_state(content: object) -> bool:
    """Whether `content` is a dictionary of tensors by name."""
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    )


def read_content(path: str | Path, published: str) -> Any:
    """Whatever a PyTorch file holds, on the CPU. Only tensors and plain values are read: no code in it runs.

    Memory-mapped unless the file has the format of before PyTorch 1.6. `published` says where the file is found and
    ends each error. Raises FileNotFoundError, and ValueError for a file that cannot be read, for whatever reason.
    """
    _require_file(path, published)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # a damaged pickle raises nearly any type: UnicodeDecodeError, KeyError, struct.error
        raise ValueError(
            f"{printable(path)} is not a readable PyTorch checkpoint of tensors: {_why_not_loaded(error)}. {published}"
        ) from error


def read_safetensors(path: str | Path, published: str) -> dict[str, Tensor]:
    """Tensors of a .safetensors file by name. Raises FileNotFoundError and ValueError, which end with `published`."""
    from safetensors.torch import load_file

    _require_file(path, published)
    try:
        return load_file(path)
    except Exception as error:
        raise ValueError(
            f"{printable(path)} is not a readable safetensors file: {first_line(error)}. {published}"
        ) from error


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str, published: str) -> None:
    """Give `module` exactly the tensors of `state`, as float32 and without a copy.

    Raises ValueError that names every tensor which is missing, unexpected or of another shape (the first few of each);
    `published` ends it: where the file is found.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    mistakes = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {shape}"
            for name, shape in expected.items()
            if name in state and tuple(state[name].shape) != shape
        ],
    }
    if any(mistakes.values()):
        found = "; ".join(f"{len(names)} {kind}: {_few(names)}" for kind, names in mistakes.items() if names)
        raise ValueError(f"these weights do not fit the {what}: {found}. {published}")
    module.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)


def first_line(error: BaseException) -> str:
    """An error as part of one line: its type if the message does not speak for itself, and the message's first line."""
    lines = str(error).strip().splitlines()
    reason = printable(lines[0].strip().rstrip(".")) if lines else ""
    reason = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} ..."
    named = isinstance(error, RuntimeError | OSError | ValueError) and not isinstance(error, UnicodeError)
    return reason if reason and named else f"{type(error).__name__} {reason}".strip()


def _why_not_loaded(error: Exception) -> str:
    """PyTorch's reason without its advice, which is to load the file with the protection switched off."""
    if forbidden := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):
        return f"it refers to {printable(forbidden[1])}, and loading that could run code"
    if "TorchScript" in str(error):
        return "it is a TorchScript archive, which is a program"
    if "weights_only" in str(error) or "Weights only" in str(error):
        return "it is damaged, or holds more than tensors and plain values"
    return first_line(error)


def _require_file(path: str | Path, published: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{printable(path)} does not exist. {published}")


def _few(names: list[str], limit: int = 5) -> str:
    return ", ".join(map(printable, names[:limit])) + (", ..." if len(names) > limit else "")
