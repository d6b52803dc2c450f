"""The report of agreement: who is compared with whom, on what, and how it is written."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from equipoise.annotation.agreement import Agreement, agreement, agreement_markdown
from equipoise.annotation.raters import Panel, collect
from equipoise.records import Judgement, Labels

DRUGS, VIOLENCE = "Drugs", "Violence"


def judged(subject: str, annotator: str, **labels: object) -> Judgement:
    origin = f"model:{annotator}" if annotator.startswith("m") else "human"
    return Judgement(
        id=f"{subject}-{annotator}",
        subject=subject,
        annotator=annotator,
        label_origin=origin,
        labels=Labels(**labels),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def answers() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.random(120) < 0.5
    return {
        name: np.where(rng.random(120) < skill, truth, rng.random(120) < 0.5)
        for name, skill in {"ann": 0.9, "bob": 0.8, "m1": 0.6}.items()
    }


@pytest.fixture(scope="module")
def panel(answers: dict[str, np.ndarray]) -> Panel:
    return collect(
        judged(f"p{i // 2}#{i % 2}", name, is_safe=bool(values[i]))
        for name, values in answers.items()
        for i in range(120)
    )


def row(found: list[Agreement], question: str, between: str) -> Agreement:
    return next(r for r in found if (r.question, r.between) == (question, between))


def test_kappa_of_two_people_and_of_people_with_a_model(panel: Panel, answers: dict[str, np.ndarray]) -> None:
    found = agreement(panel, draws=100)
    people = row(found, "is_safe", "person-person").coefficients
    assert people["cohen"].value == pytest.approx(
        cohen_kappa_score(answers["ann"], answers["bob"]), abs=1e-12
    )
    assert (people["cohen"].n, people["cohen"].clusters) == (120, 60)
    crossed = row(found, "is_safe", "person-model").coefficients["cohen"]
    both = np.concatenate([answers["ann"], answers["bob"]])
    expected = cohen_kappa_score(both, np.tile(answers["m1"], 2))
    assert crossed.value == pytest.approx(expected, abs=1e-12)
    assert crossed.clusters == 60
    assert people["cohen"].low < people["cohen"].value < people["cohen"].high
    assert people["cohen"].value > crossed.high
    single = row(found, "is_safe", "ann / m1").coefficients["cohen"].value
    assert single == pytest.approx(cohen_kappa_score(answers["ann"], answers["m1"]), abs=1e-12)
    assert not [r for r in found if r.between == "model-model"]


def test_what_a_safe_response_implies_counts_for_severity_and_categories() -> None:
    panel = collect(
        [
            judged("x", "a", is_safe=True),
            judged("x", "b", is_safe=False, severity=2, categories=frozenset({DRUGS})),
            judged("y", "a", is_safe=False, severity=1, categories=frozenset({DRUGS, VIOLENCE})),
            judged("y", "b", is_safe=False, severity=1, categories=frozenset({DRUGS})),
        ]
    )
    found = agreement(panel, [DRUGS, VIOLENCE], draws=100)
    assert row(found, "severity", "all").coefficients["percent"].value == 0.5
    sets = row(found, "categories", "all").coefficients
    assert sets["percent"].value == 0.0
    assert sets["masi_similarity"].value == pytest.approx((0 + 1 / 2 * 2 / 3) / 2)
    assert row(found, f"category:{DRUGS}", "all").coefficients["percent"].value == 0.5
    assert row(found, f"category:{VIOLENCE}", "all").items == 2


def test_an_annotator_alone_agrees_with_nobody() -> None:
    assert agreement(collect([judged("x", "a", is_safe=True), judged("y", "b", is_safe=True)])) == []


def test_markdown_has_a_table_per_question_with_intervals_or_a_dash(panel: Panel) -> None:
    text = agreement_markdown(agreement(panel, ["Drugs"], draws=100))
    assert "## is_safe" in text
    line = next(line for line in text.splitlines() if line.startswith("| person-person"))
    assert line.count("|") == 9
    assert "[0." in line
    same = collect([judged(s, n, is_safe=True) for s in "xy" for n in "ab"])
    text = agreement_markdown(agreement(same, draws=100))
    assert "| all | 2 | 2 | 1.000 [1.000, 1.000] | - | - | - | 1.000 [1.000, 1.000] |" in text
