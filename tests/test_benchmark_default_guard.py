"""What the shipped guard may learn from: licences, limits, parts; on rows of our own, shaped like theirs."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from equipoise.records import Exchange, Prompt

REPORTED = "How do I open a tin without a tin opener?"


@pytest.fixture(scope="module")
def script(load_scripts: Any) -> Any:
    names = ("default_guard", "default_guard_rows", "default_guard_measures", "default_guard_card", "common")
    return load_scripts(*names)["default_guard"]


@pytest.fixture
def data(script: Any, tmp_path: Path) -> Path:
    """A folder with a few rows of every source, and of the files that are reported."""
    answer = {"response": "Ask a neighbour.", "is_safe": True, "label_origin": "human"}
    refused = {"is_refusal": True, "response": "I would rather not.", "label_origin": "human"}
    pair = {"response_0": "Ask a neighbour.", "response_1": "Hit it.", "safer_response_id": 0, "turns": 1}
    says = dict.fromkeys(
        ("fully_complies", "partially_complies", "disallowed_content", "illogical_continuation_of_prompt"),
        False,
    )
    extra = {"propositions": says, "ideal_response_type": "Comply", "is_harmful": True, "subset": "mine"}
    row = {**extra, **pair, **refused, **answer}
    files = {source.file or name for name, source in script.SOURCES.items()}
    for name in files:
        lines = [{**row, "id": f"{name}-{i}", "prompt": f"Human: {name}: question {i}?"} for i in range(4)]
        lines.append({**row, "id": f"{name}-seen", "prompt": REPORTED.upper()})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    reported = {
        **pair,
        "id": "a",
        "prompt": REPORTED,
        "is_response_0_safe": True,
        "is_response_1_safe": False,
    }
    for name in ("pku_saferlhf_mini", "pku_saferlhf_pairs"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(reported) + "\n")
    for name in ("oktest", "llm_safeguard"):
        (tmp_path / f"{name}.jsonl").write_text('{"id": "b", "prompt": "Hm?", "is_harmful": false}\n')
    return tmp_path


def test_no_source_is_learned_from_whose_licence_forbids_it(script: Any) -> None:
    assert {source.licence for source in script.SOURCES.values()} <= {"MIT", "Apache-2.0", "CC-BY-4.0"}
    files = {source.file or name for name, source in script.SOURCES.items()}
    assert not [name for name in files if name.startswith(("pku", "do_not", "alert", "s_eval", "oktest"))]


def test_every_row_says_where_it_is_from_and_none_is_to_a_reported_prompt(script: Any, data: Path) -> None:
    rows = script.learnable(data)
    ours = {"builtin", "requests", "questions", "harmless_prompts"}
    assert {row.source for row in rows} == {*script.SOURCES, *ours}
    assert "unknown" not in {row.licence for row in rows}
    assert not [row for row in rows if REPORTED.lower() in str(row.prompt).lower()]


def test_questions_of_do_not_answer_are_left_out(script: Any, data: Path) -> None:
    path = data / "trustllm_misuse.jsonl"
    lines = [json.loads(line) | {"subset": "do_not_answer"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert script.rows_of("trustllm_misuse", data) == []


def test_rows_to_one_prompt_are_in_one_part(script: Any) -> None:
    parts = set()
    for i in range(40):
        one = Prompt(id="a", prompt=f"Why is day {i} longer?")
        other = Exchange(id="b", prompt=f"why is  day {i} longer?", response="It is summer.")
        assert script.part_of(one) == script.part_of(other)
        parts.add(script.part_of(one))
    assert parts == set(script.PARTS)


def test_a_preference_is_three_votes_of_five(script: Any, data: Path) -> None:
    better, worse = script.rows_of("hh_harmless", data)[:2]
    assert (better.is_safe, worse.is_safe) == (None, None)
    assert [vote.labels.is_safe for vote in script.votes(better)] == [True, True, True, False, False]
    assert [vote.labels.is_safe for vote in script.votes(worse)] == [True, True, False, False, False]
    assert {vote.subject for vote in script.votes(worse)} == {worse.id}
    assert script.votes(Exchange(id="c", prompt="Why?", response="So.", is_safe=False)) == []


def test_each_turn_of_a_dialogue_is_compared_with_the_reported_prompts(script: Any) -> None:
    rows = sys.modules["default_guard_rows"]
    assert {"hello", "why"} <= set(rows.turns("user: Hello?\n\nassistant: Yes?\n\nuser: Why?"))
    assert rows.turns("Why?") == ["why", "why"]


class WordGuard:
    """Flags what says "bad"."""

    def read(self, pairs: Sequence[Any]) -> "WordGuard":
        self.texts = [pair.prompt for pair in pairs]
        return self

    def verdict(self, row: int) -> SimpleNamespace:
        bad = "bad" in self.texts[row]
        return SimpleNamespace(unsafe_probability=float(bad), is_safe=not bad)


def test_the_half_that_was_set_aside_is_told_beside_the_whole(script: Any, tmp_path: Path) -> None:
    measures, common = sys.modules["default_guard_measures"], sys.modules["common"]
    rows = [
        {"id": f"{i}", "prompt": f"{'bad' if i % 3 == 0 else 'good'} idea {i}", "is_harmful": i % 5 == 0}
        for i in range(60)
    ]
    for name in ("oktest", "llm_safeguard"):
        kept = [row | {"is_harmful": False} for row in rows] if name == "oktest" else rows
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    found = measures.over_refusal(WordGuard(), tmp_path)
    aside = [row for row in rows if common.is_set_aside(row["prompt"])]
    assert 15 < len(aside) < 45

    def share(of: list[dict[str, Any]]) -> float:
        return sum("bad" in row["prompt"] for row in of) / len(of)

    harmless = [row for row in rows if not row["is_harmful"]]
    assert found["oktest_harmless_flagged"].value == pytest.approx(share(rows))
    assert found["oktest_harmless_flagged_set_aside"].value == pytest.approx(share(aside))
    assert found["llm_safeguard_harmless_flagged"].value == pytest.approx(share(harmless))
    told = found["llm_safeguard_harmful_flagged_set_aside"]
    assert told.value == pytest.approx(share([row for row in aside if row["is_harmful"]]))
    assert told.n == sum(row["is_harmful"] for row in aside)
    assert "oktest_harmful_flagged" not in found
