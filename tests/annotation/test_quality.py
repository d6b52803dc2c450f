"""What is known of an annotator: gold, drift, speed and contradictions, each planted and found."""

import numpy as np
import pytest

from equipoise.annotation.consensus import consensus
from equipoise.annotation.quality import RaterReport, drift, rater_reports, speed, truth_of
from equipoise.annotation.raters import collect
from equipoise.records import Answer, Exchange, Judgement, Labels, Pair
from equipoise.stats import wilson


def judged(subject: str, annotator: str = "ann", seconds: float | None = None, **fields: object) -> Judgement:
    labels = {name: fields.pop(name) for name in list(fields) if name in Labels.model_fields}
    return Judgement(
        id=f"{subject}-{annotator}",
        subject=subject,
        annotator=annotator,
        label_origin="human",
        seconds=seconds,
        labels=Labels(**labels) if labels else None,  # type: ignore[arg-type]
        **fields,  # type: ignore[arg-type]
    )


def exchange(name: str, **labels: object) -> Exchange:
    return Exchange(id=name, prompt=f"prompt {name}", response="some words here", **labels)  # type: ignore[arg-type]


def report(
    judgements: list[Judgement], records: list[Exchange | Pair], gold: list[Exchange | Pair] | None = None
) -> dict[str, RaterReport]:
    panel = collect(judgements)
    questions = consensus(records, panel).questions
    return {r.name: r for r in rater_reports(judgements, panel, records, questions, gold=gold or [])}


def pair(name: str, first: str, second: str) -> Pair:
    return Pair(id=name, prompt="q", answers=(Answer(response=first), Answer(response=second)))


def test_gold_accuracy_is_counted_per_question_with_wilsons_interval() -> None:
    gold = [exchange(f"g{i}", is_safe=i % 2 == 0, severity=i % 2) for i in range(40)]
    judgements = [judged(f"g{i}", "good", is_safe=i % 2 == 0, severity=i % 2) for i in range(40)]
    judgements += [judged(f"g{i}", "bad", is_safe=i < 20) for i in range(40)]
    found = report(judgements, [exchange(f"g{i}") for i in range(40)], gold)
    assert found["good"].gold == {"is_safe": wilson(40, 40), "severity": wilson(40, 40)}
    assert found["bad"].gold["is_safe"] == wilson(20, 40)
    assert found["good"].flags == []
    assert "gold" in found["bad"].flags


def test_an_annotator_who_tires_drifts_and_a_steady_one_does_not() -> None:
    rng = np.random.default_rng(0)
    truth = {(f"x{i}", "is_safe"): bool(rng.random() < 0.5) for i in range(200)}
    skill = {"steady": [0.9] * 200, "tiring": [0.95] * 100 + [0.6] * 100}
    found = {}
    for name, chances in skill.items():
        rows = [
            judged(f"x{i}", name, is_safe=right if rng.random() < chances[i] else not right)
            for i, right in enumerate(truth.values())
        ]
        found[name] = drift(rows, truth)
    assert found["tiring"].high < 0
    assert found["tiring"].value == pytest.approx(-0.35, abs=0.12)
    assert found["steady"].low < 0 < found["steady"].high
    assert drift([judged("x1", is_safe=True)], truth).n == 0


def test_speed_is_that_of_people_against_the_length_of_the_text() -> None:
    rows = [judged("long", seconds=5.0), judged("long", seconds=20.0), judged("short", seconds=0.4)]
    rows += [judged("short", seconds=3.0), judged("short")]
    middle, share = speed(rows, {"long": 160, "short": 3}, is_person=True)
    assert middle == 4.0
    assert (share.value, share.n) == (0.5, 4)  # 160 words take 10 seconds to skim
    assert speed(rows, {}, is_person=False) == (None, speed([], {}, is_person=True)[1])


