"""Plain rows out of data files, each with its place. The only module that opens files to read rows.

A bad line is one `LineError` with file, line and field; reading goes on after it where the caller
collects. What a row holds is checked elsewhere: here it only has to be readable.
"""

import csv
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, cast

from equipoise.data.json_text import LINE, JsonError, field_at, load_json
from equipoise.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".csv")

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_NOT_UTF_8 = "the file is UTF-16; expected UTF-8"
_LONGEST = 80
"""Characters of a field's name that an error shows."""


class LineError(DataError):
    """One line that cannot be used: where it stands, which field, and what is wrong with it.

    The text never holds a prompt or a response, only their type and length.
    """

    def __init__(self, path: Path | str, line: int, field: str, what: str, record: str | None = None) -> None:
        """Make the message `path:line: field: what`; `record` is the row's id where it was read."""
        field = field if len(field) <= _LONGEST else field[: _LONGEST - 3] + "..."
        field = "".join(each if each.isprintable() else "?" for each in field)
        super().__init__(f"{path}:{line}: {field}: {what}")
        self.path = str(path)
        self.line = line
        self.field = field
        self.what = what
        self.record = record


class Row(NamedTuple):
    """One row as it stands in the file, and where it stands."""

    path: str
    line: int
    """From 1: the line of a text file, the row of a Parquet file."""
    values: dict[str, Any]


OnBad = Callable[[LineError], None]


def fail(error: LineError) -> NoReturn:
    """Raise the error: what `on_bad` does where the caller does not collect."""
    raise error


def read_rows(path: Path, *, on_bad: OnBad = fail, columns: Mapping[str, str] | None = None) -> Iterator[Row]:
    """Yield the rows of a `.jsonl`, `.jsonl.gz`, `.parquet` or `.csv` file.

    Args:
        path: File to read. Blank lines are skipped.
        on_bad: Called with one error per bad line; reading goes on if it returns.
        columns: The file's column -> the name it gets; other columns keep theirs.

    Raises:
        DataError: the file is missing, or is not of the kind that its suffix says.
    """
    reader = {"jsonl": _json_lines, "parquet": _parquet, "csv": _csv}[file_format(path)]
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    rows = reader(path, on_bad)
    return rows if not columns else (_renamed(row, columns) for row in rows)


def file_format(path: Path) -> str:
    """Return `jsonl`, `parquet` or `csv` by the file's suffix; another suffix raises DataError."""
    name = path.name.lower().removesuffix(".gz") if path.name.lower().endswith(".jsonl.gz") else path.name
    for suffix in ("jsonl", "parquet", "csv"):
        if name.lower().endswith(f".{suffix}"):
            return suffix
    raise DataError(f"{path}: no known data file, got suffix '{path.suffix}'; expected {', '.join(SUFFIXES)}")


def column_names(names: Iterable[str]) -> str:
    """List columns that are plain names; the header of a file without one is the text of a row.

    >>> column_names(["prompt", "How do I do it?"])
    'prompt, ...'
    """
    return ", ".join(n if n.replace(".", "_").isidentifier() and len(n) <= 40 else "..." for n in names)


def kind_and_size(value: object) -> str:
    """Say what a value is without showing it.

    >>> kind_and_size("hello"), kind_and_size([1, 2]), kind_and_size(True), kind_and_size(None)
    ('a text of 5 characters', 'a list of 2', 'true or false', 'null')
    """
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return f"a text of {len(value)} characters"
        case dict():
            return f"a mapping of {len(value)}"
        case list() | tuple():
            return f"a list of {len(value)}"
        case _:
            return "a number"


def show(value: object) -> str:
    """Show a value that is no text of a prompt or response, cut to 60 characters."""
    if isinstance(value, dict | list | tuple):
        return kind_and_size(value)
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, bool | None) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    if missing := [name for name in columns if name not in row.values]:
        known = column_names(row.values)
        raise DataError(f"{row.path}:{row.line}: no column '{missing[0]}' to rename; it has: {known}")
    return row._replace(values={columns.get(name, name): value for name, value in row.values.items()})


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.name.lower().endswith(".gz") else path.open("rb")


