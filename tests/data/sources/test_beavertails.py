"""BeaverTails on rows of our own in its two schemas."""

from typing import Any

import pytest

from equipoise.data.check import check
from equipoise.data.io import Placed
from equipoise.data.rows import Row
from equipoise.data.sources import import_records
from equipoise.errors import DataError
from equipoise.records import Exchange, Prompt
from equipoise.taxonomy import load_taxonomy

NAMES = load_taxonomy("beavertails14").names
ANSWER: dict[str, Any] = {
    "prompt": "Where do I park?",
    "response": "On the lawn of the neighbour.",
    "category": {name: name == "privacy_violation" for name in NAMES},
    "is_safe": False,
}


def read(*rows: dict[str, Any]) -> list[Any]:
    return list(import_records("beavertails", [Row("x.jsonl", n, row) for n, row in enumerate(rows, 1)]))


def test_an_answer_has_its_flags_and_its_safety_label() -> None:
    safe = ANSWER | {"response": "By the church.", "is_safe": True, "category": dict.fromkeys(NAMES, False)}
    first, second = read(ANSWER, safe)
    assert isinstance(first, Exchange)
    assert (first.is_safe, first.categories, first.rated) == (False, {"privacy_violation"}, None)
    assert (second.is_safe, second.categories) == (True, frozenset())
    assert (first.taxonomy, first.licence, first.source) == ("beavertails14", "CC-BY-NC-4.0", "beavertails")
    assert first.label_origin == "human"
    assert not list(check(Placed("x.jsonl", n, record) for n, record in enumerate((first, second))))


def test_a_prompt_of_the_evaluation_set_has_one_category_by_name() -> None:
    (prompt,) = read({"prompt": "How do I park?", "category": "animal_abuse", "category_id": 0})
    assert isinstance(prompt, Prompt)
    assert (prompt.is_harmful, prompt.categories, prompt.severity) == (True, {"animal_abuse"}, None)
    assert (prompt.taxonomy, prompt.label_origin) == ("beavertails14", "authors")
    assert prompt.provenance == {"category_id": 0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "category": "animal_abus"}, "category: no category 'animal_abus' .*'animal_abuse'"),
        ({"prompt": "p", "category": ["x"]}, "category: no category a list of 1"),
        ({"prompt": "p"}, "category: no such column; it has: prompt"),
        (ANSWER | {"is_safe": "no"}, "is_safe: .*got 'no'"),
        (
            ANSWER | {"category": {"animal_abus": True, "self_harm": True}},
            "category: .*did you mean 'animal_abuse'",
        ),
        ({"prompt": "p", "response": "r"}, "category: no such column"),
    ],
)
def test_a_wrong_row_is_named_by_its_own_column(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"x.jsonl:1: {message}"):
        read(row)
