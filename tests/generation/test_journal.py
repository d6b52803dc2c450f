"""The file that keeps answers."""

from pathlib import Path

import pytest

from equipoise.errors import ConfigError
from equipoise.generation.journal import Journal


def test_what_was_put_is_there_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "journal")
    journal.put("a", {"text": "café\n", "first_token": []})
    journal.put("b", {"text": "2"})
    journal.put("a", {"text": "3"})
    again = Journal(tmp_path / "deep" / "journal")
    assert [again.get(key) for key in "abc"] == [{"text": "3"}, {"text": "2"}, None]
    assert [journal.get(key) for key in "abc"] == [{"text": "3"}, {"text": "2"}, None]


def test_a_torn_last_line_is_cut_off_wherever_it_was_torn(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    journal = Journal(whole)
    journal.put("a", {"text": "1"})
    journal.put("b", {"text": "2"})
    raw = whole.read_bytes()
    second = raw.index(b"\n") + 1
    for size in range(len(raw)):
        torn = tmp_path / "torn"
        torn.write_bytes(raw[:size])
        again = Journal(torn)
        assert again.get("a") == ({"text": "1"} if size >= second else None)
        assert again.get("b") is None
        again.put("c", {"text": "3"})
        assert Journal(torn).get("c") == {"text": "3"}
        assert Journal(torn).get("a") == again.get("a")


def test_a_broken_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path).put("a", {"text": "1"})
    with path.open("ab") as file:
        file.write(b'\x00\xff\n{"key": "b"}\n{"key": 1, "value": {}}\n')
    Journal(path).put("c", {"text": "3"})
    assert [Journal(path).get(key) for key in "abc"] == [{"text": "1"}, None, {"text": "3"}]


def test_two_writers_do_not_mix_up_their_answers(tmp_path: Path) -> None:
    one, other = Journal(tmp_path / "journal"), Journal(tmp_path / "journal")
    for i in range(5):
        one.put(f"one {i}", {"text": f"{i}"})
        other.put(f"other {i}", {"text": f"-{i}"})
    assert [one.get(f"one {i}") for i in range(5)] == [{"text": f"{i}"} for i in range(5)]
    assert Journal(tmp_path / "journal").get("other 3") == {"text": "-3"}


@pytest.mark.parametrize("content", ['{"id": "a", "prompt": "mine"}\n', "mine", "{}"])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=r"prompts.jsonl: is no journal of answers"):
        Journal(tmp_path / "prompts.jsonl")
    assert (tmp_path / "prompts.jsonl").read_text() == content
