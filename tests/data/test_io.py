"""Reading and writing: round trips in every format, and errors that name file, line and field."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.data.io import (
    LineError,
    NoRowsError,
    read_records,
    read_rows,
    record_kind,
    write_records,
    writing_records,
)
from equipoise.data.rows import kind_and_size
from equipoise.errors import DataError
from equipoise.records import Answer, Exchange, Judgement, Message, Pair, Prompt, Record

FORMATS = ["x.jsonl", "x.jsonl.gz", "x.parquet", "x.csv"]

RECORDS: dict[type[Record], list[Record]] = {
    Exchange: [
        Exchange(
            id="a",
            source="own",
            licence="MIT",
            label_origin="human",
            annotators=("p", "q"),
            provenance={"n": 1, "gap": None, "nested": {"deep": [1.5, None, "x"]}},
            prompt="How do I\r\nfold a \u201cpaper\u201d plane, quickly?",
            response='Like "this",\nin two steps.',
            is_safe=True,
            severity=0,
            categories=frozenset(),
            refusal="none",
            prompt_is_harmful=False,
        ),
        Exchange(
            id="007",
            prompt=(Message(role="system", content="Be kind."), Message(role="user", content="Hi")),
            response="",
            is_safe=False,
            severity=2,
            categories=frozenset({"Violence", "Drugs"}),
            rated=frozenset({"Violence", "Drugs", "Cybercrime"}),
            category_severity={"Violence": 2, "Drugs": 1, "Cybercrime": 0},
        ),
        Exchange(id="c", prompt="0", response="true"),
    ],
    Pair: [
        Pair(
            id="p",
            prompt="Which tea?",
            answers=(
                Answer(response="Green.", is_safe=True, severity=0, categories=frozenset()),
                Answer(response="", is_safe=False, category_severity={"Drugs": 1}),
            ),
            better=1,
            safer=0,
            overall="tie",
        ),
        Pair(id="q", prompt="Which?", answers=(Answer(response="a"), Answer(response="b")), safer="tie"),
    ],
    Prompt: [
        Prompt(id="h", prompt="How do I mix paint?", is_harmful=False, categories=frozenset(), twin="007"),
        Prompt(id="i", prompt=(Message(role="user", content="Hello"),), severity=3),
    ],
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_round_trip_keeps_every_field(tmp_path: Path, name: str, kind: type[Record]) -> None:
    assert write_records(tmp_path / name, RECORDS[kind]) == len(RECORDS[kind])
    assert list(read_records(tmp_path / name, kind)) == RECORDS[kind]
    assert record_kind(tmp_path / name) is kind


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.builds(
            Exchange,
            id=TEXTS.filter(bool),
            source=TEXTS.filter(bool),
            prompt=TEXTS,
            response=TEXTS,
            is_safe=st.none() | st.booleans(),
            severity=st.none() | st.integers(0, 3),
            categories=st.none() | st.frozensets(TEXTS, max_size=2),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(FORMATS),
)
def test_any_text_survives_every_format(
    tmp_path_factory: pytest.TempPathFactory, records: list[Exchange], name: str
) -> None:
    path = tmp_path_factory.mktemp("any") / name
    write_records(path, records)
    assert list(read_records(path, Exchange)) == records


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


GOOD = b'{"id": "g", "prompt": "p", "response": "r"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "x", "prompt": "p", "response": "cut off he', "2: response: the line is cut off"),
        (b'{"id": "x", "prompt": "p", "is_safe": tr', "2: is_safe: the line is cut off"),
        (b'{"id": "x", "prompt": "p", "respo', "2: line: the line is cut off after character 33"),
        (
            b'{"id": "x", "prompt": "p", "response": "say \\"is_safe\\": tr',
            "2: response: the line is cut off",
        ),
        (
            b'{"id": "x", "prompt": "p", "answers": [{"response": "a", "is_s',
            "2: answers.0: the line is cut off",
        ),
        (b'{"id": "x", "prompt": "p", "is_safe": yes}', "2: is_safe: not JSON: expecting value"),
        (b'{"id": "x", "prompt": "a "word" here"}', "2: prompt: not JSON: expecting ',' delimiter"),
        (b'{"id": "x", "prompt": "caf\xe9"}', "2: prompt: byte 27 of the line is not UTF-8, got 0xe9"),
        (b'{"id": "x", "prompt": "p", "response": "r", "is_safe": "yes"}', "2: is_safe: .*got \"?'?yes"),
        (b'{"id": "x", "prompt": "p", "response": "r", "is_safe": 1}', "2: is_safe: .*got 1"),
        (b'{"id": "x", "prompt": "p", "response": "r", "severity": 7}', "2: severity: .*got 7"),
        (b'{"id": "x", "prompt": "p", "response": "r", "severity": NaN}', "2: line: .*NaN is no JSON"),
        (
            b'{"id": "x", "prompt": "p", "respones": "r"}',
            "2: respones: no such field .did you mean 'response'",
        ),
        (b'{"id": "x", "prompt": "p"}', r"2: line: is a prompt \(without a response\); expected an exchange"),
        (b'{"id": "x", "response": "r"}', "2: prompt: missing"),
        (b'{"id": "x", "prompt": "p", "response": "r", "id": "y"}', "2: id: stands twice in one object"),
        (
            b'{"id": "x", "prompt": "p", "response": "r", "provenance": {"n": 1e999}}',
            "2: .*1e999 is out of range",
        ),
        (b'["x"]', "2: line: expected a mapping, got a list of 1"),
        (b'{"id": "x", "prompt": "\\ud83d", "response": "r"}', "2: prompt: half of a surrogate pair"),
        (b"[" * 100_000, "2: line: not JSON that can be read: nested too deep"),
        (b'{"id": "x", "' + b"k" * 500 + b'": 1}', r"2: k{77}\.\.\.: no such field"),
    ],
)
def test_error_names_file_line_and_field_and_reading_goes_on(
    tmp_path: Path, line: bytes, message: str
) -> None:
    path = write(tmp_path / "bad.jsonl", GOOD, line, b"", GOOD)
    found: list[LineError] = []
    assert len(list(read_records(path, Exchange, on_bad=found.append))) == 2
    assert [error.line for error in found] == [2]
    with pytest.raises(DataError, match=f"bad.jsonl:{message}"):
        list(read_records(path, Exchange))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("given", "expected", "words"),
    [
        (
            Pair,
            Exchange,
            r"is a pair \(prompt and two answers\); expected an exchange \(prompt and response\)",
        ),
        (
            Exchange,
            Pair,
            r"is an exchange \(prompt and response\); expected a pair \(prompt and two answers\)",
        ),
        (Prompt, Exchange, r"is a prompt \(without a response\); expected an exchange"),
        (Prompt, Pair, r"is a prompt \(without a response\); expected a pair"),
        (Exchange, Prompt, r"is an exchange \(prompt and response\); expected a prompt"),
        (Pair, Prompt, r"is a pair \(prompt and two answers\); expected a prompt"),
    ],
)
def test_a_file_of_another_kind_is_named_as_such(
    tmp_path: Path, name: str, given: type[Record], expected: type[Record], words: str
) -> None:
    write_records(tmp_path / name, RECORDS[given])
    with pytest.raises(LineError, match=f"{name}:[12]: line: {words}") as caught:
        list(read_records(tmp_path / name, expected))
    assert "did you mean" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_judgements_are_told_from_records_that_are_judged(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_records(path, [Judgement(id="j", subject="a", annotator="p", better=1)])
    with pytest.raises(LineError, match=r"is a judgement \(subject and annotator\); expected an exchange"):
        list(read_records(path, Exchange))
    with pytest.raises(DataError, match="holds judgements; expected prompts, exchanges or pairs"):
        record_kind(path)


def test_an_empty_response_in_csv_is_still_a_response(tmp_path: Path) -> None:
    write_records(tmp_path / "x.csv", [Exchange(id="x", prompt="p", response="")])
    assert record_kind(tmp_path / "x.csv") is Exchange


@pytest.mark.parametrize("field", ["prompt", "response", "unknown_column"])
def test_error_never_shows_a_text(tmp_path: Path, field: str) -> None:
    row: dict[str, object] = {"id": "x", "prompt": "p", "response": "r", field: ["a secret text"]}
    path = write(tmp_path / "bad.jsonl", json.dumps(row).encode())
    with pytest.raises(LineError) as caught:
        list(read_records(path, Exchange))
    assert "secret" not in str(caught.value)
    assert "a list of 1" in str(caught.value)
    assert caught.value.record == "x"


def test_long_values_are_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", GOOD[:-1] + b', "refusal": "' + b"z" * 500 + b'"}')
    with pytest.raises(LineError) as caught:
        list(read_records(path, Exchange))
    assert "z" * 50 in str(caught.value)
    assert "z" * 61 not in str(caught.value)


def test_gzip_that_breaks_off_is_one_error_after_the_good_rows(tmp_path: Path) -> None:
    whole = gzip.compress(b"\n".join([GOOD] * 2000))
    (tmp_path / "x.jsonl.gz").write_bytes(whole[: len(whole) - 20])
    found: list[LineError] = []
    rows = list(read_rows(tmp_path / "x.jsonl.gz", on_bad=found.append))
    assert all(row.values["id"] == "g" for row in rows)
    assert "gzip" in str(found[-1])


def test_csv_takes_a_column_map_and_names_the_cell(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv",
        b"\xef\xbb\xbfid,question,response,is_safe",
        b'1,"two',
        b'lines",r,true',
        b"2,b\xff,r,",
    )
    found: list[LineError] = []
    columns = {"question": "prompt"}
    records = list(read_records(path, Exchange, on_bad=found.append, columns=columns))
    assert records == [Exchange(id="1", prompt="two\nlines", response="r", is_safe=True)]
    assert str(found[0]).endswith("t.csv:4: question: byte 2 of the cell is not UTF-8, got 0xff")
    with pytest.raises(DataError, match=r"t.csv:2: no column 'query' to rename; it has: id, question"):
        list(read_records(path, Exchange, columns={"query": "prompt"}))


def test_csv_row_with_too_few_cells_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", b"id,prompt", b"1", b"2,p")
    found: list[LineError] = []
    assert [row.values["id"] for row in read_rows(path, on_bad=found.append)] == ["2"]
    assert "t.csv:2: line: expected 2 cells as in the header, got 1" in str(found[0])


def test_csv_takes_answers_longer_than_the_modules_limit(tmp_path: Path) -> None:
    record = Exchange(id="x", prompt="p", response="long " * 50_000)
    write_records(tmp_path / "x.csv", [record])
    assert list(read_records(tmp_path / "x.csv", Exchange)) == [record]


def test_parquet_row_with_bad_text_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.array([b"fine", b"b\xff", b"fine too"], pa.binary()).view(pa.utf8())
    table = pa.table({"id": ["a", "b", "c"], "prompt": text})
    parquet.write_table(table, tmp_path / "x.parquet")
    found: list[LineError] = []
    records = list(read_records(tmp_path / "x.parquet", Prompt, on_bad=found.append))
    assert [record.id for record in records] == ["a", "c"]
    assert "x.parquet:2: prompt: a text is not UTF-8" in str(found[0])


def test_a_parquet_value_that_python_cannot_hold_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    times = pa.array([0, 2**40], pa.timestamp("s"))
    parquet.write_table(pa.table({"id": ["a", "b"], "when": times}), tmp_path / "x.parquet")
    found: list[LineError] = []
    rows = list(read_rows(tmp_path / "x.parquet", on_bad=found.append))
    assert [row.values for row in rows] == [{"id": "a", "when": "1970-01-01T00:00:00"}]
    assert "x.parquet:2: when: a value that cannot be read (date value out of range)" in str(found[0])


def test_a_parquet_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["id", "id"])
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(LineError, match=r"x\.parquet:1: header: column 'id' stands twice"):
        list(read_rows(tmp_path / "x.parquet"))


def test_files_that_are_not_what_they_say(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", b"no parquet")
    with pytest.raises(DataError, match="not a Parquet file"):
        list(read_rows(tmp_path / "x.parquet"))
    with pytest.raises(DataError, match="no such file"):
        list(read_rows(tmp_path / "gone.jsonl"))
    with pytest.raises(DataError, match=r"got suffix '.json'; expected .jsonl"):
        list(read_rows(tmp_path / "x.json"))
    write(tmp_path / "empty.jsonl", b"")
    with pytest.raises(NoRowsError):
        record_kind(tmp_path / "empty.jsonl")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    write_records(path, RECORDS[Prompt])
    before = path.read_bytes()
    with pytest.raises(DataError, match="more than one kind, got Prompt and Exchange"):
        write_records(path, [*RECORDS[Prompt], *RECORDS[Exchange]])
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["x.csv"]


def test_several_files_are_written_at_once_and_a_failure_leaves_none(tmp_path: Path) -> None:
    records = [Exchange(id=str(n), prompt="p", response="r") for n in range(4)]
    paths = [tmp_path / "even.jsonl", tmp_path / "odd.jsonl.gz"]
    with writing_records(paths[0]) as even, writing_records(paths[1]) as odd:
        for number, record in enumerate(records):
            (odd if number % 2 else even)(record)
        assert not any(path.exists() for path in paths)
    assert [list(read_records(path, Exchange)) for path in paths] == [records[::2], records[1::2]]
    with pytest.raises(AttributeError), writing_records(tmp_path / "broken.jsonl") as write:
        [write(record) for record in (records[0], "no record")]  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["even.jsonl", "odd.jsonl.gz"]


def test_equal_records_give_equal_gzip_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_records(tmp_path / name, RECORDS[Pair])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_sizes_are_said_and_values_are_not() -> None:
    assert kind_and_size({"a": 1}) == "a mapping of 1"
    assert kind_and_size(3.5) == "a number"
