"""Calibration, thresholds, the queue and the audit sample, on judges whose truth is known."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import expit

from equipoise.annotation.calibration import (
    calibrate,
    calibration_error,
    expected_calibration_error,
    held_out,
)
from equipoise.annotation.raters import collect
from equipoise.annotation.routing import (
    Call,
    Waiting,
    as_subjects,
    audit_sample,
    calibrate_calls,
    call,
    cells,
    curve,
    prioritise,
)
from equipoise.annotation.settle import settle
from equipoise.errors import DataError
from equipoise.records import Answer, Exchange, Judgement, Labels, Pair


def overconfident(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences whose log odds are three times too large, and whether each is right."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(1.0, 1.0, n)
    return expit(3 * odds), (rng.random(n) < expit(odds)).astype(float)


def exchange(name: str, **fields: object) -> Exchange:
    return Exchange(**{"id": name, "prompt": f"prompt {name}", "response": "r", **fields})  # type: ignore[arg-type]


def judged(subject: str, annotator: str, confidence: float | None, **labels: object) -> Judgement:
    return Judgement(
        id=f"{subject}{annotator}",
        subject=subject,
        annotator=annotator,
        label_origin=f"model:{annotator}",
        confidence=confidence,
        labels=Labels(**labels),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_held_out_calibration_mends_an_overconfident_judge(method: str) -> None:
    confidence, right = overconfident(2000)
    clusters = list(range(2000))
    probability = held_out(confidence, right, clusters, method)  # type: ignore[arg-type]
    before = calibration_error(confidence, right, clusters)
    after = calibration_error(probability, right, clusters)
    assert after.high < before.low
    assert after.value < 0.05
    true = expit(np.log(confidence / (1 - confidence)) / 3)
    fitted = calibrate(confidence, right, method)(confidence)  # type: ignore[arg-type]
    assert np.abs(fitted - true).mean() < 0.04


def test_a_row_does_not_calibrate_itself_nor_does_its_prompt() -> None:
    """Every prompt has one confidence of its own; whoever sees the rows can tell right from wrong."""
    rng = np.random.default_rng(1)
    confidence = np.repeat(rng.random(100), 2)
    right = np.repeat((rng.random(100) < 0.5).astype(float), 2)
    probability = held_out(confidence, right, [i // 2 for i in range(200)], "isotonic")
    assert abs(np.corrcoef(probability, right)[0, 1]) < 0.3
    own = calibrate(confidence, right, "isotonic")(confidence)
    assert np.corrcoef(own, right)[0, 1] > abs(np.corrcoef(probability, right)[0, 1])


def test_few_rows_that_are_all_right_are_not_certainty() -> None:
    confidence, right = np.linspace(0.6, 0.9, 10), np.ones(10)
    for method in ("isotonic", "platt"):
        fitted = calibrate(confidence, right, method)(np.array([0.9]))  # type: ignore[arg-type]
        assert 0.85 < fitted[0] < 1.0


def test_calibration_error_by_hand() -> None:
    """Two bins: 0.2 against 1/2 right, 0.9 against 1/2 right: (0.3 + 0.4) / 2."""
    probability = np.array([0.2, 0.2, 0.9, 0.9])
    right = np.array([0.0, 1.0, 0.0, 1.0])
    assert expected_calibration_error(probability, right, bins=2) == pytest.approx(0.35)
    assert expected_calibration_error(right, right) == 0.0


def test_curve_falls_in_cost_and_rises_in_agreement() -> None:
    confidence, right = overconfident(1500)
    probability = held_out(confidence, right, list(range(1500)), "platt")
    points = curve(probability, right, [str(i) for i in range(1500)])
    assert points[0].settled.value == 1.0
    assert points[0].agreement.value == pytest.approx(right.mean())
    assert all(a.settled.value > b.settled.value for a, b in pairwise(points))
    assert points[-5].agreement.low > points[0].agreement.high
    for point in points:
        kept = probability >= point.threshold
        assert point.agreement.value == pytest.approx(right[kept].mean())
        assert point.overall.value == pytest.approx(np.where(kept, right, 1.0).mean())
        assert point.lower <= point.agreement.low or math.isnan(point.agreement.low)


def test_threshold_keeps_its_promise_on_new_rows() -> None:
    """In six draws the agreement of what is settled afterwards is below the target in one at most."""
    broken = chosen = 0
    for seed in range(6):
        confidence, right = overconfident(600, seed)
        rows = [
            (Call(True, float(c), 0.0), bool(r), str(i))
            for i, (c, r) in enumerate(zip(confidence, right, strict=True))
        ]
        fitted = calibrate_calls(rows, "platt")
        threshold = fitted.threshold(0.8)
        if math.isinf(threshold):
            continue
        chosen += 1
        fresh, truth = overconfident(20_000, seed + 1000)
        kept = fitted.calibrator(fresh) >= threshold
        broken += truth[kept].mean() < 0.8
    assert chosen >= 3
    assert broken <= 1


def test_a_target_that_is_not_reached_settles_nothing() -> None:
    confidence, right = overconfident(300)
    rows = [
        (Call(True, float(c), 0.0), bool(r), str(i))
        for i, (c, r) in enumerate(zip(confidence, right, strict=True))
    ]
    assert math.isinf(calibrate_calls(rows, "isotonic").threshold(0.999))


def test_too_few_labelled_rows_are_refused() -> None:
    rows = [(Call(True, 0.9, 0.0), True, str(i)) for i in range(10)]
    with pytest.raises(DataError, match="10 rows that were judged too, over 10 prompts; expected 50 over 5"):
        calibrate_calls(rows, "isotonic")


def test_call_pools_the_judges_and_their_disagreement() -> None:
    rows = [
        judged("x", n, c, is_safe=s) for n, c, s in (("a", 0.9, True), ("b", 0.8, True), ("c", 0.6, False))
    ]
    rows += [judged("y", "a", None, is_safe=True), judged("z", "a", 0.7)]
    rows += [judged(f"w{i}", n, 0.9, is_safe=i % 2 == 0) for i in range(20) for n in "abc"]
    panel = collect(rows)
    question = settle(panel, "is_safe")
    found = call(panel, question, "x")
    assert found == Call(True, pytest.approx((0.9 + 0.8 + 0.4) / 3), pytest.approx(1 / 3))
    assert call(panel, question, "y") is None
    assert call(panel, question, "z") is None
    assert call(panel, question, "nowhere") is None


def test_audit_is_proportional_to_the_strata_blind_and_weighs_what_it_left_out() -> None:
    records = [
        exchange(f"a{i}", source="one", is_safe=False, severity=2, label_origin="human") for i in range(70)
    ]
    records += [
        exchange(f"b{i}", source="two", prompt_is_harmful=True, provenance={"kind": "x"}) for i in range(30)
    ]
    drawn = audit_sample(records, 20)
    assert Counter(record.source for record in drawn) == {"one": 14, "two": 6}
    for record in drawn:
        assert isinstance(record, Exchange)
        assert Labels.model_validate(record.model_dump(include=set(Labels.model_fields))) == Labels()
        assert (record.label_origin, record.prompt_is_harmful) == (None, None)
        assert record.provenance["audit"]["weight"] == 5.0  # type: ignore[index, call-overload]
        assert set(record.provenance) == {"audit"}
    assert audit_sample(records, 0) == []
    assert len(audit_sample(records, 1000)) == 100


def test_audit_depends_on_seed_and_id_and_on_nothing_else() -> None:
    records = [exchange(f"a{i}") for i in range(50)]
    chosen = [r.id for r in audit_sample(records, 10, seed=1)]
    labelled = [r.model_copy(update={"is_safe": False, "severity": 3}) for r in reversed(records)]
    assert [r.id for r in audit_sample(labelled, 10, seed=1)] == chosen
    assert [r.id for r in audit_sample(records, 10, seed=2)] != chosen


def test_audit_is_drawn_evenly() -> None:
    records = [exchange(f"a{i}") for i in range(20)]
    count = Counter(r.id for seed in range(400) for r in audit_sample(records, 5, seed=seed))
    expected = 400 * 5 / 20
    assert sum((count[r.id] - expected) ** 2 / (expected * 0.75) for r in records) < 43.8  # chi2, 19 df, .999


def test_the_least_sure_the_most_disputed_and_the_emptiest_cell_come_first() -> None:
    waiting = {
        "sure": Waiting(0.9, 0.0, ["x"]),
        "unsure": Waiting(0.5, 0.0, ["x"]),
        "disputed": Waiting(0.5, 0.5, ["x"]),
        "rare": Waiting(0.5, 0.5, ["new"]),
    }
    ordered = prioritise(waiting, {"x": 8})
    assert [name for name, _ in ordered] == ["rare", "disputed", "unsure", "sure"]
    assert ordered[0][1] == pytest.approx(0.5 * 1.5)
    assert ordered[1][1] == pytest.approx(0.5 * 1.5 / 3)


def test_a_cell_that_fills_up_loses_its_turn() -> None:
    waiting = {f"a{i}": Waiting(0.5, 0.0, ["a"]) for i in range(6)} | {
        f"b{i}": Waiting(0.6, 0.0, ["b"]) for i in range(6)
    }
    first = [name[0] for name, _ in prioritise(waiting, {})][:6]
    assert 2 <= first.count("b") <= 3
    values = [value for _, value in prioritise(waiting, {})]
    assert values == sorted(values, reverse=True)


def test_cells_of_records() -> None:
    unsafe = exchange("x", is_safe=False, severity=2, categories=frozenset({"Drugs", "Violence"}))
    assert cells(unsafe) == [("Drugs", 2), ("Violence", 2)]
    assert cells(exchange("y", is_safe=True, categories=frozenset())) == ["safe"]
    assert cells(exchange("z")) == []
    pair = Pair(
        id="p", prompt="q", answers=(Answer(response="a", is_safe=True), Answer(response="b", is_safe=False))
    )
    assert cells(pair) == ["safe", "unsafe"]
    assert [r.id for r in as_subjects([unsafe, pair], is_preference=False)] == ["x", "p#0", "p#1"]
    assert [r.id for r in as_subjects([unsafe, pair], is_preference=True)] == ["p"]
