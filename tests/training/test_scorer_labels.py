"""Labels of a scorer: what is known as numbers, what is not as -1, and pairs that contradict."""

from pathlib import Path
from typing import Any

import pytest

from equipoise.data.check import FoundError
from equipoise.data.io import write_records
from equipoise.errors import DataError, TaxonomyError
from equipoise.records import Answer, Pair
from equipoise.taxonomy import load_taxonomy
from equipoise.training.scorer_labels import Harm, pair_labels, read_pairs

NAMES = load_taxonomy("pku19").names
VIOLENCE, DRUGS = NAMES[5], NAMES[6]


def pair(first: dict[str, Any] | None = None, second: dict[str, Any] | None = None, **fields: Any) -> Pair:
    answers = (Answer(**({"response": "a"} | (first or {}))), Answer(**({"response": "b"} | (second or {}))))
    return Pair(**({"id": "p7", "source": "here", "prompt": "ask", "answers": answers} | fields))


def columns(harm: Harm) -> list[list[int]]:
    return [tensor.tolist() for tensor in harm]


SAFE, UNSAFE = {"is_safe": True}, {"is_safe": False}


def test_labels_become_numbers_and_missing_ones_minus_one() -> None:
    labels, trained, taxonomy = pair_labels([pair(better=1), pair(UNSAFE, UNSAFE, safer="tie"), pair()])
    assert labels.better.tolist() == [1, -1, -1]
    assert columns(labels.harm) == [[-1, -1, -1], [-1, 1, -1], [-1, 1, -1], [0, 0, 0]]
    assert labels.categories.safer.shape == (3, 0)
    assert (trained, taxonomy) == (("reward", "cost"), None)


@pytest.mark.parametrize(
    ("first", "second", "gap"),
    [
        (SAFE | {"severity": 0}, UNSAFE | {"severity": 3}, 3),
        (UNSAFE | {"severity": 3}, UNSAFE | {"severity": 1}, -2),
        (SAFE, UNSAFE | {"severity": 2}, 2),  # a safe answer has severity 0, said or not
        (SAFE, UNSAFE, 0),
        ({"severity": 1}, {}, 0),
    ],
)
def test_the_severity_gap_is_that_of_answer_1_where_both_are_known(
    first: dict[str, Any], second: dict[str, Any], gap: int
) -> None:
    assert pair_labels([pair(first, second, better=0)])[0].harm.severity_gap.tolist() == [gap]


def of_category(first: dict[str, Any], second: dict[str, Any], name: str) -> list[int]:
    """Safer, unsafe 0, unsafe 1 and gap of one category, beside a pair that has a category for certain."""
    sure = pair(UNSAFE | {"categories": {DRUGS}}, SAFE)
    labels, _, taxonomy = pair_labels([pair(first, second, better=0), sure], categories=True)
    assert taxonomy == load_taxonomy("pku19")
    return [int(tensor[0, NAMES.index(name)]) for tensor in labels.categories]


GRADED = {"categories": {VIOLENCE, DRUGS}, "category_severity": {VIOLENCE: 3, DRUGS: 1}}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (UNSAFE | {"categories": {VIOLENCE}}, SAFE, [1, 1, 0, 0]),
        (SAFE, UNSAFE | {"categories": {VIOLENCE}, "severity": 2}, [0, 0, 1, 2]),  # of this category alone
        (SAFE, UNSAFE | {"categories": {VIOLENCE, DRUGS}, "severity": 2}, [0, 0, 1, 0]),
        (SAFE, UNSAFE | GRADED, [0, 0, 1, 3]),
        (UNSAFE | GRADED, UNSAFE | {"categories": {VIOLENCE}, "severity": 1}, [1, 1, 1, -2]),
        (UNSAFE | {"categories": {DRUGS}}, UNSAFE | {"categories": {DRUGS}}, [-1, 0, 0, 0]),
        (UNSAFE | {"categories": {DRUGS}, "rated": {DRUGS}}, SAFE, [-1, -1, 0, 0]),  # nobody looked
        (UNSAFE, SAFE, [-1, -1, 0, 0]),  # unsafe in some way
        ({"category_severity": {VIOLENCE: 0}}, {"category_severity": {VIOLENCE: 2}}, [0, 0, 1, 2]),
        ({}, {}, [-1, -1, -1, 0]),
    ],
)
def test_each_category_is_known_by_itself(
    first: dict[str, Any], second: dict[str, Any], expected: list[int]
) -> None:
    assert of_category(first, second, VIOLENCE) == expected


def test_pairs_without_any_label_are_an_error() -> None:
    with pytest.raises(DataError, match="no pair or exchange has a label"):
        pair_labels([pair(better="tie", safer="tie")])
    with pytest.raises(DataError, match="category_weight: no answer has a category"):
        pair_labels([pair(SAFE, SAFE)], categories=True)


def test_two_taxonomies_or_an_unknown_category_are_one_clear_line() -> None:
    two = [pair(better=0), pair(better=0, taxonomy="beavertails14")]
    with pytest.raises(
        DataError, match="category_weight: records of taxonomies beavertails14, pku19"
    ) as caught:
        pair_labels(two, categories=True)
    assert "\n" not in str(caught.value)
    assert pair_labels(two)[1] == ("reward",)  # of no matter without heads for categories
    with pytest.raises(TaxonomyError, match="no category 'Violenc'"):
        pair_labels([pair(UNSAFE | {"categories": {"Violenc"}}, SAFE)], categories=True)


ROWS = [
    pair(SAFE, UNSAFE, id="contrary", safer=1, prompt="one"),
    pair(SAFE, UNSAFE, id="tied", safer="tie", prompt="two"),
    pair(id="for", better=0, prompt="three"),
    pair(id="against", better=1, prompt="three"),
    pair(id="fine", better=1, prompt="four"),
]


@pytest.mark.parametrize(
    ("mode", "kept", "counts"),
    [
        ("drop", ["tied", "fine"], (3, 0, 0)),
        ("flip", ["contrary", "tied", "fine"], (2, 1, 0)),
        ("keep", ["contrary", "tied", "for", "against", "fine"], (0, 0, 3)),
    ],
)
def test_pairs_that_contradict_are_treated_as_data_check_does(
    tmp_path: Path, mode: Any, kept: list[str], counts: tuple[int, int, int]
) -> None:
    write_records(tmp_path / "pairs.jsonl", ROWS)
    pairs, log = read_pairs([tmp_path / "pairs.jsonl"], mode)
    assert [one.id for one in pairs] == kept
    assert tuple(map(len, log)) == counts
    if mode == "flip":
        assert pairs[0].safer == 0


def test_by_default_nothing_is_trained_on_them(tmp_path: Path) -> None:
    write_records(tmp_path / "pairs.jsonl", ROWS)
    with pytest.raises(FoundError, match="3 problems in the data") as caught:
        read_pairs([tmp_path / "pairs.jsonl"], "error")
    assert [one.id for one in caught.value.findings] == ["contrary", "for", "against"]
    write_records(tmp_path / "fine.jsonl", [ROWS[1], ROWS[4]])
    assert read_pairs([tmp_path / "fine.jsonl"], "error") == ([ROWS[1], ROWS[4]], ([], [], []))
