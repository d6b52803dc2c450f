"""`${...}` in a recipe: a setting, the place of a step's output, or a file of the built-in corpus."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from equipoise.data.corpus import corpus_path
from equipoise.errors import ConfigError, near

_REFERENCE = re.compile(r"\$\{([^}]+)\}")


def resolve(value: Any, settings: Mapping[str, Any], places: Mapping[str, Path]) -> Any:
    """Put settings and places where `${...}` stands, also inside lists and mappings.

    A text that is one reference and nothing else takes the type of what it names.

    Args:
        value: What a recipe says, for example a step's `with`.
        settings: What `${settings.a.b}` is looked up in.
        places: Step -> where its output lies, for `${steps.NAME}`.

    Raises:
        ConfigError: a reference names nothing.

    >>> resolve({"seed": "${settings.seed}", "at": "${steps.a}/x"}, {"seed": 3}, {"a": Path("made")})
    {'seed': 3, 'at': 'made/x'}
    """

    def find(reference: str) -> Any:
        kind, _, rest = reference.partition(".")
        if kind == "steps" and rest in places:
            return str(places[rest])
        if kind == "builtin":
            return str(corpus_path(rest))
        node: Any = {"settings": settings}
        for key in reference.split("."):
            if not isinstance(node, dict) or key not in node:
                known = [*_dotted("settings", settings), *(f"steps.{name}" for name in places)]
                raise ConfigError(f"'${{{reference}}}' names no setting and no step{near(reference, known)}")
            node = node[key]
        return node

    return _substitute(value, find)


def mentioned(value: Any, kind: str = "steps") -> set[str]:
    """Return the names that a value's references of one kind refer to.

    >>> sorted(mentioned(["${steps.a}/x", "${settings.b.c}", "${steps.d}"]))
    ['a', 'd']
    >>> mentioned("${settings.b.c}/x", "settings")
    {'b.c'}
    """
    found: set[str] = set()

    def look(reference: str) -> str:
        word, _, rest = reference.partition(".")
        if word == kind:
            found.add(rest)
        return ""

    _substitute(value, look)
    return found


def _dotted(prefix: str, node: Mapping[str, Any]) -> list[str]:
    """Names of all settings as a reference spells them."""
    inner = [
        name
        for key, item in node.items()
        if isinstance(item, dict)
        for name in _dotted(f"{prefix}.{key}", item)
    ]
    return [f"{prefix}.{key}" for key in node] + inner


def _substitute(value: Any, find: Callable[[str], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(item, find) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, find) for item in value]
    if not isinstance(value, str):
        return value
    if whole := _REFERENCE.fullmatch(value):
        return find(whole[1])
    return _REFERENCE.sub(lambda match: str(find(match[1])), value)
