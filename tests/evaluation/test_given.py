"""Responses that were there before the evaluation."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from equipoise.config import deciding
from equipoise.errors import DataError
from equipoise.evaluation.given import read_responses
from equipoise.evaluation.run import EvaluateConfig
from equipoise.records import Prompt

PROMPTS = [
    Prompt(id=name, prompt=f"Question {name}?", is_harmful=False, licence="CC0-1.0") for name in ("b", "a")
]


def row(name: str, sample: int, **changes: Any) -> dict[str, Any]:
    told = {"prompt": f"Question {name}?", "response": f"{name}\u2028{sample}", "model": "m"}
    return {"id": name, "sample": sample, **told, **changes}


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    file = path / "responses.jsonl"
    file.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows))
    return file


def test_responses_come_in_the_order_of_the_suite_whatever_else_the_file_has(tmp_path: Path) -> None:
    rows = [row("a", 1), row("other", 0), row("a", 0, tokens=3), row("b", 1), row("b", 0)]
    found = read_responses(written(tmp_path, rows), PROMPTS, 2)
    assert [(r.id, r.sample) for r in found] == [("b", 0), ("b", 1), ("a", 0), ("a", 1)]
    assert found[2].response == "a\u20280"
    assert len(read_responses(tmp_path / "responses.jsonl", PROMPTS, 1)) == 2


def test_a_row_without_a_sample_is_the_only_one(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row(name, 0).items() if k != "sample"} for name in "ab"]
    assert [r.sample for r in read_responses(written(tmp_path, rows), PROMPTS, 1)] == [0, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("a", 0)], r"lacks 1 of 2 responses to the suite; the first is to id 'b', sample 0"),
        ([row("a", 0), row("a", 0)], r":2: a second response to 'a', sample 0"),
        ([row("a", 0, prompt="Another?")], r":1: id 'a' is another prompt than in the suite"),
        ([row("a", 0), row("b", 0, model="n")], r":2: a response of 'n' beside those of 'm'"),
        ([row("a", 0, response=None)], r":1: response: .*; expected a response"),
    ],
)
def test_what_does_not_fit_is_said_with_its_place(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_responses(written(tmp_path, rows), PROMPTS, 1)


@pytest.mark.parametrize(("given", "word"), [({}, "neither"), ({"model": "m", "responses": "r"}, "both")])
def test_either_a_model_or_responses_are_given(given: dict[str, str], word: str) -> None:
    with pytest.raises(ValidationError, match=f"model, responses: got {word}; expected one of them"):
        EvaluateConfig.model_validate({"guard": "g", **given})


def test_decoding_is_not_told_of_responses_that_are_there() -> None:
    with pytest.raises(ValidationError, match="temperature: goes with a model, which responds"):
        EvaluateConfig.model_validate({"guard": "g", "responses": "r", "temperature": 0.7})
    whole = EvaluateConfig(guard="g", model="m").model_dump(mode="json")
    assert EvaluateConfig.model_validate(whole) == EvaluateConfig(guard="g", model="m")


def test_an_evaluation_of_a_model_has_the_identity_that_it_had_before_responses_could_be_given() -> None:
    assert "responses" not in deciding(EvaluateConfig(guard="g", model="m"))
