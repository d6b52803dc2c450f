"""Read and write records as JSON Lines, Parquet or CSV.

JSON Lines holds a record as it is, without the fields that are None; `flat` holds the other two.
"""

import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any, Generic, NamedTuple, TypeVar, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticSerializationError, to_json

from equipoise.data.flat import unflatten, write_csv, write_parquet
from equipoise.data.json_text import LINE
from equipoise.data.rows import LineError, OnBad, Row, fail, file_format, kind_and_size, read_rows, show
from equipoise.errors import DataError, near
from equipoise.lineage import replacing
from equipoise.records import Exchange, Judgement, Pair, Prompt, Record

__all__ = [
    "LineError",
    "NoRowsError",
    "Placed",
    "Row",
    "parse_record",
    "read_exchanges",
    "read_placed",
    "read_records",
    "read_rows",
    "record_kind",
    "write_records",
    "writing_records",
]

R = TypeVar("R", bound=Record)
R_co = TypeVar("R_co", bound=Record, covariant=True)

_SHOWN = {"id", "source", "licence", "label_origin", "is_safe", "severity", "categories", "rated", "refusal"}
_SHOWN |= {"category_severity", "better", "safer", "overall", "taxonomy", "is_harmful", "prompt_is_harmful"}
_SHOWN |= {"twin", "subject", "annotator", "confidence", "seconds", "annotators", "role"}
"""Fields whose values an error may show; everything else may hold text of a prompt or response."""

_ARE: dict[type[Record], str] = {
    Prompt: "a prompt (without a response)",
    Exchange: "an exchange (prompt and response)",
    Pair: "a pair (prompt and two answers)",
    Judgement: "a judgement (subject and annotator)",
}


class NoRowsError(DataError):
    """A file without a row that can be read, so that its kind is not known."""


class Placed(NamedTuple, Generic[R_co]):
    """A record and where it stands."""

    path: str
    line: int
    record: R_co


def read_records(
    path: Path, kind: type[R], *, on_bad: OnBad = fail, columns: Mapping[str, str] | None = None
) -> Iterator[R]:
    """Yield the records of a file.

    Args:
        path: A `.jsonl`, `.jsonl.gz`, `.parquet` or `.csv` file.
        kind: Record class that every row must fit.
        on_bad: Called with one error per bad line; the default raises it. If it returns, reading goes on.
        columns: The file's column -> the record's field, where the names differ.
    """
    return (placed.record for placed in read_placed(path, kind, on_bad=on_bad, columns=columns))


def read_exchanges(exchanges: Sequence[Path], pairs: Sequence[Path]) -> list[Exchange]:
    """Return the exchanges of some files, and both answers of each pair of others as exchanges."""
    single = [record for path in exchanges for record in read_records(path, Exchange)]
    double = [pair for path in pairs for pair in read_records(path, Pair)]
    return single + [exchange for pair in double for exchange in (pair.exchange(0), pair.exchange(1))]


def read_placed(
    path: Path, kind: type[R], *, on_bad: OnBad = fail, columns: Mapping[str, str] | None = None
) -> Iterator[Placed[R]]:
    """Yield the records of a file, each with its place; arguments as `read_records`."""
    parse = parse_record if file_format(path) == "jsonl" else _of_flat
    for row in read_rows(path, on_bad=on_bad, columns=columns):
        try:
            record = parse(row, kind)
        except LineError as error:
            on_bad(_of_another_kind(row, kind) or _of_another_table(row, error))
        else:
            yield Placed(row.path, row.line, record)


def parse_record(row: Row, kind: type[R]) -> R:
    """Make a record of a row; types are taken strictly, so the text "yes" is no truth value.

    Raises:
        LineError: with file, line and field.
    """
    try:
        text = to_json(row.values)
    except PydanticSerializationError as exc:
        what = str(exc).removeprefix("Error serializing to JSON: ")
        raise LineError(row.path, row.line, LINE, f"a value that JSON cannot hold ({what:.80})") from None
    try:
        return kind.model_validate_json(text, strict=True)
    except ValidationError as exc:
        raise _explain(row, kind, exc) from None


