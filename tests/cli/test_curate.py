"""`curate dedup` as a user runs it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from equipoise.data.io import read_records, write_records
from equipoise.errors import ConfigError, MissingExtraError
from equipoise.records import Prompt

Call = Callable[..., Result]
Tell = Callable[..., dict[str, Any]]

TEXTS = [
    "Could you explain to a child of ten how the tides work?",
    "Could you explain to a child of ten, how the tides work?",
    "What is the best way to bake bread at home without an oven?",
    "could you explain  to a child of ten how the tides work?",
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    write_records(path, [Prompt(id=f"p{i}", prompt=text) for i, text in enumerate(TEXTS)])
    return path


def test_near_copies_are_dropped_and_listed_and_the_same_run_is_skipped(
    call: Call, tell: Tell, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    found = tell("curate", "dedup", source, "--out", out)
    assert (found["records"], found["exact"], found["near"], found["was_done"]) == (2, 1, 1, False)
    assert [r.id for r in read_records(out, Prompt)] == ["p0", "p2"]
    dropped = [json.loads(line) for line in Path(found["dropped_list"]).read_text("utf-8").splitlines()]
    assert [(line["id"], line["of"]) for line in dropped] == [("p1", "p0"), ("p3", "p0")]
    assert tell("curate", "dedup", source, "--out", out)["was_done"] is True
    text = call("curate", "dedup", source, "--out", out, "--force").stdout
    assert "2 records, 1 exact and 1 near copies of 4 dropped" in text


def test_options_and_settings_reach_the_run(tell: Tell, source: Path, tmp_path: Path) -> None:
    strict = tell("curate", "dedup", source, "--out", tmp_path / "a.jsonl", "--threshold", 0.99)
    assert (strict["records"], strict["near"]) == (3, 0)
    by_word = ["--field", "prompt", "--set", "unit=word", "--set", "shingle=1", "--workers", 2]
    assert tell("curate", "dedup", source, "--out", tmp_path / "b.jsonl", *by_word)["records"] == 2


def test_mistakes_are_one_line(
    call: Call, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(ConfigError, match="threshold"):
        call("curate", "dedup", source, "--out", out, "--threshold", 2)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match="engine 'ray' needs the extra 'scale'"):
        call("curate", "dedup", source, "--out", out, "--engine", "ray")
    assert not out.exists()
