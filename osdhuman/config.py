"""Settings: typed classes whose defaults are the paper's numbers, filled from YAML and `key=value`.

Each class lives beside the code that uses it and inherits from `Config`. `load_config` reads one YAML file, applies
overrides with dotted keys and reports every mistake of a run at once, each with its place, what came and, for an
unknown key, the nearest valid name.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of all settings: unknown keys are errors, instances are frozen, defaults are validated too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_enum_values=True)


class ConfigError(ValueError):
    """Every mistake found in one configuration, one per line."""


def load_config(cls: type[C], path: str | Path | None = None, overrides: Iterable[str] = ()) -> C:
    """Fill `cls` from a YAML file (or its defaults), then from `key=value` strings such as `lora.rank=8`.

    Values are YAML: `true`, `5e-5`, `[1, 2]`, `null`. Raises ConfigError with every mistake, not only the first.
    """
    values = _read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _set(values, override)
    return parse_config(cls, values, str(path) if path is not None else cls.__name__)


def parse_config(cls: type[C], values: Mapping[str, Any], name: str = "") -> C:
    """Validate a plain mapping against `cls`; `name` says in the error where the values came from."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        lines = [_explain(cls, mistake) for mistake in error.errors()]
        raise ConfigError("\n".join([f"{len(lines)} mistake(s) in {name or cls.__name__}:", *lines])) from None


def dump_config(config: Config) -> str:
    """The resolved settings as YAML, which `load_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1, cutoff=0.3)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"config file {path} does not exist{hint}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path} must hold `key: value` lines, but holds a {type(values).__name__}")
    return values or {}


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} must have the form key=value, for example lora.rank=8")
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[last] = yaml.safe_load(text)


def _explain(cls: type[BaseModel], mistake: Any) -> str:
    place = ".".join(map(str, mistake["loc"]))
    if mistake["type"] == "extra_forbidden":
        names = _field_names(cls, mistake["loc"][:-1])
        near = get_close_matches(str(mistake["loc"][-1]), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid names: {', '.join(sorted(names))}"
        return f"  {place}: unknown key; {hint}"
    got = "" if mistake["type"] == "missing" else f", got {mistake['input']!r}"
    return f"  {place or cls.__name__}: {mistake['msg']}{got}"


def _field_names(cls: type[BaseModel], location: tuple) -> list[str]:
    for part in location:
        field = cls.model_fields.get(str(part))
        if field is None:  # the tag of a union, or an index into a list: stay in this class
            continue
        kinds = [field.annotation, *get_args(field.annotation)]
        cls = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), cls)
    return list(cls.model_fields)
