"""JSON as data files must hold it, and where a text that is no JSON breaks off.

Stricter than Python's own reader: what would be read as something else than was written, or could not
be written again, is refused (a name twice in one object, NaN, a number out of range, half of a surrogate
pair).
"""

import json
import math
import re
from typing import Any, NoReturn

LINE = "line"
"""What stands for the field where it cannot be told."""

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[{}\[\],:]|[^\s{}\[\],:"]++')
_WORDS = ("true", "false", "null")
_DEEPEST = 5
"""Parts of a field's name that are shown; a text of brackets only nests deeper."""


class JsonError(ValueError):
    """A text that is no JSON, or none that a record can hold; never shows the text."""

    def __init__(self, field: str, what: str) -> None:
        """Hold the field, or `line` where it cannot be told, and what is wrong with it."""
        super().__init__(f"{field}: {what}")
        self.field = field
        self.what = what


def load_json(text: str) -> Any:
    """Read one JSON value; anything else raises JsonError.

    >>> load_json('{"severity": 1, "severity": 2}')
    Traceback (most recent call last):
    equipoise.data.json_text.JsonError: severity: stands twice in one object
    """
    try:
        value = _DECODER.decode(text)
        if "\\u" in text:
            _refuse_surrogates(value)
    except JsonError:
        raise
    except json.JSONDecodeError as exc:
        raise JsonError(*_explain(text, exc)) from None
    except RecursionError:
        raise JsonError(LINE, "not JSON that can be read: nested too deep") from None
    except ValueError as exc:  # a whole number of more digits than Python reads
        raise JsonError(LINE, f"not JSON: {str(exc)[:60]}") from None
    return value


def field_at(text: str) -> str:
    """Name of the field whose value a JSON text breaks off in, dotted; `line` where it is in none.

    >>> field_at('{"id": "x", "answers": [{"response": "cut off he')
    'answers.0.response'
    >>> field_at('{"id": "x", "answers": [{"resp'), field_at('{"id": "x", "answ')
    ('answers.0', 'line')
    """
    stack, is_complete = _end(text)
    return _dotted(stack[:-1] if is_complete else stack)


def _explain(text: str, error: json.JSONDecodeError) -> tuple[str, str]:
    before, rest = text[: error.pos], text[error.pos :].strip()
    if not rest or error.msg.startswith("Unterminated string") or any(w.startswith(rest) for w in _WORDS):
        return field_at(before), f"the line is cut off after character {len(text.rstrip())}"
    # behind a complete value, that value is what went wrong: it holds a quote that is not escaped
    what = error.msg[0].lower() + error.msg[1:].removesuffix(" at")
    return _dotted(_end(before)[0]), f"not JSON: {what} at character {error.pos + 1}"


def _end(text: str) -> tuple[list[str | int], bool]:
    """Return what a JSON text ends in or behind, and whether a value or a name is complete there.

    That is, of every open bracket, the name or the index that it has come to.
    """
    stack: list[str | int] = []
    expected = "value"
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in {"{", "["}:
            stack.append("" if token == "{" else 0)
            expected = "name" if token == "{" else "value"
        elif token in {"}", "]"}:
            stack, expected = stack[:-1], "nothing"
        elif token == ",":
            top = stack.pop() if stack else ""
            stack.append(top + 1 if isinstance(top, int) else "")
            expected = "value" if isinstance(top, int) else "name"
        elif token == ":":
            expected = "value"
        elif expected == "name" and stack:
            stack[-1], expected = token.strip('"'), "colon"
        elif token[0] != '"' or (len(token) > 1 and token[-1] == '"'):  # else a text without an end
            expected = "nothing"
    return stack, expected != "value"


def _dotted(stack: list[str | int]) -> str:
    if not stack or isinstance(stack[0], int) or not stack[0]:
        return LINE
    return ".".join(str(part) for part in stack[:_DEEPEST] if part != "")


def _refuse_surrogates(value: Any) -> None:
    items = value.items() if isinstance(value, dict) else [(LINE, value)]
    for name, item in items:
        if _SURROGATE.search(name):
            raise JsonError(LINE, "half of a surrogate pair in a name, which is no Unicode text")
        if _SURROGATE.search(json.dumps(item, ensure_ascii=False)):
            raise JsonError(name, "half of a surrogate pair, which is no Unicode text")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise JsonError(next(name for name in names if names.count(name) > 1), "stands twice in one object")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise JsonError(LINE, f"not JSON that can be kept: the number {text[:20]} is out of range")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise JsonError(LINE, f"not JSON: {name} is no JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant)
