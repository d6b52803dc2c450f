"""The batch files of the commands: JSON Lines in, JSON Lines out, in the same order.

A row is a JSON object with an `id` (and a `sample`, 0 if absent). Fields that are not ours are carried
through, so that one command's output is the next one's input. A bad line gives `{"id", "error"}` in its
place and is counted; a row that an earlier command has marked so is passed on as it is. Blank lines are
skipped. Whatever `data.rows` reads can be the input; an output whose name ends in .gz is compressed.

A command gives two functions: `parse` makes of a row what the model takes, and `compute` answers a
chunk of these with the fields to add::

    def parse(row: Row) -> Exchange:
        return Exchange(id=str(row["id"]), prompt=conversation(row), response=text(row, "response"))

    def compute(exchanges: Sequence[Exchange]) -> list[Row]:
        return [{"reward": r.value} for r in score(exchanges)]

    counts = run_batch(source, run.out, parse, compute, scratch=run.scratch)
"""

import gzip
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from equipoise.data.rows import LineError, kind_and_size, read_rows
from equipoise.errors import DataError
from equipoise.lineage import replacing
from equipoise.progress import track
from equipoise.records import Conversation

Row = dict[str, Any]
"""One line of a batch file."""

Added = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""Fields to add to a row; several make several rows of it."""

T = TypeVar("T")

_CONVERSATION: TypeAdapter[Conversation] = TypeAdapter(Conversation)


class BatchCounts(NamedTuple):
    """How many input rows were answered, and how many lines were bad."""

    rows: int
    errors: int


def run_batch(
    in_path: Path,
    out_path: Path,
    parse: Callable[[Row], T],
    compute: Callable[[Sequence[T]], Sequence[Added]],
    *,
    chunk: int = 256,
    scratch: Path | None = None,
    key: tuple[str, ...] = ("id", "sample"),
    label: str = "rows",
) -> BatchCounts:
    """Answer every row of `in_path` into `out_path`, which appears whole or not at all.

    Args:
        in_path: Rows, JSON Lines or what else `data.rows` reads.
        out_path: Where the JSON Lines go.
        parse: Checks a row and returns what `compute` takes; DataError marks the line as bad, its
            message should name the field.
        compute: Returns for each item, in order, the fields to add to its row, or a list of such.
        chunk: Lines at a time; also what a kill can cost.
        scratch: Folder that keeps finished chunks, so that the same call after a kill goes on. The caller
            sees to it that it belongs to the same input and settings, as `lineage.produce` does.
        key: Fields that together name a row; one that names two rows is bad the second time.
        label: What the progress line says.
    """
    if in_path.resolve() == out_path.resolve():
        raise DataError(f"{out_path}: is the input itself; expected another name for the output")
    rows = errors = 0
    with ExitStack() as stack:
        if scratch is None:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        parts: list[Path] = []
        for lines in track(_chunks(_lines(in_path, parse, key), chunk), label):
            part = scratch / f"rows-{len(parts):06d}.jsonl"
            if not part.exists():
                with replacing(part) as fresh:
                    fresh.write_text("".join(_answer(lines, compute)), "utf-8")
            parts.append(part)
            bad = sum(line.error is not None for line in lines)
            rows, errors = rows + len(lines) - bad, errors + bad
        with replacing(out_path) as fresh, writing(fresh) as out:
            for part in parts:
                with part.open("rb") as handle:
                    shutil.copyfileobj(handle, out)
    return BatchCounts(rows, errors)


def conversation(row: Row, field: str = "prompt") -> Conversation:
    """Return a row's prompt: a text, or a list of chat messages; anything else raises DataError."""
    if field not in row:
        raise DataError(f"{field}: missing; expected a text or a list of messages")
    try:
        value = _CONVERSATION.validate_python(row[field])
    except ValidationError as exc:
        raise DataError(f"{field}: expected a text or a list of messages with role and content") from exc
    if not value:
        raise DataError(f"{field}: empty; expected a text or a list of messages")
    return value


def text(row: Row, field: str) -> str:
    """Return a field that must be a text (it may be empty); anything else raises DataError."""
    value = row.get(field)
    if not isinstance(value, str):
        got = "missing" if field not in row else f"expected a text, got {kind_and_size(value)}"
        raise DataError(f"{field}: {got}")
    return value


class _Line(NamedTuple):
    row: Row
    item: Any
    error: str | None


def _lines(path: Path, parse: Callable[[Row], Any], key: tuple[str, ...]) -> Iterator[_Line]:
    """Yield every line in order, the bad ones among them."""
    bad: list[LineError] = []
    seen: dict[tuple[str, ...], int] = {}
    for place in read_rows(path, on_bad=bad.append):
        yield from _unreadable(path, bad)
        yield _line(path, place.line, place.values, parse, key=key, seen=seen)
    yield from _unreadable(path, bad)


def _unreadable(path: Path, bad: list[LineError]) -> Iterator[_Line]:
    while bad:
        error = bad.pop(0)
        message = f"{path.name}:{error.line}: {error.field}: {error.what}"
        yield _Line({"id": error.record, "error": message}, None, message)


def _line(
    path: Path,
    number: int,
    row: Row,
    parse: Callable[[Row], Any],
    *,
    key: tuple[str, ...],
    seen: dict[tuple[str, ...], int],
) -> _Line:
    if row.get("error") is not None:
        return _Line(row, None, str(row["error"]))
    try:
        name = _key(row, key)
        if name in seen:
            known = ", ".join(f"{field} {value}" for field, value in zip(key, name, strict=True))
            raise DataError(f"id: {known} stands on line {seen[name]} already")
        seen[name] = number
        return _Line(row, parse(row), None)
    except DataError as exc:
        message = f"{path.name}:{number}: {exc}"
        return _Line({"id": row.get("id"), "error": message}, None, message)


def _key(row: Row, key: tuple[str, ...]) -> tuple[str, ...]:
    if "id" not in row:
        raise DataError("id: missing")
    if isinstance(row["id"], bool) or not isinstance(row["id"], str | int):
        raise DataError(f"id: expected a text or a whole number, got {kind_and_size(row['id'])}")
    return tuple(str(row.get(field, 0)) for field in key)


def _answer(lines: Sequence[_Line], compute: Callable[[Sequence[Any]], Sequence[Added]]) -> Iterator[str]:
    items = [line.item for line in lines if line.error is None]
    answers = iter(compute(items) if items else [])
    for line in lines:
        if line.error is not None:
            rows = [line.row]
        else:
            added = next(answers)
            rows = [{**line.row, **a} for a in ([added] if isinstance(added, Mapping) else added)]
        for row in rows:
            yield json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _chunks(lines: Iterator[_Line], size: int) -> Iterator[list[_Line]]:
    while block := list(islice(lines, size)):
        yield block


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a batch file to write bytes to; one whose name ends in .gz is compressed."""
    with path.open("wb") as plain:
        if path.suffix == ".gz":  # no name and no time in it, so that the same rows are the same bytes
            with gzip.GzipFile(filename="", fileobj=plain, mode="wb", mtime=0) as packed:
                yield cast(IO[bytes], packed)
        else:
            yield plain
