"""Heads on answers in parts: against plain floats, scikit-learn, a loss on a grid, and a planted truth."""

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from equipoise.rewards.summed_odds import Parts, fit_head, span, sum_odds, whole
from equipoise.stats import auroc


def random_parts(width: int = 3, seed: int = 0) -> Parts:
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(40), rng.integers(1, 5, 40))
    return Parts(rng.normal(size=(len(of), width)), of)


def test_odds_of_parts_are_summed_within_each_answer() -> None:
    logits = [0.3, -2.0, 1.5, 700.0, 699.0]
    expected = [math.log(math.exp(0.3) + math.exp(-2.0)), 1.5, 700 + math.log1p(math.exp(-1.0))]
    found = sum_odds(np.array(logits), np.array([0, 2, 3]))
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    columns = sum_odds(np.array([logits, logits]).T, np.array([0, 2, 3]))
    assert columns[:, 1].tolist() == found.tolist()


def test_some_answers_come_with_all_their_parts_in_the_order_asked_for() -> None:
    parts = Parts(np.arange(12.0).reshape(6, 2), np.array([0, 1, 1, 2, 3, 3]))
    found = parts.some([3, 0, 1])
    assert found.rows[:, 0].tolist() == [8, 10, 0, 2, 4]
    assert found.of.tolist() == [0, 0, 1, 2, 2]
    assert found.first.tolist() == [0, 2, 3]


def test_answers_of_one_part_are_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 5))
    yes = rows[:, 0] + rng.normal(size=200) > 1
    head = fit_head(whole(rows), yes, 10.0)
    peer = LogisticRegression(C=10.0, class_weight="balanced", tol=1e-10, max_iter=5000).fit(rows, yes)
    assert head.weight == pytest.approx(peer.coef_[0], abs=1e-3)
    assert head.bias == pytest.approx(peer.intercept_[0], abs=1e-3)
    assert head(whole(rows)) == pytest.approx(peer.decision_function(rows), abs=1e-2)


def test_no_other_weight_near_by_has_a_lower_loss() -> None:
    parts = random_parts(2)
    yes = np.arange(40) % 3 == 0
    head = fit_head(parts, yes, 2.0)

    def loss(weight: list[float], bias: float) -> float:
        total = sum(w * w for w in weight) / 4.0
        for answer, is_yes in enumerate(yes):
            rows = parts.rows[parts.of == answer].tolist()
            odds = sum(math.exp(sum(w * x for w, x in zip(weight, row, strict=True))) for row in rows)
            z = math.log(odds) + bias
            alike = 0.5 * len(yes) / (yes.sum() if is_yes else (~yes).sum())
            total += alike * math.log1p(math.exp(-z if is_yes else z))
        return total

    best = loss(head.weight.tolist(), head.bias)
    for step in ([0.02, 0, 0], [0, 0.02, 0], [0, 0, 0.02]):
        for sign in (1, -1):
            moved = [w + sign * s for w, s in zip([*head.weight, head.bias], step, strict=True)]
            assert loss(moved[:-1], moved[-1]) > best


def test_sentences_that_make_an_answer_true_are_found_without_labels_of_their_own() -> None:
    rng = np.random.default_rng(3)
    told = rng.random((300, 8)) < 0.06
    rows = rng.normal(size=(300, 8, 20))
    rows[told, 0] += 3
    yes = told.any(1)
    parts = Parts(rows.reshape(-1, 20), np.repeat(np.arange(300), 8))
    fitted, held = range(150), np.arange(150, 300)
    head = fit_head(parts.some(fitted), yes[:150], 1.0)
    assert auroc(rows.reshape(-1, 20) @ head.weight, told.reshape(-1)) > 0.93
    means = whole(rows.mean(1))
    peer = fit_head(means.some(fitted), yes[:150], 1.0)
    assert auroc(head(parts.some(held)), yes[150:]) > auroc(peer(means.some(held)), yes[150:]) + 0.05


def test_a_head_on_coordinates_is_the_head_on_columns() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 80))
    yes = np.arange(30) % 4 == 0
    found = span(rows)
    inside, plain = fit_head(whole(found.rows), yes, 1.0), fit_head(whole(rows), yes, 1.0)
    np.testing.assert_allclose(inside.weight @ found.back, plain.weight, atol=1e-4)
    assert span(np.zeros((4, 3))).rows.shape == (4, 1)
