"""Names of result files: one per input, different from each other, and the same when inputs are added later."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path


def as_png(name: Path) -> Path:
    """`a.jpg` -> `a.png`."""
    return name.with_suffix(".png")


def result_names(
    names: Iterable[Path], wanted: Callable[[Path], Path] = as_png, known: Mapping[Path, Path] | None = None
) -> dict[Path, Path]:
    """The result's name for each of `names` (different paths below one folder): `wanted(name)` where that is free.

    Where several inputs want one name, as `a.jpg` and `a.png` do, the one that already has it takes it; for the others
    the suffix is appended to the whole name: `a.jpg.png`. `known` are names given by earlier runs (input -> result):
    they stay, so that no result changes its name when inputs are added.
    """
    names, known = sorted(set(names)), known or {}
    results = {name: known[name] for name in names if name in known and _fits(known[name], name, wanted(name))}
    taken = set(results.values())
    for name in sorted(names, key=lambda name: (name != wanted(name), name)):
        if name not in results:
            results[name] = _free(name, wanted(name), taken)
            taken.add(results[name])
    return results


def _fits(known: Path, name: Path, wanted: Path) -> bool:
    """Whether a name of an earlier run is one that this input can have with the settings of today."""
    appended = known.parent == name.parent and known.name.startswith(name.name)
    return known.suffix == wanted.suffix and (known == wanted or appended)


def _free(name: Path, wanted: Path, taken: set[Path]) -> Path:
    result = wanted
    if result in taken:
        result = name.with_name(name.name + wanted.suffix)
    while result in taken:
        result = result.with_name(result.name + wanted.suffix)
    return result
