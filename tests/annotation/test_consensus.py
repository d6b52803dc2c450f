"""Labelled records from judgements: consistent, with who said it, and missing where nobody did."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from equipoise.annotation.consensus import consensus, origin, utilities
from equipoise.annotation.raters import collect
from equipoise.annotation.settle import settle
from equipoise.data.check import check
from equipoise.data.io import Placed
from equipoise.records import Answer, Exchange, Judgement, Labels, Pair
from equipoise.stats import paired_difference
from equipoise.taxonomy import load_taxonomy

DRUGS, VIOLENCE, CRIME = "Drugs", "Violence", "Economic Crime"


def judged(subject: str, annotator: str, **fields: object) -> Judgement:
    labels = {name: fields.pop(name) for name in list(fields) if name in Labels.model_fields}
    return Judgement(
        id=f"{subject}-{annotator}",
        subject=subject,
        annotator=annotator,
        label_origin=f"model:{annotator}" if annotator.startswith("m") else "human",
        labels=Labels(**labels) if labels else None,  # type: ignore[arg-type]
        **fields,  # type: ignore[arg-type]
    )


def unsafe(subject: str, annotator: str, severity: int, *categories: str) -> Judgement:
    return judged(subject, annotator, is_safe=False, severity=severity, categories=frozenset(categories))


def exchange(name: str, **labels: object) -> Exchange:
    return Exchange(id=name, prompt=f"prompt {name}", response="r", source="s", licence="MIT", **labels)  # type: ignore[arg-type]


def test_three_annotators_are_put_together_and_named() -> None:
    judgements = [
        unsafe("x", "ann", 2, DRUGS),
        unsafe("x", "bob", 2, DRUGS, CRIME),
        unsafe("x", "m1", 3, DRUGS),
    ]
    (record,) = consensus([exchange("x")], collect(judgements)).records
    assert isinstance(record, Exchange)
    assert (record.is_safe, record.severity, record.categories) == (False, 2, frozenset({DRUGS}))
    assert record.rated is None
    assert record.label_origin == "consensus of 3: 1 model, 2 person"
    assert record.annotators == ("ann", "bob", "m1")
    notes = record.provenance["consensus"]
    assert notes["severity"]["raters"] == 3  # type: ignore[index, call-overload]
    assert notes["severity"]["agree"] == 2  # type: ignore[index, call-overload]
    assert notes[f"category:{CRIME}"]["agree"] == 2  # type: ignore[index, call-overload]


def test_one_annotator_is_taken_at_its_word_and_the_record_says_so() -> None:
    judgements = [unsafe("x", "m1", 1, CRIME), judged("y", "ann", is_safe=True)]
    result = consensus([exchange("x"), exchange("y")], collect(judgements))
    first, second = result.records
    assert (first.label_origin, second.label_origin) == ("model:m1", "human")
    assert (first.severity, first.categories) == (1, frozenset({CRIME}))  # type: ignore[union-attr]
    assert (second.is_safe, second.severity, second.categories) == (True, 0, frozenset())  # type: ignore[union-attr]
    assert (result.judged, result.single) == (2, 2)
    assert first.provenance["consensus"]["is_safe"]["raters"] == 1  # type: ignore[index, call-overload]


def test_what_nobody_answered_stays_missing_and_earlier_harm_labels_go_together() -> None:
    before = exchange(
        "x", is_safe=True, severity=0, categories=frozenset(), refusal="none", label_origin="authors"
    )
    only_safe = consensus([before], collect([judged("x", "ann", is_safe=False)])).records[0]
    assert isinstance(only_safe, Exchange)
    assert (only_safe.is_safe, only_safe.severity, only_safe.categories) == (False, None, None)
    assert only_safe.refusal == "none"
    assert only_safe.provenance["consensus"]["label_origin_before"] == "authors"  # type: ignore[index, call-overload]
    result = consensus([before, exchange("y")], collect([judged("z", "ann", is_safe=False)]))
    assert result.records == [before, exchange("y")]
    assert (result.judged, result.strangers) == (0, ["z"])


def test_a_judgement_without_an_answer_labels_nothing() -> None:
    record = exchange("x")
    empty = Judgement(id="1", subject="x", annotator="ann", rationale="cannot say")
    assert consensus([record], collect([empty])).records == [record]


def test_equal_votes_are_undecided_by_majority() -> None:
    judgements = [judged("x", "ann", is_safe=True), unsafe("x", "bob", 2, DRUGS)]
    result = consensus([exchange("x")], collect(judgements), method="majority")
    record = result.records[0]
    assert isinstance(record, Exchange)
    assert (record.is_safe, record.severity, record.categories) == (None, None, None)
    assert result.undecided > 0


def test_labels_of_a_response_never_contradict_each_other_whatever_was_judged() -> None:
    rng = np.random.default_rng(3)
    names = load_taxonomy("pku19").names
    records: list[Exchange | Pair] = [exchange(f"e{i}") for i in range(60)]
    records += [
        Pair(id=f"p{i}", prompt=f"q{i}", answers=(Answer(response="a"), Answer(response="b")))
        for i in range(40)
    ]
    subjects = [f"e{i}" for i in range(60)] + [f"p{i}#{k}" for i in range(40) for k in (0, 1)]
    judgements = []
    for name in ("ann", "bob", "eve", "m1"):
        for subject in subjects:
            if rng.random() < 0.3:
                continue
            if rng.random() < 0.4:
                judgements.append(judged(subject, name, is_safe=True))
                continue
            flagged = rng.choice(names[:6], size=rng.integers(1, 3), replace=False).tolist()
            judgements.append(unsafe(subject, name, int(rng.integers(1, 4)), *flagged))
        judgements += [
            judged(f"p{i}", name, better=int(rng.integers(2)), safer=[0, 1, "tie"][rng.integers(3)])
            for i in range(40)
        ]
    for method in ("dawid-skene", "mace", "majority"):
        result = consensus(records, collect(judgements), method=method)  # type: ignore[arg-type]
        assert list(check(Placed("f", i, r) for i, r in enumerate(result.records))) == []
        assert result.adjusted["safer"] > 0


def test_pairs_get_labels_of_both_answers_and_preferences() -> None:
    pair = Pair(id="p", prompt="q", answers=(Answer(response="a"), Answer(response="b")), overall=1)
    judgements = [
        judged("p", "ann", better=0, safer=1),
        judged("p", "bob", better=0, safer=1),
        unsafe("p#0", "ann", 2, DRUGS),
        unsafe("p#0", "bob", 2, DRUGS),
        judged("p#1", "ann", is_safe=True),
    ]
    (record,) = consensus([pair], collect(judgements)).records
    assert isinstance(record, Pair)
    assert (record.better, record.safer, record.overall) == (0, 1, 1)
    assert [a.is_safe for a in record.answers] == [False, True]
    assert record.answers[0].categories == frozenset({DRUGS})


def test_dawid_skene_beats_the_majority_on_records() -> None:
    """Two careful annotators and three hasty ones who call most things safe."""
    rng = np.random.default_rng(0)
    truth = rng.random(400) < 0.5
    skills = {"ann": (0.95, 0.95), "bob": (0.9, 0.9), "c": (0.45, 0.9), "d": (0.4, 0.85), "e": (0.45, 0.8)}
    judgements = [
        judged(f"x{i}", name, is_safe=bool(not u if rng.random() < (found if u else cleared) else u))
        for name, (found, cleared) in skills.items()
        for i, u in enumerate(truth)
    ]
    panel = collect(judgements)
    right = {}
    for method in ("dawid-skene", "majority"):
        answers = settle(panel, "is_safe", method).answers  # type: ignore[arg-type]
        right[method] = [answers[f"x{i}"].value == (not u) for i, u in enumerate(truth)]
    assert paired_difference(right["dawid-skene"], right["majority"], range(400)).low > 0


def test_partly_rated_categories_say_which_were_looked_at() -> None:
    rated = frozenset({DRUGS, VIOLENCE})
    judgements = [judged("x", n, categories=frozenset({DRUGS}), rated=rated) for n in ("ann", "bob")]
    (record,) = consensus([exchange("x")], collect(judgements)).records
    assert (record.categories, record.rated, record.is_safe) == (frozenset({DRUGS}), rated, False)  # type: ignore[union-attr]


def test_planted_utilities_of_the_answers_to_a_prompt_are_recovered() -> None:
    rng = np.random.default_rng(2)
    planted = {f"r{k}": float(u) for k, u in enumerate(rng.normal(0, 1.5, 12))}
    pairs, judgements = [], []
    for i, (a, b) in enumerate([(a, b) for a in planted for b in planted if a < b]):
        pairs.append(Pair(id=f"p{i}", prompt="q", answers=(Answer(response=a), Answer(response=b))))
        for name in ("ann", "bob", "eve"):
            wins = rng.random() < 1 / (1 + np.exp(planted[b] - planted[a]))
            judgements.append(judged(f"p{i}", name, better=0 if wins else 1))
    found = utilities(pairs, collect(judgements), "better")
    values = {a.response: u for p in pairs for a, u in zip(p.answers, found[p.id], strict=True)}
    names = sorted(planted)
    assert spearmanr([values[n] for n in names], [planted[n] for n in names]).statistic > 0.9
    assert utilities(pairs, collect(judgements), "safer") == {}


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["ann"], "human"), (["m1"], "model:m1"), (["ann", "bob"], "consensus of 2: 2 person")],
)
def test_origin_says_who_labelled(names: list[str], expected: str) -> None:
    panel = collect(judged("x", name, is_safe=True) for name in ("ann", "bob", "m1"))
    assert origin(names, panel) == expected
