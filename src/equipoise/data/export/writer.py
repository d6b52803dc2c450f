"""Rows of a format to a file, one after the other: JSON Lines or Parquet, with types that do not vary."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from equipoise.data.export.rows import Column
from equipoise.taxonomy import load_taxonomy

_BATCH = 1024


def write_rows(path: Path, columns: Sequence[Column], rows: Iterable[dict[str, Any]]) -> int:
    """Write rows to a `.jsonl` or `.parquet` file and return how many; fields are ordered as the columns."""
    ordered = ({column.name: row[column.name] for column in columns} for row in rows)
    return _lines(path, ordered) if path.suffix == ".jsonl" else _parquet(path, columns, ordered)


@contextmanager
def json_lines(path: Path) -> Iterator[Any]:
    """Yield a function that writes one row to a file, which is there only if one was written."""
    handle = None

    def write(row: dict[str, Any]) -> None:
        nonlocal handle
        handle = handle or path.open("w", encoding="utf-8", newline="\n")
        handle.write(json.dumps(row, ensure_ascii=False) + "\n")

    try:
        yield write
    finally:
        if handle is not None:
            handle.close()


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _parquet(path: Path, columns: Sequence[Column], rows: Iterator[dict[str, Any]]) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    flags = pa.struct([(name, pa.bool_()) for name in load_taxonomy("pku19").names])
    messages = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    types = {
        "text": pa.string(),
        "truth": pa.bool_(),
        "whole": pa.int64(),
        "flags": flags,
        "messages": messages,
    }
    schema = pa.schema([(column.name, types[column.type]) for column in columns])
    count = 0
    with parquet.ParquetWriter(path, schema) as writer:
        while batch := list(islice(rows, _BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, schema))
            count += len(batch)
    return count
