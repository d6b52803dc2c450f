"""What is a contradiction between labels and what is not, and what becomes of records that have one."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from equipoise.data.check import Finding, FoundError, check, is_safe, ranked_safer
from equipoise.data.identity import AnyRecord
from equipoise.data.io import Placed
from equipoise.data.resolve import OnContradiction, Resolved, resolve
from equipoise.records import Answer, Exchange, Labels, Pair, Prompt
from equipoise.taxonomy import load_taxonomy

NAMES = load_taxonomy("pku19").names
ALL = frozenset(NAMES)


def found(*records: AnyRecord) -> list[Finding]:
    return list(check(Placed("f", number, record) for number, record in enumerate(records, start=1)))


def exchange(**labels: Any) -> Exchange:
    return Exchange(**({"id": "x", "prompt": "p", "response": "r"} | labels))


def pair(first: dict[str, Any], second: dict[str, Any], **choices: Any) -> Pair:
    answers = (Answer(response="a", **first), Answer(response="b", **second))
    return Pair(**({"id": "x", "prompt": "p"} | choices), answers=answers)


DRUGS = frozenset({"Drugs"})
NONE: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"is_safe": True, "severity": 0, "categories": NONE},
        {"is_safe": False, "severity": 2, "categories": DRUGS},
        {"is_safe": False, "severity": 1},
        {"is_safe": False, "categories": NONE, "rated": DRUGS},  # unsafe in a category nobody looked at
        {"severity": 2, "categories": DRUGS, "category_severity": {"Drugs": 2, "Violence": 0}},
        {"severity": 3, "category_severity": {"Drugs": 2}},  # other categories may be worse
        {"is_safe": False, "category_severity": {"Drugs": 0}},
        {"categories": DRUGS, "rated": frozenset({"Drugs", "Violence"})},
    ],
)
def test_labels_that_agree_or_are_absent_pass(labels: dict[str, Any]) -> None:
    assert found(exchange(**labels)) == []


@pytest.mark.parametrize(
    ("labels", "field"),
    [
        ({"is_safe": True, "severity": 1}, "severity"),
        ({"is_safe": False, "severity": 0}, "severity"),
        ({"is_safe": True, "categories": DRUGS}, "categories"),
        ({"is_safe": False, "categories": NONE}, "categories"),
        ({"severity": 0, "categories": DRUGS}, "categories"),
        ({"severity": 2, "categories": NONE}, "categories"),
        ({"is_safe": True, "severity": 2, "categories": DRUGS}, "is_safe"),  # the odd one out
        ({"is_safe": False, "severity": 0, "categories": DRUGS}, "severity"),
        ({"is_safe": True, "category_severity": {"Drugs": 1}}, "category_severity"),
        ({"categories": DRUGS, "rated": frozenset({"Violence"})}, "categories"),
        ({"rated": DRUGS, "category_severity": {"Violence": 0}}, "category_severity"),
        ({"categories": DRUGS, "category_severity": {"Drugs": 0}}, "category_severity.Drugs"),
        (
            {"categories": DRUGS, "category_severity": {"Drugs": 1, "Violence": 1}},
            "category_severity.Violence",
        ),
        ({"severity": 1, "category_severity": {"Drugs": 2}}, "severity"),
        ({"severity": 3, "categories": DRUGS, "category_severity": {"Drugs": 2}}, "severity"),
        ({"severity": 3, "rated": DRUGS, "category_severity": {"Drugs": 2}}, "severity"),
    ],
)
def test_labels_that_contradict_each_other_are_one_finding(labels: dict[str, Any], field: str) -> None:
    (finding,) = found(exchange(**labels))
    assert (finding.field, finding.kind, finding.line, finding.id) == (field, "contradiction", 1, "x")


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("severity", [0, 1, 2, 3])
@pytest.mark.parametrize("categories", [NONE, DRUGS, ALL])
def test_the_rule_of_the_release_in_full(safe: bool, severity: int, categories: frozenset[str]) -> None:
    agrees = safe == (severity == 0) == (not categories) and (severity == 0) == (not categories)
    labels = {"is_safe": safe, "severity": severity, "categories": categories}
    assert (found(exchange(**labels)) == []) == agrees


def test_unknown_names_are_found_with_the_near_name() -> None:
    (finding,) = found(exchange(categories=frozenset({"Drug"}), is_safe=False))
    assert (finding.field, finding.kind) == ("categories", "category")
    assert "did you mean 'Drugs'" in finding.message
    (finding,) = found(exchange(category_severity={"Nothing": 0}))
    assert finding.field == "category_severity"
    (finding,) = found(exchange(taxonomy="pku91"))
    assert (finding.field, finding.kind) == ("taxonomy", "taxonomy")


def test_severity_above_the_scale_of_the_taxonomy_is_found() -> None:
    (finding,) = found(exchange(taxonomy="beavertails14", severity=2))
    assert (finding.field, finding.kind) == ("severity", "taxonomy")
    assert "got 2; highest 1" in finding.message


def test_prompts_are_checked_by_the_same_rule() -> None:
    prompt = Prompt(id="x", prompt="p", is_harmful=False, categories=DRUGS)
    (finding,) = found(prompt)
    assert "is_harmful false" in finding.message
    assert found(prompt.model_copy(update={"is_harmful": True, "severity": 1})) == []
    assert found(prompt.model_copy(update={"is_harmful": True, "severity": 0}))[0].field == "severity"


@pytest.mark.parametrize("safer", [1, "tie"])
def test_a_safe_answer_ranks_above_an_unsafe_one(safer: Any) -> None:
    (finding,) = found(pair({"is_safe": True}, {"is_safe": False}, safer=safer))
    assert (finding.field, finding.kind) == ("safer", "safer")
    assert "expected 0" in finding.message


@pytest.mark.parametrize(
    ("first", "second", "safer"),
    [
        ({"is_safe": True}, {"is_safe": False}, 0),
        ({"is_safe": True}, {"is_safe": False}, None),
        ({"is_safe": True}, {}, 1),
        ({"is_safe": False, "severity": 3}, {"is_safe": False, "severity": 1}, 0),
        ({"severity": 2}, {"severity": 0}, 1),
    ],
)
def test_rankings_that_the_rule_allows(first: dict[str, Any], second: dict[str, Any], safer: Any) -> None:
    assert found(pair(first, second, safer=safer)) == []


def test_answers_of_a_pair_are_named() -> None:
    (finding,) = found(pair({}, {"is_safe": True, "severity": 3}))
    assert finding.field == "answers.1.severity"


def test_duplicate_id_names_the_first_place() -> None:
    (finding,) = found(exchange(), exchange(response="other"))
    assert (finding.line, finding.kind, finding.message) == (2, "duplicate-id", "stands already at f:1")


def test_one_text_labelled_both_ways_is_a_conflict_over_kinds() -> None:
    both = [
        exchange(id="a", response="b", is_safe=True),
        pair({}, {"severity": 2}, id="b"),
        exchange(id="c", response="b"),
    ]
    (finding,) = found(*both)
    assert (finding.line, finding.field, finding.kind) == (2, "answers.1.is_safe", "conflict")
    assert finding.message == "unsafe, but the same text is safe at f:1"


def test_text_is_never_shown() -> None:
    findings = found(exchange(prompt="secret", response="secret", is_safe=True, severity=3))
    assert all("secret" not in str(finding) for finding in findings)
    assert str(findings[0]).startswith("f:1: severity: ")


def test_safety_is_taken_from_the_first_label_that_is_given() -> None:
    assert is_safe(Labels(is_safe=True, severity=3)) is True
    assert is_safe(Labels(severity=0)) is True
    assert is_safe(Labels(categories=DRUGS)) is False
    assert is_safe(Labels(categories=NONE, rated=DRUGS)) is None
    assert is_safe(Labels(category_severity={"Drugs": 1})) is False
    assert ranked_safer(pair({"is_safe": False}, {"severity": 0})) == 1
    assert ranked_safer(pair({"is_safe": True}, {"is_safe": True})) is None


GOOD = exchange(id="good", response="g", is_safe=True)
WRONG = exchange(id="wrong", response="w", is_safe=True, severity=2)
ONE_WAY = exchange(id="one", response="c", is_safe=True)
OTHER_WAY = exchange(id="other", response="c", is_safe=False)
TURNED = pair({"is_safe": True}, {"is_safe": False}, safer=1, id="turned", prompt="q")
BOTH = pair({"is_safe": True, "severity": 1}, {"is_safe": False}, safer=1, id="both", prompt="z")


class Result(NamedTuple):
    records: list[AnyRecord]
    dropped: list[str]
    flipped: list[str]
    kept: list[str]


def resolved(mode: OnContradiction, *records: AnyRecord) -> Result:
    placed, log = (
        [Placed("f", number, record) for number, record in enumerate(records, start=1)],
        Resolved([], [], []),
    )
    return Result(list(resolve(placed, check(placed), mode, log)), *log)


MIXED = (GOOD, WRONG, ONE_WAY, OTHER_WAY, TURNED, BOTH)


def test_drop_leaves_out_all_that_take_part_in_a_contradiction() -> None:
    result = resolved("drop", *MIXED)
    assert result.records == [GOOD]
    assert result.dropped == ["f:2", "f:3", "f:4", "f:5", "f:6"]


def test_flip_mends_the_ranking_and_leaves_the_rest_out() -> None:
    result = resolved("flip", *MIXED)
    assert result.records == [GOOD, TURNED.model_copy(update={"safer": 0})]
    assert (result.flipped, result.dropped) == (["f:5"], ["f:2", "f:3", "f:4", "f:6"])
    assert found(*result.records) == []


def test_keep_keeps_and_lists() -> None:
    result = resolved("keep", *MIXED)
    assert result.records == list(MIXED)
    assert result.kept == ["f:2", "f:3", "f:4", "f:5", "f:6"]


def test_error_writes_only_what_has_no_finding() -> None:
    assert resolved("error", GOOD).records == [GOOD]
    with pytest.raises(FoundError) as caught:
        resolved("error", *MIXED)
    assert {finding.line for finding in caught.value.findings} == {2, 4, 5, 6}


@pytest.mark.parametrize("mode", ["drop", "flip", "keep"])
def test_other_problems_are_errors_under_every_choice(mode: OnContradiction, tmp_path: Path) -> None:
    with pytest.raises(FoundError, match="duplicate-id"):
        resolved(mode, WRONG, GOOD, GOOD)
    with pytest.raises(FoundError, match="no category 'Drug'"):
        resolved(mode, exchange(categories=frozenset({"Drug"})))