@pytest.mark.parametrize(
    ("first", "second", "chosen", "field"),
    [
        ({"is_safe": True, "severity": 2}, {}, None, "answers.0.severity"),
        ({"is_safe": False, "severity": 0}, {}, None, "answers.0.severity"),
        ({"is_safe": True, "categories": frozenset({"Drugs"})}, {}, None, "answers.0.categories"),
        ({"is_safe": False}, {"is_safe": True}, 0, "safer"),
        ({"is_safe": False}, {"is_safe": True}, "tie", "safer"),
        ({"is_safe": False}, {"is_safe": True}, 1, None),
        ({"is_safe": False, "severity": 1}, {"is_safe": False, "severity": 3}, 1, None),
    ],
)
def test_labels_that_do_not_fit_together(
    first: dict[str, object], second: dict[str, object], chosen: object, field: str | None
) -> None:
    rows = [judged("p#0", **first), judged("p#1", **second), judged("p", safer=chosen)]  # type: ignore[arg-type]
    found = report(rows, [pair("p", "a", "b")])["ann"].contradictions
    if field is None:
        assert found == []
    else:
        assert [line.split(": ")[:2] for line in found] == [["p", field]]


def test_labels_of_the_record_itself_are_not_the_annotators() -> None:
    record = exchange("x", is_safe=True, severity=0)
    assert report([judged("x", severity=2)], [record])["ann"].contradictions == []


def test_the_same_text_judged_both_ways_is_a_contradiction_of_one_annotator_only() -> None:
    twin = exchange("y").model_copy(update={"prompt": "prompt x"})
    rows = [judged("x", "ann", is_safe=True), judged("y", "ann", is_safe=False)]
    rows += [judged("x", "bob", is_safe=True), judged("y", "bob", is_safe=True)]
    found = report(rows, [exchange("x"), twin])
    assert found["ann"].contradictions == ["y: is_safe: judged otherwise elsewhere, the text is the same"]
    assert found["bob"].contradictions == []


def test_preferences_in_a_circle_are_found_and_ties_are_none() -> None:
    records: list[Exchange | Pair] = [
        pair("1", "a", "b"),
        pair("2", "b", "c"),
        pair("3", "a", "c"),
        pair("4", "c", "d"),
    ]
    circle = [judged("1", better=0), judged("2", better=0), judged("3", better=1), judged("4", better=0)]
    assert report(circle, records)["ann"].cycles == ["1", "2", "3"]
    chain = [judged("1", better=0), judged("2", better=0), judged("3", better="tie"), judged("4", better=0)]
    assert report(chain, records)["ann"].cycles == []


def test_an_answer_that_was_changed_is_listed() -> None:
    rows = [judged("x", is_safe=True), judged("x", is_safe=False)]
    assert report(rows, [exchange("x")])["ann"].changed == ["x: is_safe"]


def test_many_contradictions_raise_a_flag() -> None:
    rows = [judged(f"x{i}", is_safe=True, severity=1 if i < 8 else 0) for i in range(40)]
    assert report(rows, [exchange(f"x{i}") for i in range(40)])["ann"].flags == ["contradictions"]


def test_report_is_plain_json_and_holds_the_confusion_matrix() -> None:
    rows = [judged(f"x{i}", name, is_safe=i < 5) for i in range(10) for name in ("ann", "bob")]
    found = report(rows, [exchange(f"x{i}") for i in range(10)])["ann"].to_json()
    assert found["drift"]["value"] == 0.0
    assert found["too_fast"]["value"] is None
    (safe, unsafe) = found["questions"]["is_safe"]["confusion"]
    assert safe[0] > 0.8
    assert unsafe[1] > 0.8


def test_truth_of_records_is_by_subject_and_question() -> None:
    record = pair("p", "a", "b").model_copy(update={"better": "tie"})
    assert truth_of([exchange("x", is_safe=True), record]) == {
        ("x", "is_safe"): True,
        ("x", "severity"): 0,
        ("p", "better"): "tie",
    }