def record_kind(path: Path) -> type[Exchange] | type[Pair] | type[Prompt]:
    """Tell what a file of records holds by the fields of its first readable row.

    Raises:
        NoRowsError: no row can be read.
        DataError: it holds judgements.
    """
    with closing(read_rows(path, on_bad=lambda _: None)) as rows:  # type: ignore[type-var]
        for row in rows:
            kind = _kind_of(row)
            if kind is Judgement:
                raise DataError(f"{path}: holds judgements; expected prompts, exchanges or pairs")
            return kind
    raise NoRowsError(f"{path}: no row that can be read; expected records")


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write records whole or not at all, in the format of the suffix; return how many.

    Raises:
        DataError: records of more than one kind for a Parquet or CSV file, or none to tell the columns.
    """
    if file_format(path) == "jsonl":
        with writing_records(path) as write:
            return sum(1 for record in records if write(record))
    writer = write_csv if file_format(path) == "csv" else write_parquet
    iterator = iter(records)
    first = next(iterator, None)
    if first is None:
        raise DataError(f"{path}: no records, so the columns are not known; write .jsonl instead")
    with replacing(path) as part:
        return writer(part, type(first), _same_kind(path, type(first), first, iterator))


@contextmanager
def writing_records(path: Path) -> Iterator[Callable[[Record], int]]:
    """Yield a function that writes one record to a `.jsonl` or `.jsonl.gz` file and returns its bytes.

    The file is there at the end, whole or not at all. Several can be written at the same time.
    """
    with replacing(path) as part, ExitStack() as stack:
        out: IO[bytes] = stack.enter_context(part.open("wb"))
        if path.suffix.lower() == ".gz":
            # no time and no name in the gzip header, so that equal records give equal bytes
            packed = gzip.GzipFile("", "wb", fileobj=out, mtime=0)
            out = cast(IO[bytes], stack.enter_context(packed))
        yield lambda record: out.write(record.model_dump_json(exclude_none=True).encode("utf-8") + b"\n")


def _same_kind(path: Path, kind: type[Record], first: Record, rest: Iterator[Record]) -> Iterator[Record]:
    yield first
    for record in rest:
        if type(record) is not kind:
            names = f"{kind.__name__} and {type(record).__name__}"
            raise DataError(f"{path}: records of more than one kind, got {names}; expected one")
        yield record


def _of_flat(row: Row, kind: type[R]) -> R:
    return parse_record(unflatten(row, kind), kind)


def _kind_of(row: Row) -> type[Any]:
    """Tell what a row is by the fields that only one kind of record has."""
    values = row.values
    if values.get("answers") is not None:
        return Pair
    if {"subject", "annotator"} <= values.keys():
        return Judgement
    # an empty cell of CSV is None, also where the response is an empty text
    is_given = values.get("response") is not None or (
        "response" in values and file_format(Path(row.path)) == "csv"
    )
    return Exchange if is_given else Prompt


def _of_another_kind(row: Row, kind: type[Record]) -> LineError | None:
    """Say of a row that is no record of `kind` which one it is, if it is that of another kind."""
    other = _kind_of(row)
    if other is kind:
        return None
    if other is Prompt:  # that is what a row with a misspelt or missing field looks like too
        parse = parse_record if file_format(Path(row.path)) == "jsonl" else _of_flat
        try:
            parse(row, Prompt)
        except LineError:
            return None
    return LineError(row.path, row.line, LINE, f"is {_ARE[other]}; expected {_ARE[kind]}")


def _of_another_table(row: Row, error: LineError) -> LineError:
    """Say of a row without an id, which every record has, how records are made of such rows."""
    if "id" in row.values:
        return error
    hint = "; no record without an id (`equipoise data import` makes records of other tables)"
    return LineError(row.path, row.line, error.field, error.what + hint)


def _explain(row: Row, kind: type[Record], exc: ValidationError) -> LineError:
    # unknown fields first: a misspelt one explains the missing one
    errors = sorted(exc.errors(include_url=False), key=lambda error: error["type"] != "extra_forbidden")
    first = errors[0]
    others = {error["loc"][:1] for error in errors} - {first["loc"][:1]}  # a union gives one error per member
    place = [str(part) for part in first["loc"] if not str(part).startswith(("tuple[", "str", "function-"))]
    field = ".".join(place) or LINE
    more = f" (and {len(others)} more on this line)" if others else ""
    own = row.values.get("id")
    what = _what(kind, first, place[-1] if place else LINE)
    return LineError(row.path, row.line, field, what + more, own if isinstance(own, str) else None)


def _what(kind: type[Record], error: ErrorDetails, name: str) -> str:
    if error["type"] == "missing":
        return "missing"
    if error["type"] == "extra_forbidden":
        fields = [*kind.model_fields, *Exchange.model_fields]
        return f"no such field{near(name, fields)}, got {kind_and_size(error['input'])}"
    shown = any(str(part) in _SHOWN for part in error["loc"]) and "provenance" not in error["loc"]
    value = show(error["input"]) if shown else kind_and_size(error["input"])
    message = error["msg"].removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]}, got {value}"
