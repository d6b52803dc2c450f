"""The moderation set of OpenAI on rows of our own: what is absent was not looked at."""

from typing import Any

import pytest

from equipoise.data.check import check
from equipoise.data.io import Placed
from equipoise.data.rows import Row
from equipoise.data.sources import import_records
from equipoise.errors import DataError
from equipoise.records import Exchange

CLEAN: dict[str, Any] = {"S": 0, "H": 0, "V": 0, "HR": 0, "SH": 0, "S3": 0, "H2": 0, "V2": 0}


def read(labels: dict[str, Any], path: str = "x.jsonl") -> Exchange:
    (record,) = import_records("openai-moderation", [Row(path, 1, {"prompt": "I like tea."} | labels)])
    assert isinstance(record, Exchange)
    assert not list(check([Placed("x.jsonl", 1, record)]))
    return record


def test_a_text_with_every_label_at_0_is_safe() -> None:
    record = read(CLEAN)
    assert (record.prompt, record.response) == ("", "I like tea.")
    assert (record.is_safe, record.categories, record.rated) == (True, frozenset(), None)
    assert (record.taxonomy, record.licence, record.label_origin) == ("openai5", "MIT", "human")
    assert record.provenance == {}


def test_a_label_that_is_absent_was_not_rated_and_nothing_is_called_safe() -> None:
    record = read({"H": 0, "V": 0})
    assert (record.is_safe, record.categories) == (None, frozenset())
    assert record.rated == {"hate", "violence"}
    nobody = read({})
    assert (nobody.is_safe, nobody.categories, nobody.rated) == (None, None, frozenset())
    assert nobody.category_severity is None


def test_a_label_at_1_is_unsafe_whatever_else_is_unknown() -> None:
    record = read({"SH": 1, "V": 0})
    assert (record.is_safe, record.categories) == (False, {"self-harm"})
    assert record.rated == {"self-harm", "violence"}
    assert record.category_severity == {"self-harm": 1, "violence": 0}


@pytest.mark.parametrize(
    ("labels", "name", "level"),
    [
        ({"S": 1, "S3": 1}, "sexual", 3),
        ({"H": 1, "H2": 1}, "hate", 2),
        ({"V": 1, "V2": 1}, "violence", 2),
        ({"H": 1, "H2": 0}, "hate", 1),
        ({"H2": 1}, "hate", 2),
    ],
)
def test_a_severer_form_is_a_level_of_its_category(labels: dict[str, int], name: str, level: int) -> None:
    record = read(labels)
    assert record.categories == {name}
    assert record.category_severity == {name: level}
    assert record.severity is None


def test_rows_of_the_hub_may_have_null_and_floats() -> None:
    record = read({"S": None, "H": 1.0, "V": 0.0}, path="hub:owner/name")
    assert (record.categories, record.rated) == ({"hate"}, {"hate", "violence"})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"S": 2}, "S: expected 0 or 1, got 2"),
        ({"V": "yes"}, "V: expected 0 or 1, got 'yes'"),
        ({"V": [1]}, "V: expected 0 or 1, got a list of 1"),
        ({"H": 0, "H2": 1}, "H2: the severer form of H, which is 0, got 1"),
    ],
)
def test_a_label_that_makes_no_sense_is_named(labels: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"x.jsonl:1: {message}"):
        read(labels)
