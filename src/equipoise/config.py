"""Settings: class defaults < YAML file < `--set a.b=1`. An unknown key is an error with the near name.

YAML is read as version 1.2, so that `lr: 1e-5` is a number and `lang: no` is a text.
"""

import inspect
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from equipoise.errors import ConfigError, DataError, near


class Config(BaseModel):
    """Base of every run's settings: frozen, unknown keys refused. Holds values, never objects."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def changed(self) -> set[str]:
        """Names of the settings that are not their default; all are said in the file that a run keeps."""
        fields = type(self).model_fields.items()
        return {name for name, f in fields if getattr(self, name) != f.get_default(call_default_factory=True)}


class IsInput:
    """Marks a setting that names something to read; its content is part of a run's identity."""

    def __init__(self, *but: str) -> None:
        """Hold the values that are words of the setting's own, whatever lies under such a name."""
        self.but = but


class IsAside:
    """Marks a setting that changes how a run goes but not what comes out; it may differ on a resume."""


class IsLater:
    """Marks a setting that came later: where it is None the run has the identity that it had without it."""


InputPath = Annotated[Path, IsInput()]
"""A file or folder that the run reads."""

ModelRef = Annotated[str, IsInput()]
"""A model to read: a built-in name such as `minilm`, a folder, or a hub id."""

TaxonomyRef = Annotated[str, IsInput()]
"""Name of a built-in taxonomy, or the path of a `.yaml` file."""

C = TypeVar("C", bound=BaseModel)


def _parser() -> YAML:
    parser = YAML(typ="safe", pure=True)
    parser.version = (1, 2)
    parser.default_flow_style = False
    return parser


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; a missing, broken or non-mapping file raises ConfigError with its line."""
    try:
        data = _parser().load(path.read_text("utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: byte {exc.start} is not UTF-8") from exc
    except YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not YAML, {getattr(exc, 'problem', exc)}") from exc
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, got {type(data).__name__}")
    return data


def to_yaml(data: Mapping[str, Any]) -> str:
    """Write a mapping of plain values as YAML text."""
    out = io.StringIO()
    parser = _parser()
    parser.version = None  # no `%YAML 1.2` line at the top
    parser.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    parser.dump(dict(data), out)
    return out.getvalue()


def parse_override(item: str) -> tuple[list[str], Any]:
    """Split `a.b=1` into its keys and its value, read as YAML.

    >>> parse_override("optim.lr=1e-5")
    (['optim', 'lr'], 1e-05)
    """
    dotted, equals, raw = item.partition("=")
    if not equals or not all(dotted.split(".")):
        raise ConfigError(f"--set {item}: expected key=value, for example optim.lr=1e-5")
    try:
        return dotted.split("."), _parser().load(raw)
    except YAMLError as exc:
        raise ConfigError(f"--set {item}: the value is not YAML") from exc


def apply_override(data: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set a nested key in place; a key that is a value and not a section raises ConfigError."""
    *parents, leaf = keys
    for name in parents:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {'.'.join(keys)}: '{name}' is a value, not a section")
    data[leaf] = value


def load_config(kind: type[C], path: Path | None = None, overrides: Sequence[str] = ()) -> C:
    """Build a config: class defaults < file < overrides such as `optim.lr=1e-5`."""
    data = read_yaml(path) if path else {}
    for item in overrides:
        apply_override(data, *parse_override(item))
    return parse_config(kind, data, str(path or "command line"))


def parse_config(kind: type[C], data: Mapping[str, Any], where: str) -> C:
    """Check a mapping against a config class; `where` names its origin in the error."""
    try:
        return kind.model_validate(data)
    except ValidationError as exc:
        raise ConfigError(explain(where, kind, exc)) from exc


