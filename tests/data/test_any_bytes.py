"""Whatever bytes a data file holds: records, or errors with file, line and field, and never a traceback."""

import gzip
import io
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.data.io import read_placed, read_records, write_records
from equipoise.data.rows import LineError, read_rows
from equipoise.data.sources import import_records
from equipoise.data.steps import check_files
from equipoise.errors import DataError
from equipoise.records import Answer, Exchange, Judgement, Message, Pair, Prompt, Record

KINDS: tuple[type[Record], ...] = (Prompt, Exchange, Pair, Judgement)
LABELS = {
    "is_safe": False,
    "severity": 2,
    "categories": frozenset({"Drugs"}),
    "category_severity": {"Drugs": 2},
}
CHAT = (Message(role="user", content="Hi, \u201cyou\u201d"), Message(role="assistant", content="Hello"))
WHOLE: dict[type[Record], list[Record]] = {
    Prompt: [Prompt(id="a", prompt="How do I mix paint?", is_harmful=False, provenance={"n": 1.5})],
    Exchange: [Exchange(id="b", prompt=CHAT, response="Like this,\r\tslowly.", **LABELS)],  # type: ignore[arg-type]
    Pair: [
        Pair(id="c", prompt="Tea?", answers=(Answer(response="Green."), Answer(response="\u7eff", **LABELS)))  # type: ignore[arg-type]
    ],
    Judgement: [Judgement(id="d", subject="a", annotator="p", confidence=0.5, better=1)],
}
SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")


def check_outcome(path: Path, kind: type[Record]) -> tuple[list[Record], list[LineError]]:
    """Read a file to its end; what is read can be written and read again, what is not is told in one line."""
    errors: list[LineError] = []
    records = [placed.record for placed in read_placed(path, kind, on_bad=errors.append)]
    named = list(errors)
    with suppress(DataError):  # no row, or judgements: no file for `check`
        check_files([path])
    with suppress(DataError):  # rows of two kinds
        list(import_records("jsonl", read_rows(path, on_bad=named.append), on_bad=named.append))
    for error in named:
        assert error.path == str(path)
        assert error.line >= 1
        assert error.field
        assert str(error).encode("utf-8").startswith(f"{path}:{error.line}: {error.field}".encode())
        assert len(str(error).splitlines()) == 1
    again = path.with_name("again.jsonl")
    write_records(again, records)
    assert list(read_records(again, kind)) == records
    return records, errors


def saved(folder: Path, suffix: str, kind: type[Record]) -> bytes:
    path = folder / f"whole{suffix}"
    write_records(path, WHOLE[kind] * 3)
    return path.read_bytes()


MARKS = b"\x00 \xff \xef\xbb\xbf \xed\xa0\x80 \x1f\x8b \r \n \r\n \" ' , : { } [ ] \\ \\u \\ud83d"
WORDS = b'NaN -Infinity 1e999 null "id":"x", "answers":'
LONG = [b"9" * 5000, b"[" * 3000, b'{"a":' * 700]
TOKENS = st.sampled_from([*MARKS.split(b" "), *WORDS.split(b" "), *LONG])


def spliced(whole: bytes, edits: Sequence[tuple[float, int, bytes]]) -> bytes:
    for place, length, token in edits:
        at = int(place * len(whole))
        whole = whole[:at] + token + whole[at + length :]
    return whole


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SUFFIXES[:3]),
    st.sampled_from(KINDS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), TOKENS | st.binary(max_size=4)), max_size=4),
)
def test_a_damaged_file_gives_records_and_named_errors(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    kind: type[Record],
    edits: Sequence[tuple[float, int, bytes]],
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    plain = saved(folder, suffix.removesuffix(".gz"), kind)
    damaged = spliced(plain, edits)
    path = folder / f"x{suffix}"
    path.write_bytes(gzip.compress(damaged) if suffix.endswith(".gz") else damaged)
    records, errors = check_outcome(path, kind)
    assert len(records) == 3 or errors or edits


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SUFFIXES), st.sampled_from(KINDS), st.binary(max_size=200))
def test_any_bytes_at_all_are_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, kind: type[Record], content: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / f"x{suffix}"
    path.write_bytes(content)
    records, _ = check_outcome(path, kind)
    assert not records


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({name for kind in KINDS for name in kind.model_fields} | {"messages"})


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from((".jsonl", ".csv")),
    st.sampled_from(KINDS),
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), JSON, min_size=1, max_size=8),
)
def test_any_value_in_any_field_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, kind: type[Record], values: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("values") / f"x{suffix}"
    if suffix == ".csv":
        import csv

        text = io.StringIO()
        csv.writer(text).writerows([list(values), [json.dumps(value) for value in values.values()]])
        path.write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))
    else:
        path.write_text(json.dumps(values))
    check_outcome(path, kind)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_gives_one_error_after_what_could_be_read(
    tmp_path: Path, suffix: str, kind: type[Record]
) -> None:
    whole = saved(tmp_path, suffix, kind)
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(whole[:length])
        records, errors = check_outcome(path, kind)
        assert records == WHOLE[kind] * len(records)
        assert errors or not length


Damage = Callable[[bytes], bytes]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "harmless",
    [
        lambda raw: b"\xef\xbb\xbf" + raw,
        lambda raw: raw.replace(b"\r\n", b"\n") if b"\r\n" in raw else raw.replace(b"\n", b"\r\n"),
        lambda raw: b"\n\n" + raw + b"\n",
    ],
    ids=["BOM", "line ends", "blank lines"],
)
def test_what_other_programs_do_to_a_file_costs_nothing(
    tmp_path: Path, suffix: str, kind: type[Record], harmless: Damage
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(harmless(saved(tmp_path, suffix, kind)))
    assert check_outcome(path, kind) == (WHOLE[kind] * 3, [])


@pytest.mark.parametrize(("suffix", "field"), [(".jsonl", "line"), (".csv", "header")])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_one_error_and_not_one_per_line(
    tmp_path: Path, suffix: str, field: str, encoding: str
) -> None:
    path = tmp_path / f"x{suffix}"
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path.write_bytes((mark + saved(tmp_path, suffix, Prompt).decode()).encode(encoding))
    records, (error,) = check_outcome(path, Prompt)
    assert (records, error.line, error.field) == ([], 1, field)
    assert "UTF-16" in error.what


def test_a_line_of_ten_megabytes_is_a_record_and_its_half_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_records(path, [Exchange(id="x", prompt="p", response='say "this"\n' * 900_000)])
    assert path.stat().st_size > 10_000_000
    assert len(check_outcome(path, Exchange)[0]) == 1
    path.write_bytes(path.read_bytes()[:-5_000_000])
    (error,) = check_outcome(path, Exchange)[1]
    assert (error.line, error.field) == (1, "response")
    assert "the line is cut off" in error.what
