"""Rows that already speak this toolkit's language, more or less: source `jsonl`.

A row is a prompt, a prompt with a response, or a pair in the schema of PKU-SafeRLHF; or it is one of
our own records, in any format. Columns that are no field of a record are kept under `provenance`.
"""

from pathlib import Path
from typing import Any

from equipoise.data.flat import unflatten
from equipoise.data.io import parse_record
from equipoise.data.rows import Row, file_format, show
from equipoise.data.sources.columns import Columns
from equipoise.data.sources.pku import pair_values
from equipoise.records import Exchange, Pair, Prompt, Record

_ALSO = {
    "categories": ("categories", "harm_categories"),
    "prompt_is_harmful": ("prompt_is_harmful", "is_harmful_prompt"),
    "licence": ("licence", "license"),
}
"""Fields that go by another name in tables."""

_OWN = {"taxonomy", "provenance", "annotators"}
"""Columns that every record of ours has in a flat file."""


def table_row(row: Row) -> Record:
    """Read a row by the columns it has: `response_0` a pair, `response` an exchange, else a prompt."""
    columns = row.values
    kind: type[Record]
    if "answers" in columns or "response_0" in columns or "response_1" in columns:
        kind = Pair
    else:
        kind = Exchange if "response" in columns else Prompt
    is_flat = not row.path.startswith("hub:") and file_format(Path(row.path)) != "jsonl"
    if is_flat and columns.keys() >= _OWN:
        return parse_record(unflatten(row, kind), kind)
    return _record(Columns(row), kind)


def _record(columns: Columns, kind: type[Record]) -> Record:
    columns.require("prompt")
    row = columns.row
    values: dict[str, Any] = {}
    if kind is Pair and "answers" not in row.values:
        columns.require("response_0", "response_1")
        values = pair_values(columns) | _choices(columns)
    for name in kind.model_fields:
        if name in {"id", "provenance"} or values.get(name) is not None:
            continue
        if name in {"prompt", "response"}:
            values[name] = columns.text(name)
        else:
            values[name] = columns.label(*_ALSO.get(name, (name,)), to=name)
    values["id"] = _own_id(columns)
    values["source"] = values.get("source") or Path(row.path).name.split(".")[0]
    own = columns.label("provenance", to="provenance")
    if own is not None and not isinstance(own, dict):
        raise columns.error("provenance", f"expected a mapping, got {show(own)}")
    return columns.build(kind, values | {"provenance": (own or {}) | columns.rest()})


def _choices(columns: Columns) -> dict[str, Any]:
    better = columns.label("better_response_id", "better", to="better")
    safer = columns.label("safer_response_id", "safer", to="safer")
    tie = columns.label("tie", to="tie")
    if not isinstance(tie, bool | None):
        raise columns.error("tie", f"expected true or false, got {show(tie)}")
    if tie and better not in {None, "tie"}:
        raise columns.error("tie", f"a tie with a better answer, got {show(better)}")
    return {"better": "tie" if tie else better, "safer": safer}


def _own_id(columns: Columns) -> str:
    """Return the row's id as a text; empty where it has none."""
    value = columns.label("id", to="id") if not isinstance(columns.row.values.get("id"), str) else None
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise columns.error("id", f"expected a text, got {show(value)}")
    return str(value) if value is not None else columns.text("id") or ""