def explain(where: str, kind: type[BaseModel], exc: ValidationError) -> str:
    """Return `where: key: what is wrong` for the first error, and how many more there are.

    Unknown keys come first: a misspelt one explains the missing one.
    """
    first, *rest = sorted(exc.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        message = f"no such setting{near(str(first['loc'][-1]), _keys(kind, first['loc'][:-1]))}"
    elif first["type"] == "missing":
        message = "missing"
    elif first["type"] == "value_error" and isinstance(first["input"], dict | BaseModel):
        message = first["msg"].removeprefix("Value error, ")  # a check across fields names them itself
    else:
        message = f"{first['msg'].removeprefix('Value error, ')}, got {_short(first['input'])}"
    more = f" (and {len(rest)} more)" if rest else ""
    return ": ".join(part for part in (where, key, message) if part) + more


def _short(value: object) -> str:
    if isinstance(value, dict | BaseModel):
        return "a mapping"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Names of the settings that are allowed at `path` inside `kind`."""
    for part in path:
        field = kind.model_fields.get(str(part))
        if field is None:  # a place in a list, or a key of the user's in a mapping
            continue
        inner = [t for t in _types(field.annotation) if t is not None]
        models = [t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)]
        if not models:
            return []
        kind = models[0]
    return [field.alias or name for name, field in kind.model_fields.items()]


def _types(annotation: Any) -> list[Any]:
    return [annotation, *(leaf for arg in get_args(annotation) for leaf in _types(arg))]


def find_inputs(
    config: BaseModel, prefix: str = "", *, exists: Callable[[Path], bool] = Path.exists
) -> dict[str, Path]:
    """Return the settings marked as inputs, by dotted name; those that are None are left out.

    A model reference that is no path on this disk (`minilm`, a hub id) is identified by its name. A path
    of which `exists` is false raises DataError; a recipe knows of files that are yet to be made.
    """
    found: dict[str, Path] = {}
    hints = get_type_hints(type(config), include_extras=True)
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            found |= find_inputs(value, f"{prefix}{name}.", exists=exists)
        elif settings := _models_in(value):
            for part, item in settings:
                found |= find_inputs(item, f"{prefix}{name}.{part}.", exists=exists)
        elif value is not None and (mark := _mark(hints[name])):
            items = (
                value.items()
                if isinstance(value, Mapping)
                else (enumerate(value) if isinstance(value, list | tuple) else [(None, value)])
            )
            for part, item in items:
                if item in mark.but:
                    continue
                where = prefix + name + ("" if part is None else f".{part}")
                if isinstance(item, Path) and not exists(item):
                    raise DataError(f"{where}: {item}: no such file or folder")
                found[where] = Path(item)
    return found


def _models_in(value: Any) -> list[tuple[Any, BaseModel]]:
    """Return the settings among the values of a mapping, by key, or of a sequence, by place."""
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    return [(key, item) for key, item in pairs if isinstance(item, BaseModel)]


def deciding(config: BaseModel) -> dict[str, Any]:
    """Return the settings as plain values, without those marked `IsAside`, or `IsLater` and None."""
    settings = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if any(
            isinstance(mark, IsAside) or (value is None and isinstance(mark, IsLater))
            for mark in field.metadata
        ):
            del settings[name]
        elif isinstance(value, BaseModel):
            settings[name] = deciding(value)
    return settings


def _mark(annotation: Any) -> IsInput | None:
    own = [mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, IsInput)]
    below = (_mark(part) for part in getattr(annotation, "__args__", ()))
    return next((mark for mark in (*own, *below) if mark), None)


def bind(
    setting: str, table: Mapping[str, Callable[..., Any]], name: str, params: Mapping[str, Any]
) -> Callable[..., Any]:
    """Pick `table[name]` and fix its keyword-only parameters. The signature is the schema.

    `setting` gave the name, and `SETTING_params` the parameters; errors say which of both is wrong.
    """
    if name not in table:
        raise ConfigError(f"{setting}: got '{name}'{near(name, table)}; expected one of {', '.join(table)}")
    signature = inspect.signature(table[name]).parameters.values()
    accepted = [p.name for p in signature if p.kind is p.KEYWORD_ONLY]
    for key in params:
        if key not in accepted:
            known = ", ".join(accepted) or "nothing"
            raise ConfigError(
                f"{setting}_params: '{name}' takes no '{key}'{near(key, accepted)}; it takes: {known}"
            )
    return partial(table[name], **params)
