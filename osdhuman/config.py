"""Settings: typed classes whose defaults are the paper's numbers, filled from YAML and `key=value`.

Each class lives beside the code that uses it and inherits from `Config`. `load_config` reads one YAML file, applies
overrides with dotted keys and reports every mistake of a run at once, each with its place, what came and, for an
unknown key, the nearest valid name.

How a value is read depends on the field, in a file as on the command line. A field of text (str, Path, a choice of
words) takes it as it is written: `run=2024-01-02`, `color_fix=off`. Any other takes it as YAML 1.2: `true`, `5e-5`,
`[1, 2]`, `null`; `no`, `off` and `1:30` are words there, not a boolean or a number.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of all settings: unknown keys are errors, instances are frozen, defaults are validated too.

    Paths that begin with `~` are those of the home folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_enum_values=True)

    @field_validator("*", mode="after")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        return _with_home(value)


def _with_home(value: Any) -> Any:
    if isinstance(value, Path):
        return Path(_home(value))
    if type(value) in (list, tuple):
        return type(value)(map(_with_home, value))
    return {key: _with_home(item) for key, item in value.items()} if type(value) is dict else value


def _home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # `~name` of nobody: a file may be called so
        return path


class ConfigError(ValueError):
    """Every mistake found in one configuration, one per line."""


def load_config(cls: type[C], path: str | Path | None = None, overrides: Iterable[str] = ()) -> C:
    """Fill `cls` from a YAML file (or its defaults), then from `key=value` strings such as `lora.rank=8`.

    Raises ConfigError with every mistake, not only the first.
    """
    values = _read_yaml(Path(path)) if path is not None else {}
    mistakes = []
    for override in overrides:
        try:
            _set(cls, values, override)
        except ConfigError as mistake:
            mistakes.append(f"  {mistake}")
    return _validated(cls, _typed(values, cls), str(path) if path is not None else cls.__name__, mistakes)


def parse_config(cls: type[C], values: Mapping[str, Any], name: str = "") -> C:
    """Validate a plain mapping against `cls`; `name` says in the error where the values came from."""
    return _validated(cls, values, name or cls.__name__)


def _validated(cls: type[C], values: Any, name: str, mistakes: Sequence[str] = ()) -> C:
    try:
        config = cls.model_validate(values)
        lines = [*mistakes]
    except ValidationError as error:
        lines = [*mistakes, *(_explain(cls, mistake) for mistake in error.errors())]
    if lines:
        raise ConfigError("\n".join([f"{len(lines)} mistake(s) in {name}:", *lines]))
    return config


def dump_config(config: Config) -> str:
    """The resolved settings as YAML, which `load_config` reads back to an equal object."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


# --------------------------------------------------------------------------------------------------------------- YAML

FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
WHOLE = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
WORDS |= {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}


class Plain(str):
    """A scalar without quotes: text, or what YAML 1.2 makes of it, as the field decides."""

    def value(self) -> Any:
        if self in WORDS:
            return WORDS[self]
        if WHOLE.fullmatch(self):
            return int(self, 0) if self[:2] in ("0o", "0x") else int(self)
        return float(self.lower().replace(".inf", "inf").replace(".nan", "nan")) if FLOAT.fullmatch(self) else str(self)


class _Loader(yaml.SafeLoader):
    """YAML whose plain scalars stay `Plain`, and in which no key stands twice."""

    yaml_implicit_resolvers: ClassVar[dict] = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # the merge key

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        own = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and own.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around every text that YAML 1.1 or 1.2 would read as something else."""


_Loader.add_implicit_resolver("!plain", re.compile(r"[\s\S]*"), None)
_Loader.add_constructor("!plain", lambda loader, node: Plain(node.value))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, None)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", WHOLE, None)


def load_yaml(content: str | bytes) -> Any:
    """The value of YAML 1.2 text, no field deciding. Raises yaml.YAMLError."""
    return _typed(yaml.load(content, Loader=_Loader), Any)  # a SafeLoader: builds no objects


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1, cutoff=0.3)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"config file {path} does not exist{hint}")
    try:
        values = yaml.load(path.read_bytes(), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if values is None or (isinstance(values, Plain) and values.value() is None):
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, but holds a {type(values).__name__.lower()}")
    return values


# -------------------------------------------------------------------------------------------------- what a field takes


def _kinds(annotation: Any) -> list[Any]:
    """The alternatives of a field: `Path | None` -> [Path, None]; what Annotated adds is left out."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    return [annotation]