def _json_lines(path: Path, on_bad: OnBad) -> Iterator[Row]:
    number = 0
    with _open(path) as handle:
        try:
            for number, line in enumerate(handle, start=1):
                if number == 1:
                    if line.startswith(_UTF_16):
                        on_bad(LineError(path, 1, LINE, _NOT_UTF_8))
                        return
                    line = line.removeprefix(_BYTE_ORDER_MARK)  # noqa: PLW2901
                if line.strip():
                    try:
                        row = Row(str(path), number, _parse(path, number, line))
                    except LineError as error:
                        on_bad(error)
                    else:
                        yield row
        except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
            on_bad(LineError(path, number + 1, LINE, f"the gzip data ends or breaks here ({exc})"))


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = load_json(line.decode("utf-8"))
    except UnicodeDecodeError as exc:
        what = f"byte {exc.start + 1} of the line is not UTF-8, got 0x{line[exc.start]:02x}"
        if exc.reason == "unexpected end of data":
            what = f"the line is cut off within a character, after byte {len(line)}"
        raise LineError(path, number, field_at(line[: exc.start].decode("utf-8")), what) from None
    except JsonError as exc:
        raise LineError(path, number, exc.field, exc.what) from None
    if not isinstance(value, dict):
        raise LineError(path, number, LINE, f"expected a mapping, got {kind_and_size(value)}")
    return value


def _csv(path: Path, on_bad: OnBad) -> Iterator[Row]:
    """Cells are texts; an empty cell is None, which is not labelled.

    The file is read as latin-1 and each cell is turned back, so that one bad byte costs one row.
    """
    csv.field_size_limit(2**31 - 1)  # answers may be longer than the module's 128 KiB
    with path.open(encoding="latin-1", newline="") as handle:
        reader = csv.reader(handle, strict=True)
        header: list[str] = []
        while True:
            start = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as exc:
                on_bad(LineError(path, start, LINE, f"not CSV: {exc}"))
                continue
            if not cells:
                continue
            try:
                if not header:
                    header = _header(path, start, cells)
                else:
                    yield Row(str(path), start, _cells(path, start, header, cells))
            except LineError as error:
                on_bad(error)
                if not header:  # nothing else can be named without it
                    return


def _header(path: Path, line: int, cells: list[str]) -> list[str]:
    first, *rest = [cell.encode("latin-1") for cell in cells]
    if first.startswith(_UTF_16):
        raise LineError(path, line, "header", _NOT_UTF_8)
    names = [_utf8(path, line, "header", cell) for cell in (first.removeprefix(_BYTE_ORDER_MARK), *rest)]
    if what := _twice(names):
        raise LineError(path, line, "header", what)
    return names


def _twice(names: list[str]) -> str:
    """Say which column stands twice; empty where none does."""
    twice = [name for name in names if names.count(name) > 1]
    return f"column '{column_names(twice[:1])}' stands twice" if twice else ""


def _cells(path: Path, line: int, header: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        raise LineError(path, line, LINE, f"expected {len(header)} cells as in the header, got {len(cells)}")
    pairs = zip(header, cells, strict=True)
    return {name: _utf8(path, line, name, cell.encode("latin-1")) or None for name, cell in pairs}


def _utf8(path: Path, line: int, field: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        what = f"byte {exc.start + 1} of the cell is not UTF-8, got 0x{raw[exc.start]:02x}"
        raise LineError(path, line, field, what) from None


def _parquet(path: Path, on_bad: OnBad) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            if what := _twice(file.schema_arrow.names):
                on_bad(LineError(path, 1, "header", what))
                return
            for batch in file.iter_batches(batch_size=1024):
                for values in _batch(batch):
                    number += 1
                    bad = next((name for name, item in values.items() if isinstance(item, Exception)), None)
                    if bad is None:
                        yield Row(str(path), number, {name: plain(item) for name, item in values.items()})
                    elif isinstance(values[bad], UnicodeError):
                        on_bad(LineError(path, number, bad, "a text is not UTF-8"))
                    else:
                        what = f"a value that cannot be read ({str(values[bad])[:80]})"
                        on_bad(LineError(path, number, bad, what))
    except (pa.ArrowException, OSError) as exc:
        what = f"not a Parquet file, or a broken one ({str(exc).splitlines()[0][:80]})"
        on_bad(LineError(path, number + 1, LINE, what))


_UNREADABLE = (ValueError, OverflowError, LookupError)
"""What Arrow raises for a text that is not UTF-8, a date out of range, an unknown time zone."""


def _batch(batch: Any) -> list[dict[str, Any]]:
    """Rows of an Arrow batch; a value that cannot be read stands as the error it raised."""
    try:
        return cast(list[dict[str, Any]], batch.to_pylist())
    except _UNREADABLE:
        columns = {name: batch.column(name) for name in batch.schema.names}
        rows = range(batch.num_rows)
        return [{name: _item(column, row) for name, column in columns.items()} for row in rows]


def _item(column: Any, row: int) -> Any:
    try:
        return column[row].as_py()
    except _UNREADABLE as exc:
        return exc


def plain(value: Any) -> Any:
    """Turn values of Arrow into those of JSON; a NaN, which pandas writes for a gap, is None."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):  # a tuple is one entry of an Arrow map
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    return value.hex() if isinstance(value, bytes) else value
