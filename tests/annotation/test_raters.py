"""Judgements as tables: what counts as an answer, and what is put together."""

import pytest

from equipoise.annotation.raters import answer, cluster_of, collect, questions_in, votes
from equipoise.records import Judgement, Labels


def judged(subject: str, annotator: str, origin: str = "human", **fields: object) -> Judgement:
    labels = {name: fields.pop(name) for name in list(fields) if name in Labels.model_fields}
    return Judgement(
        id=f"{subject}-{annotator}",
        subject=subject,
        annotator=annotator,
        label_origin=origin,
        labels=Labels(**labels) if labels else None,  # type: ignore[arg-type]
        **fields,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("labels", "question", "expected"),
    [
        ({"is_safe": True}, "severity", 0),
        ({"is_safe": True}, "category:Violence", False),
        ({"is_safe": True}, "categories", frozenset()),
        ({"is_safe": False}, "severity", None),
        ({"is_safe": False}, "category:Violence", None),
        ({"severity": 2}, "is_safe", False),
        ({"categories": frozenset({"Violence"})}, "is_safe", False),
        ({"categories": frozenset({"Violence"})}, "category:Violence", True),
        ({"categories": frozenset({"Violence"})}, "category:Drugs", False),
        ({"categories": frozenset(), "rated": frozenset({"Drugs"})}, "category:Drugs", False),
        ({"categories": frozenset(), "rated": frozenset({"Drugs"})}, "category:Violence", None),
        ({"categories": frozenset(), "rated": frozenset({"Drugs"})}, "categories", None),
        ({"categories": frozenset(), "rated": frozenset({"Drugs"})}, "is_safe", None),
        ({"refusal": "full"}, "refusal", "full"),
        ({}, "is_safe", None),
    ],
)
def test_what_labels_say_to_a_question(labels: dict[str, object], question: str, expected: object) -> None:
    assert answer(judged("x", "a", **labels), question) == expected


def test_parts_of_one_judgement_are_put_together_and_a_later_answer_replaces_an_earlier() -> None:
    panel = collect(
        [
            judged("x", "a", better=0),
            judged("x", "a", safer=1),
            judged("x", "a", better="tie"),
            judged("x", "b", is_safe=True),
        ]
    )
    joined = panel.answers["x"]["a"]
    assert (joined.better, joined.safer) == ("tie", 1)
    assert panel.changed == [("a", "x", "better")]


def test_kinds_come_from_the_origin_of_the_labels() -> None:
    panel = collect([judged("x", "a"), judged("x", "m", "model:tiny"), judged("x", "u", None)])  # type: ignore[arg-type]
    assert panel.kinds == {"a": "person", "m": "model", "u": "unknown"}
    assert panel.origins == {"a": "human", "m": "model:tiny", "u": "unknown"}


def test_table_has_a_row_per_subject_and_a_hole_per_missing_answer() -> None:
    panel = collect(
        [judged("x", "a", is_safe=True), judged("x", "b", is_safe=False), judged("y", "b", severity=3)]
    )
    table = votes(panel, "is_safe")
    assert (table.items, table.raters, table.values) == (("x", "y"), ("a", "b"), (True, False))
    assert table.matrix().tolist() == [[0, 1], [-1, 1]]
    assert votes(panel, "is_safe", ["b"]).matrix().tolist() == [[1], [1]]
    assert votes(panel, "refusal").matrix().shape == (0, 2)


def test_questions_are_those_that_somebody_answered() -> None:
    panel = collect([judged("x", "a", is_safe=False, better=1)])
    assert questions_in(panel, ["Violence"]) == ["is_safe", "better"]


def test_both_answers_of_a_pair_are_one_cluster() -> None:
    assert [cluster_of(name) for name in ("p#0", "p#1", "p", "a#2")] == ["p", "p", "p", "a#2"]