def _scalars(annotation: Any) -> list[Any]:
    """The kinds that a single value may have; where a field takes lists only, those of its items."""
    kinds = _kinds(annotation)
    single = [kind for kind in kinds if kind is not type(None) and _item(kind) is None and not _is_model(kind)]
    return single or [scalar for kind in kinds if (item := _item(kind)) is not None for scalar in _scalars(item)]


def _item(kind: Any, place: int = 0) -> Any:
    """What a list or mapping of this kind holds; None for other kinds."""
    origin, args = get_origin(kind), get_args(kind)
    if not isinstance(origin, type) or not issubclass(origin, Sequence | Mapping | set | frozenset) or not args:
        return None
    if issubclass(origin, Mapping):
        return args[1]
    return args[place] if origin is tuple and Ellipsis not in args and place < len(args) else args[0]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_text(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return all(isinstance(choice, str) for choice in get_args(kind))
    return isinstance(kind, type) and issubclass(kind, str | Path)  # an Enum of text is a str too


def _takes_text(annotation: Any) -> bool:
    """Whether a single value of this field is text, whatever it looks like."""
    scalars = _scalars(annotation)
    return bool(scalars) and all(map(_is_text, scalars))


def _typed(value: Any, annotation: Any) -> Any:
    """Decide for every `Plain` in `value` whether it is text, by the field that it is for."""
    if isinstance(value, Plain):
        return _typed_scalar(value, annotation)
    if isinstance(value, dict):
        return {str(key): _typed(item, _field(annotation, str(key))) for key, item in value.items()}
    if isinstance(value, list):
        lists = [kind for kind in _kinds(annotation) if _item(kind) is not None]
        return [
            _typed(item, Union[tuple(_item(kind, place) for kind in lists)] if lists else Any)  # noqa: UP007
            for place, item in enumerate(value)
        ]
    return value


def _typed_scalar(value: Plain, annotation: Any) -> Any:
    kinds = _kinds(annotation)
    if type(None) in kinds and value.value() is None and value != "~":
        return None
    words = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    word = value.strip("'\"")  # a choice may stand in quotes: kind='null'
    if word in words:
        return word
    return str(value) if _takes_text(annotation) else value.value()


def _field(annotation: Any, name: str) -> Any:
    """What the key `name` of a section takes; Any where nothing is said."""
    models = [kind for kind in _kinds(annotation) if _is_model(kind)]
    found = [model.model_fields[name].annotation for model in models if name in model.model_fields]
    found += [_item(kind) for kind in _kinds(annotation) if _is_mapping(kind)]
    return Union[tuple(found)] if found else Any  # noqa: UP007


def _is_mapping(kind: Any) -> bool:
    return isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping)


# ---------------------------------------------------------------------------------------------------------- overrides

NAME = r'"[^"]*"|\[[^\]=]*\]|[^.="\[\]]+'
KEY = re.compile(rf"(?:{NAME})(?:\.?(?:{NAME}))*")


def _set(cls: type[BaseModel], values: dict[str, Any], override: str) -> None:
    """Put one `key=value` into the nested `values`. Raises ConfigError."""
    key = KEY.match(override)
    if key is None or not override[key.end() :].startswith("="):
        raise ConfigError(f"override {override!r} must have the form key=value, for example lora.rank=8")
    text, annotation, section = override[key.end() + 1 :], cls, values
    *names, last = _names(cls, re.findall(NAME, key[0]))
    for name in names:
        annotation = _field(annotation, name)
        section = _below(section, name)
    value = _parsed(text, _field(annotation, last) if not isinstance(section, list) else _listed(annotation), key[0])
    if isinstance(section, list):
        section[_place(section, last)] = value
    else:
        section[last] = value


