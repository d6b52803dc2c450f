"""Records in Parquet and CSV, which have columns and no nesting as JSON has it.

A chat goes to the column `messages`, `provenance` is JSON text, and in CSV every list is. A choice is
the text `0`, `1` or `tie`. An empty cell is None, which is not labelled; `[]` is labelled harmless.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from equipoise.data.json_text import LINE, JsonError, load_json
from equipoise.data.rows import LineError, Row, file_format, kind_and_size
from equipoise.records import Record

_CELLS_OF_JSON = ("annotators", "messages", "answers", "categories", "rated", "category_severity", "labels")
_CHOICES = ("better", "safer", "overall")
_BATCH = 1024


def _flat_fields(kind: type[Record]) -> list[str]:
    """Columns of a record class in a flat file: a chat stands in a column of its own."""
    names = list(kind.model_fields)
    return [*names, "messages"] if "prompt" in names else names


def _flatten(record: Record) -> dict[str, Any]:
    values = record.model_dump(mode="json")
    if isinstance(values.get("prompt"), list):
        values["messages"], values["prompt"] = values["prompt"], None
    values["provenance"] = json.dumps(record.provenance, ensure_ascii=False)
    for name in _CHOICES:
        if values.get(name) is not None:
            values[name] = str(values[name])
    return values


def unflatten(row: Row, kind: type[Record]) -> Row:
    """Turn a row of a flat file into the fields of a record; other columns stay, to be refused."""
    values = {name: value for name, value in row.values.items() if value is not None}
    is_text = {name: isinstance(value, str) for name, value in values.items()}
    for name in ("provenance", *_CELLS_OF_JSON):
        if is_text.get(name):
            values[name] = _json_cell(row, name, values[name])
    if "messages" in values:
        values["prompt"] = values.pop("messages")
    for name in _CHOICES:
        if values.get(name) in {"0", "1"}:
            values[name] = int(values[name])
    if file_format(Path(row.path)) == "csv":
        for name, value in values.items():
            if is_text.get(name) and name in kind.model_fields:
                values[name] = _csv_cell(kind, name, value)
        for name in {"prompt", "response"} & kind.model_fields.keys() & row.values.keys():
            values.setdefault(name, "")  # these are always given, so an empty cell is an empty text
    provenance = {name: values.pop(name) for name in ("provenance",) if name in values}
    try:
        return row._replace(values=_pruned(values) | provenance)
    except RecursionError:
        raise LineError(row.path, row.line, LINE, "a value that is nested too deep") from None


def _mapping(value: Any) -> Any:
    """Turn an Arrow map, which is a list of names and values, back; anything else stays, to be refused."""
    is_map = isinstance(value, list) and all(
        isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) for entry in value
    )
    return dict(value) if is_map else value


def _pruned(value: Any) -> Any:
    """Leave out the fields that a nested Arrow row lacks, and turn its maps back."""
    if isinstance(value, list):
        return [_pruned(item) for item in value]
    if isinstance(value, dict):
        kept = {name: _pruned(item) for name, item in value.items() if item is not None}
        return {name: _mapping(item) if name == "category_severity" else item for name, item in kept.items()}
    return value


def _json_cell(row: Row, name: str, text: str) -> Any:
    try:
        return load_json(text)
    except JsonError as exc:
        what = f"expected JSON, got {kind_and_size(text)} ({exc.what})"
        raise LineError(row.path, row.line, name, what) from None


def _csv_cell(kind: type[Record], name: str, value: Any) -> Any:
    """Turn a cell's text into the truth value or number that its field holds, where it is one."""
    types = set(_leaves(kind.model_fields[name].annotation))
    if bool in types and value in {"true", "false", "True", "False"}:
        return value in {"true", "True"}
    if (int in types or float in types) and str not in types:
        try:
            return load_json(value)
        except JsonError:
            return value
    return value


def _leaves(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _leaves(argument)


def write_csv(path: Path, kind: type[Record], records: Iterable[Record]) -> int:
    """Write records of one kind as CSV; return how many."""
    count = 0
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, _flat_fields(kind))
        writer.writeheader()
        for record in records:
            writer.writerow({name: _cell(value) for name, value in _flatten(record).items()})
            count += 1
    return count


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict | bool) else value


def write_parquet(path: Path, kind: type[Record], records: Iterable[Record]) -> int:
    """Write records of one kind as Parquet, lists and nested answers as such; return how many."""
    import pyarrow as pa
    from pyarrow import parquet

    count, iterator, schema = 0, iter(records), _schema(kind)
    with parquet.ParquetWriter(path, schema) as writer:
        while rows := [_flatten(record) for record in islice(iterator, _BATCH)]:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            count += len(rows)
    return count


def _schema(kind: type[Record]) -> Any:
    import pyarrow as pa

    names = pa.list_(pa.string())
    columns = {
        "is_safe": pa.bool_(),
        "severity": pa.int8(),
        "categories": names,
        "rated": names,
        "category_severity": pa.map_(pa.string(), pa.int8()),
        "refusal": pa.string(),
        "annotators": names,
        "is_harmful": pa.bool_(),
        "prompt_is_harmful": pa.bool_(),
        "confidence": pa.float64(),
        "seconds": pa.float64(),
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
    }
    labels = ("is_safe", "severity", "categories", "rated", "category_severity", "refusal")
    columns["labels"] = pa.struct({name: columns[name] for name in labels})
    columns["answers"] = pa.list_(pa.struct({"response": pa.string()} | {n: columns[n] for n in labels}))
    return pa.schema({name: columns.get(name, pa.string()) for name in _flat_fields(kind)})
