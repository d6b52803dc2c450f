"""The labels of a table in our words: a column's values translated by a map that the user gives."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from equipoise.data.rows import LineError, OnBad, Row, show
from equipoise.errors import DataError

Values = Mapping[str, Mapping[str, str | int | bool | None]]
"""Column (by the name that the source expects) -> its value as text -> what stands for it."""


def translate(rows: Iterable[Row], values: Values, on_bad: OnBad) -> Iterator[Row]:
    """Yield rows whose values are translated; a value that the map does not name is a bad row.

    Values are told by their text: 0 by `0`, true by `true`. Where nothing is known (null, an empty cell, or
    no such column) nothing is translated; a column that no row has raises DataError.

    >>> rows = [Row("answers.jsonl", 1, {"refusal": False, "prompt": "How?"})]
    >>> [row.values for row in translate(rows, {"refusal": {"true": "full", "false": "none"}}, print)]
    [{'refusal': 'none', 'prompt': 'How?'}]
    """
    unseen, row = set(values), None
    for row in rows:
        unseen -= row.values.keys()
        try:
            new = {column: _meaning(row, column, known) for column, known in values.items()}
        except LineError as error:
            on_bad(error)
            continue
        yield row._replace(values=row.values | {k: v for k, v in new.items() if k in row.values})
    if unseen and row is not None:
        raise DataError(f"values: no row has a column '{min(unseen)}'")


def with_labels(rows: Iterable[Row], labels: Mapping[str, str | int | bool]) -> Iterator[Row]:
    """Yield rows with labels where they say nothing themselves: no such column, null, or an empty cell."""
    for row in rows:
        new = {name: label for name, label in labels.items() if row.values.get(name) in (None, "")}
        yield row._replace(values=row.values | new) if new else row


def _meaning(row: Row, column: str, known: Mapping[str, Any]) -> Any:
    value = row.values.get(column)
    if value is None or value == "":
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    if text not in known:
        listed = ", ".join(known)
        raise LineError(
            row.path, row.line, column, f"values has no meaning for it, got {show(value)}; known: {listed}"
        )
    return known[text]