def _listed(annotation: Any) -> Any:
    lists = [_item(kind) for kind in _kinds(annotation) if _item(kind) is not None]
    return lists[0] if lists else Any


def _below(section: Any, name: str) -> Any:
    """The section or list under `name`; one that is missing, or a single value, becomes an empty section."""
    if isinstance(section, list):
        return section[_place(section, name)]
    if not isinstance(section.get(name), dict | list):
        section[name] = {}
    return section[name]


def _place(items: list, name: str) -> int:
    if not name.isdecimal() or int(name) >= len(items):
        raise ConfigError(f"{name!r} is no place of a list of {len(items)}")
    return int(name)


def _names(cls: type[BaseModel], parts: list[str]) -> list[str]:
    """Take quotes and brackets off; join what was split inside a free name: `methods`, `OSEDiff-1.0`, `images`."""
    names: list[str] = []
    annotation: Any = cls
    while parts:
        free = [_item(kind) for kind in _kinds(annotation) if _is_mapping(kind)]
        length = _free_length(parts, free[0]) if free and parts[0][0] not in '"[' else 1
        names.append(".".join(map(_bare, parts[:length])))
        annotation, parts = _field(annotation, names[-1]), parts[length:]
    return names


def _bare(part: str) -> str:
    return part[1:-1] if part[0] in '"[' else part


def _free_length(parts: list[str], item: Any) -> int:
    """How many parts are the name of an entry: all up to a field of the entry, all of them where it is a value."""
    fields = {name for kind in _kinds(item) if _is_model(kind) for name in kind.model_fields}
    if not fields:
        return len(parts) if _item(_kinds(item)[0]) is None and item is not Any else 1
    return next((place for place, part in enumerate(parts) if place and part in fields), 1)


def _parsed(text: str, annotation: Any, key: str) -> Any:
    """The value of an override: text for a field of text, otherwise YAML whose scalars the field still decides on."""
    if not text and Path in _kinds(annotation):
        raise ConfigError(f"{key}: expected a path after the =, got nothing")
    lists = any(_item(kind) is not None or _is_model(kind) for kind in _kinds(annotation))
    if _takes_text(annotation) and not (lists and text.lstrip().startswith(("[", "{"))):
        return Plain(text)
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        if _takes_text(annotation):
            return Plain(text)
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise ConfigError(f"{key}: {text!r} is not valid YAML ({problem}); put quotes around text in it") from None


# ----------------------------------------------------------------------------------------------------------- mistakes


def _explain(cls: type[BaseModel], mistake: Any) -> str:
    place = ".".join(map(str, mistake["loc"]))
    if mistake["type"] == "extra_forbidden":
        names = _field_names(cls, mistake["loc"][:-1])
        near = get_close_matches(str(mistake["loc"][-1]), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid names: {', '.join(sorted(names))}"
        return f"  {place}: unknown key; {hint}{_about_dots(cls, mistake['loc'])}"
    got = "" if mistake["type"] == "missing" else f", got {mistake['input']!r}"
    return f"  {place or cls.__name__}: {mistake['msg']}{got}"


def _about_dots(cls: type[BaseModel], location: tuple) -> str:
    """How to write a free name with a dot, where the unknown key stands right behind such a name."""
    annotation: Any = cls
    for place, part in enumerate(location[:-1]):
        if any(map(_is_mapping, _kinds(annotation))) and place == len(location) - 2:
            start = ".".join(map(str, location[:place]))
            return f"; a name with a dot is put in brackets: '{start}[{part}.{location[-1]}]...=...'"
        annotation = _field(annotation, str(part))
    return ""


def _field_names(cls: type[BaseModel], location: tuple) -> list[str]:
    for part in location:
        field = cls.model_fields.get(str(part))
        if field is None:  # the tag of a union, or an index into a list: stay in this class
            continue
        models = [kind for kind in _leaves(field.annotation) if _is_model(kind)]
        cls = next(iter(models), cls)
    return list(cls.model_fields)


def _leaves(annotation: Any) -> list[Any]:
    kinds = _kinds(annotation)
    return [leaf for kind in kinds for leaf in (_leaves(_item(kind)) if _item(kind) is not None else [kind])]
