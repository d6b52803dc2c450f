"""Policies from two preferences to one, and the conflict report against counts by hand."""

import pytest

from equipoise.annotation.preferences import POLICIES, conflict_report, severity_weighted
from equipoise.records import Answer, Pair


def pair(
    better: object = None,
    safer: object = None,
    overall: object = None,
    severity: tuple[int | None, int | None] = (None, None),
    prompt: str = "p",
) -> Pair:
    answers = [
        Answer(response=f"r{i}", severity=level, is_safe=None if level is None else level == 0)
        for i, level in enumerate(severity)
    ]
    return Pair(
        id="1",
        prompt=prompt,
        answers=(answers[0], answers[1]),
        better=better,  # type: ignore[arg-type]
        safer=safer,  # type: ignore[arg-type]
        overall=overall,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("given", "helpful", "harmless", "lexicographic", "weighted"),
    [
        (pair(0, 1, severity=(1, 0)), 0, 1, 1, 0),  # one level does not outweigh help
        (pair(0, 1, severity=(2, 0)), 0, 1, 1, 1),  # two do
        (pair(0, "tie", severity=(0, 0)), 0, "tie", 0, 0),
        (pair("tie", 1, severity=(2, 1)), "tie", 1, 1, 1),
        (pair("tie", "tie", severity=(2, 2)), "tie", "tie", "tie", "tie"),
        (pair(1, 1, severity=(3, 0)), 1, 1, 1, 1),
        (pair(None, 1, severity=(3, 0)), None, 1, 1, None),
        (pair(None, "tie", severity=(0, 0)), None, "tie", None, None),
        (pair(0, None, severity=(3, 0)), 0, None, None, 1),
        (pair(0, 1), 0, 1, 1, None),
    ],
)
def test_policies(
    given: Pair, helpful: object, harmless: object, lexicographic: object, weighted: object
) -> None:
    found = {name: policy(given) for name, policy in POLICIES.items()}
    assert found == {
        "helpful": helpful,
        "harmless": harmless,
        "lexicographic": lexicographic,
        "severity_weighted": weighted,
    }


def test_weight_turns_the_scale() -> None:
    given = pair(0, 1, severity=(1, 0))
    assert [severity_weighted(given, weight=w) for w in (0.5, 1.0, 2.0)] == [0, "tie", 1]


def test_every_policy_turns_with_the_pair() -> None:
    turn = {0: 1, 1: 0, "tie": "tie", None: None}
    for better in (0, 1, "tie"):
        for safer in (0, 1, "tie"):
            one = pair(better, safer, severity=(2, 0))
            other = pair(turn[better], turn[safer], severity=(0, 2))
            assert all(policy(other) == turn[policy(one)] for policy in POLICIES.values())


def test_conflicts_are_counted_by_stratum_and_gap() -> None:
    mixed = [pair(0, 1, 1, (2, 0), f"a{i}") for i in range(3)] + [pair(0, 1, 0, (2, 0), "a3")]
    both_safe = [pair(0, 0, 0, (0, 0), f"b{i}") for i in range(4)] + [pair("tie", 0, 0, (0, 0), "b4")]
    both_unsafe = [pair(1, 0, 1, (3, 2), "c0"), pair(1, 1, 1, (3, 2), "c1"), pair(1, None, 1, (3, 3), "c2")]
    report = conflict_report([*mixed, *both_safe, *both_unsafe, pair(0, 1, 1, prompt="d")])
    assert {name: side.pairs for name, side in report.strata.items()} == {
        "both_safe": 5,
        "both_unsafe": 3,
        "mixed": 4,
        "unlabelled": 1,
    }
    assert report.all.conflict.value == pytest.approx(6 / 11)  # 4 mixed, 1 unsafe, 1 without labels
    assert report.strata["mixed"].conflict.value == 1.0
    assert report.strata["mixed"].follows_safer[:1] == (0.75,)
    assert report.all.follows_safer.value == pytest.approx(4 / 6)
    assert report.all.follows_safer.low < 4 / 6 < report.all.follows_safer.high
    assert report.all.overall_is_better.value == pytest.approx(8 / 12)
    assert report.all.overall_is_safer.value == pytest.approx(10 / 12)
    assert {gap: side.pairs for gap, side in report.severity_gap.items()} == {0: 6, 1: 2, 2: 4}
    assert report.to_json()["strata"]["both_safe"]["pairs"] == 5


def test_no_pairs_give_no_numbers() -> None:
    report = conflict_report([]).to_json()
    assert report["all"]["conflict"] == {"value": None, "low": None, "high": None, "n": 0, "clusters": 0}
