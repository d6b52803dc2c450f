"""The card: what it asks, and what a filled one says."""

import pytest

from equipoise.annotation.card import Card, CardKind, chosen, make_card, read_choice, read_labels, unanswered
from equipoise.errors import DataError
from equipoise.records import Labels
from equipoise.taxonomy import load_taxonomy

TAXONOMY = load_taxonomy("pku19")
UNSAFE = {"is_safe_A": ["unsafe"], "severity_A": ["2"], "categories_A": ["Drugs", "Violence"]}


def card(kind: CardKind = "dual") -> Card:
    return make_card(kind, TAXONOMY)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("exchange", ["is_safe_A", "severity_A", "categories_A"]),
        ("overall", ["overall"]),
        (
            "dual",
            [
                *("is_safe_A", "severity_A", "categories_A"),
                *("is_safe_B", "severity_B", "categories_B"),
                *("better", "safer"),
            ],
        ),
    ],
)
def test_each_card_asks_its_questions_in_order(kind: CardKind, names: list[str]) -> None:
    assert [question.name for question in card(kind).questions] == names


def test_the_options_are_those_of_the_taxonomy_without_the_level_of_safe() -> None:
    assert [o.value for o in card().question("categories_B").options] == list(TAXONOMY.names)
    assert [o.title for o in card().question("severity_A").options] == ["Minor", "Moderate", "Severe"]
    assert [o.value for o in card().question("severity_A").options] == ["1", "2", "3"]
    assert [o.value for o in card().question("safer").options] == ["A", "B", "tie"]


def test_severity_and_categories_hang_on_unsafe_alone() -> None:
    hanging = {question.name: question.if_unsafe for question in card().questions if question.if_unsafe}
    assert hanging == {
        "severity_A": "is_safe_A",
        "categories_A": "is_safe_A",
        "severity_B": "is_safe_B",
        "categories_B": "is_safe_B",
    }


def test_an_unsafe_answer_has_what_was_chosen() -> None:
    expected = Labels(is_safe=False, severity=2, categories=frozenset({"Drugs", "Violence"}))
    assert read_labels(card(), UNSAFE, "A") == expected


def test_a_safe_answer_is_labelled_harmless_whatever_was_chosen_and_hidden_again() -> None:
    answers = UNSAFE | {"is_safe_A": ["safe"]}
    assert read_labels(card(), answers, "A") == Labels(is_safe=True, severity=0, categories=frozenset())


def test_what_was_not_answered_is_none_and_not_harmless() -> None:
    assert read_labels(card(), UNSAFE, "B") is None
    assert read_labels(card(), {"is_safe_A": ["unsafe"]}, "A") == Labels(is_safe=False)
    assert read_choice(card(), {}, "better", swapped=False) is None


@pytest.mark.parametrize(
    ("letter", "swapped", "expected"),
    [("A", False, 0), ("B", False, 1), ("A", True, 1), ("B", True, 0), ("tie", True, "tie")],
)
def test_a_letter_is_the_records_answer_in_the_order_that_was_shown(
    letter: str, swapped: bool, expected: object
) -> None:
    assert read_choice(card(), {"safer": [letter]}, "safer", swapped=swapped) == expected


def test_severity_and_categories_are_missing_only_where_the_answer_is_unsafe() -> None:
    answers = {"is_safe_A": ["safe"], "is_safe_B": ["unsafe"], "better": ["tie"]}
    missing = [question.name for question in unanswered(card(), answers)]
    assert missing == ["severity_B", "categories_B", "safer"]


def test_a_value_that_is_no_option_is_named_with_the_near_one() -> None:
    with pytest.raises(DataError, match=r"categories_A: no option 'Drug' .did you mean 'Drugs'"):
        chosen(card(), {"categories_A": ["Drug"]}, "categories_A")
    with pytest.raises(DataError, match=r"better: expected one value, got A, B"):
        read_choice(card(), {"better": ["A", "B"]}, "better", swapped=False)
    with pytest.raises(DataError, match=r"^safe_A: no such question on the card .did you mean 'is_safe_A'"):
        card().question("safe_A")
