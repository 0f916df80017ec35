"""Classes by name that are imported only when they are asked for: `name -> "module:Class"`."""

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module


def find_class(name: str, registry: Mapping[str, str], what: str) -> type:
    """The class registered as `name`. Raises ValueError with the nearest name; `what` says what is looked for."""
    if name not in registry:
        near = get_close_matches(name, registry, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(registry)}"
        raise ValueError(f"unknown {what} {name!r}; {hint}")
    module, _, kind = registry[name].partition(":")
    return getattr(import_module(module), kind)
