"""The evaluation set of OpenAI's moderation paper (Markov et al. 2022): texts with partly known labels.

A label that is absent is not known. A text stands as the response to an empty prompt: it is content,
not always a question.
"""

from equipoise.data.rows import Row, show
from equipoise.data.sources.columns import Columns
from equipoise.records import Exchange

_LABELS = {"S": "sexual", "H": "hate", "V": "violence", "HR": "harassment", "SH": "self-harm"}
_SEVERER = {"S": ("S3", 3), "H": ("H2", 2), "V": ("V2", 2)}
"""Label -> the label of its severer form, and the level that this one stands for in `openai5`."""


def openai_moderation(row: Row) -> Exchange:
    """Read a text with its labels; it is safe only where all five were looked at and none was found."""
    columns = Columns(row)
    columns.require("prompt")
    levels: dict[str, int] = {}
    for label, name in _LABELS.items():
        level = _level(columns, label)
        if level is not None:
            levels[name] = level
    found = any(levels.values())
    values = {
        "id": "",
        "prompt": "",
        "response": columns.text("prompt", "response"),
        "is_safe": False if found else True if len(levels) == len(_LABELS) else None,
        "categories": [name for name, level in levels.items() if level] if levels else None,
        "rated": None if len(levels) == len(_LABELS) else list(levels),
        "category_severity": levels or None,
        "taxonomy": "openai5",
    }
    origin = {"source": "openai-moderation", "label_origin": "human", "provenance": columns.rest()}
    return columns.build(Exchange, values | origin)


def _level(columns: Columns, label: str) -> int | None:
    """Return the level of one category in `openai5`; None where nobody labelled it."""
    found = _flag(columns, label)
    severer, level = _SEVERER.get(label, ("", 0))
    severe = _flag(columns, severer) if severer else None
    if severe and found is False:
        raise columns.error(severer, f"the severer form of {label}, which is 0, got 1")
    if severe:
        return level
    return None if found is None else int(found)


def _flag(columns: Columns, name: str) -> bool | None:
    value = columns.label(name, to=name)
    if value not in (0, 1, None):
        raise columns.error(name, f"expected 0 or 1, got {show(value)}")
    return None if value is None else bool(value)
