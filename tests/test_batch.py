"""Batch files: order, carried fields, bad lines in their place, resume."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from equipoise.batch import BatchCounts, Row, conversation, run_batch, text
from equipoise.errors import DataError
from equipoise.records import Message


def measure(row: Row) -> str:
    return text(row, "response")


def lengths(responses: Sequence[str]) -> list[Row]:
    return [{"length": len(r)} for r in responses]


def write(path: Path, *lines: str | bytes | dict[str, Any]) -> Path:
    encoded = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    path.write_bytes(b"\n".join(e.encode() if isinstance(e, str) else e for e in encoded) + b"\n")
    return path


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_rows_come_out_in_order_with_their_own_fields(tmp_path: Path, chunk: int) -> None:
    rows = [{"id": f"r{i}", "response": "é" * i, "mine": {"nested": [i, None]}} for i in range(5)]
    counts = run_batch(
        write(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl", measure, lengths, chunk=chunk
    )
    assert read(tmp_path / "out.jsonl") == [{**row, "length": i} for i, row in enumerate(rows)]
    assert counts == BatchCounts(5, 0)


def test_several_rows_for_one(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"id": 7, "response": "x"}, {"id": 8, "response": "yy"})
    run_batch(
        source,
        tmp_path / "out.jsonl",
        measure,
        lambda responses: [[{"sample": k} for k in range(len(r))] for r in responses],
    )
    assert [(r["id"], r["sample"]) for r in read(tmp_path / "out.jsonl")] == [(7, 0), (8, 0), (8, 1)]


BAD = [
    ('{"id": "b", "response": ', "b.jsonl:2: response: "),
    (b'{"id": "b", "response": "\xff"}', "b.jsonl:2: response: byte "),
    ("[1]", "b.jsonl:2: line: expected a mapping"),
    ('{"id": "b", "response": "x", "score": NaN}', "b.jsonl:2: line: not JSON"),
    (r'{"id": "b", "response": "\ud800"}', "b.jsonl:2: response: half of a surrogate"),
    ('{"id": "b"}', "b.jsonl:2: response: missing"),
    ('{"id": "b", "response": 3}', "b.jsonl:2: response: expected a text, got a number"),
    ('{"response": "x"}', "b.jsonl:2: id: missing"),
    ('{"id": true, "response": "x"}', "b.jsonl:2: id: expected a text or a whole number, got true or false"),
    ('{"id": "a", "response": "x"}', "b.jsonl:2: id: id a, sample 0 stands on line 1 already"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_bad_line_is_an_error_in_its_place(tmp_path: Path, line: str | bytes, message: str) -> None:
    good = [{"id": "a", "response": "x"}, {"id": "c", "response": "y"}]
    source = write(tmp_path / "b.jsonl", good[0], line, good[1])
    counts = run_batch(source, tmp_path / "out.jsonl", measure, lengths)
    first, bad, last = read(tmp_path / "out.jsonl")
    assert counts == BatchCounts(2, 1)
    assert (first["id"], last["id"]) == ("a", "c")
    assert bad.keys() == {"id", "error"}
    assert bad["error"].startswith(message)


def test_samples_of_one_id_are_rows_of_their_own(tmp_path: Path) -> None:
    rows = [{"id": "a", "sample": k, "response": "x"} for k in (0, 1)]
    source = write(tmp_path / "in.jsonl", *rows)
    assert run_batch(source, tmp_path / "two", measure, lengths) == BatchCounts(2, 0)
    assert run_batch(source, tmp_path / "one", measure, lengths, key=("id",)) == BatchCounts(1, 1)


def test_an_error_of_an_earlier_command_is_passed_on(tmp_path: Path) -> None:
    earlier = {"id": "a", "error": "prompts.jsonl:1: prompt: missing"}
    source = write(tmp_path / "in.jsonl", earlier, "", {"id": "b", "response": "x"})
    assert run_batch(source, tmp_path / "out.jsonl", measure, lengths) == BatchCounts(1, 1)
    assert read(tmp_path / "out.jsonl")[0] == earlier


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *({"id": i, "response": "x" * i} for i in range(6)))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    seen: list[str] = []

    def fails_at_four(responses: Sequence[str]) -> list[Row]:
        if "xxxx" in responses:
            raise KeyboardInterrupt
        return lengths(responses)

    def watches(responses: Sequence[str]) -> list[Row]:
        seen.extend(responses)
        return lengths(responses)

    with pytest.raises(KeyboardInterrupt):
        run_batch(source, tmp_path / "out.jsonl", measure, fails_at_four, chunk=2, scratch=scratch)
    assert not (tmp_path / "out.jsonl").exists()
    run_batch(source, tmp_path / "out.jsonl", measure, watches, chunk=2, scratch=scratch)
    assert seen == ["xxxx", "xxxxx"]
    assert [row["length"] for row in read(tmp_path / "out.jsonl")] == list(range(6))


def test_an_empty_file_gives_an_empty_file(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("\n\n")
    assert run_batch(source, tmp_path / "out.jsonl", measure, lengths) == BatchCounts(0, 0)
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_compressed_files_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(gzip.compress(b'{"id": "a", "response": "xyz"}\n'))
    outs = [tmp_path / "one.jsonl.gz", tmp_path / "two.jsonl.gz"]
    for out in outs:
        run_batch(source, out, measure, lengths)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert json.loads(gzip.decompress(outs[0].read_bytes())) == {"id": "a", "response": "xyz", "length": 3}


def test_the_input_is_never_overwritten_and_must_exist(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"id": "a", "response": "x"})
    with pytest.raises(DataError, match="is the input itself"):
        run_batch(source, source, measure, lengths)
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        run_batch(tmp_path / "gone.jsonl", tmp_path / "out.jsonl", measure, lengths)


def test_a_prompt_is_a_text_or_messages() -> None:
    assert conversation({"prompt": "Hi"}) == "Hi"
    messages = [{"role": "user", "content": "Hi"}]
    assert conversation({"prompt": messages}) == (Message(role="user", content="Hi"),)
    for wrong in ({}, {"prompt": ""}, {"prompt": []}, {"prompt": None}, {"prompt": [{"role": "owner"}]}):
        with pytest.raises(DataError, match=r"^prompt: "):
            conversation(wrong)
