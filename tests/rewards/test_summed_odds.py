"""Heads on answers in parts: against plain floats, scikit-learn, a loss on a grid, and a planted truth."""

import math

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression

from equipoise.rewards.summed_odds import Columns, Parts, fit_odds, sum_odds
from equipoise.stats import auroc


def one(yes: np.ndarray) -> np.ndarray:
    """The truth of one proposition."""
    return yes[:, None].astype(float)


def random_parts(width: int = 3, seed: int = 0) -> Parts:
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(40), rng.integers(1, 5, 40))
    return Parts(columns(rng.normal(size=(len(of), width))), of)


def columns(rows: np.ndarray, dense: int = 1) -> Columns:
    """Rows of which so many columns are dense."""
    return Columns(rows[:, :dense], csr_array(rows[:, dense:]))


def whole(rows: np.ndarray) -> Parts:
    """Answers that are one part each."""
    return Parts(columns(rows), np.arange(len(rows)))


def plain(parts: Parts) -> np.ndarray:
    return np.hstack([parts.rows.dense, parts.rows.sparse.toarray()])


def test_odds_of_parts_are_summed_within_each_answer() -> None:
    logits = [0.3, -2.0, 1.5, 700.0, 699.0]
    expected = [math.log(math.exp(0.3) + math.exp(-2.0)), 1.5, 700 + math.log1p(math.exp(-1.0))]
    found = sum_odds(np.array(logits), np.array([0, 2, 3]))
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    columns = sum_odds(np.array([logits, logits]).T, np.array([0, 2, 3]))
    assert columns[:, 1].tolist() == found.tolist()


def test_some_answers_come_with_all_their_parts_in_the_order_asked_for() -> None:
    parts = Parts(columns(np.arange(12.0).reshape(6, 2)), np.array([0, 1, 1, 2, 3, 3]))
    found = parts.some([3, 0, 1])
    assert plain(found).tolist() == [[8, 9], [10, 11], [0, 1], [2, 3], [4, 5]]
    assert found.of.tolist() == [0, 0, 1, 2, 2]
    assert found.first.tolist() == [0, 2, 3]


def test_answers_of_one_part_are_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 5))
    yes = rows[:, 0] + rng.normal(size=200) > 1
    other = rows[:, 1] > 0
    truth = np.stack([yes, other], axis=1).astype(float)
    truth[:80, 1] = np.nan
    heads = fit_odds(whole(rows), truth, 10.0)
    for k, rest in enumerate((slice(None), slice(80, None))):
        peer = LogisticRegression(C=10.0, class_weight="balanced", tol=1e-10, max_iter=5000)
        peer.fit(rows[rest], truth[rest, k])
        assert heads.weight[k] == pytest.approx(peer.coef_[0], abs=1e-2)
        assert heads.bias[k] == pytest.approx(peer.intercept_[0], abs=1e-2)
        assert heads(whole(rows))[:, k] == pytest.approx(peer.decision_function(rows), abs=0.05)


def test_a_head_whose_answers_are_all_a_yes_is_zero() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 4))
    truth = np.stack([np.ones(20), np.full(20, np.nan), np.arange(20) % 2], axis=1)
    heads = fit_odds(whole(rows), truth, 10.0)
    assert (heads.weight[:2] == 0).all()
    assert heads.bias[:2].tolist() == [0, 0]
    two_each = Parts(columns(np.repeat(rows, 2, axis=0)), np.repeat(np.arange(20), 2))
    assert heads(two_each)[:, 0].tolist() == pytest.approx([math.log(2)] * 20)
    assert (heads.weight[2] != 0).all()


def test_no_other_weight_near_by_has_a_lower_loss() -> None:
    parts = random_parts(2)
    yes = np.arange(40) % 3 == 0
    head = fit_odds(parts, one(yes), 2.0)

    def loss(weight: list[float], bias: float) -> float:
        total = sum(w * w for w in weight) / 4.0
        for answer, is_yes in enumerate(yes):
            rows = plain(parts)[parts.of == answer].tolist()
            odds = sum(math.exp(sum(w * x for w, x in zip(weight, row, strict=True))) for row in rows)
            z = math.log(odds) + bias
            alike = 0.5 * len(yes) / (yes.sum() if is_yes else (~yes).sum())
            total += alike * math.log1p(math.exp(-z if is_yes else z))
        return total

    best = loss(head.weight[0].tolist(), float(head.bias[0]))
    for step in ([0.02, 0, 0], [0, 0.02, 0], [0, 0, 0.02]):
        for sign in (1, -1):
            moved = [w + sign * s for w, s in zip([*head.weight[0], *head.bias], step, strict=True)]
            assert loss(moved[:-1], moved[-1]) > best


def test_sentences_that_make_an_answer_true_are_found_without_labels_of_their_own() -> None:
    rng = np.random.default_rng(3)
    told = rng.random((300, 8)) < 0.06
    rows = rng.normal(size=(300, 8, 20))
    rows[told, 0] += 3
    yes = told.any(1)
    parts = Parts(columns(rows.reshape(-1, 20)), np.repeat(np.arange(300), 8))
    fitted, held = range(150), np.arange(150, 300)
    head = fit_odds(parts.some(fitted), one(yes[:150]), 1.0)
    assert auroc(rows.reshape(-1, 20) @ head.weight[0], told.reshape(-1)) > 0.93
    means = whole(rows.mean(1))
    peer = fit_odds(means.some(fitted), one(yes[:150]), 1.0)
    found, theirs = head(parts.some(held))[:, 0], peer(means.some(held))[:, 0]
    assert auroc(found, yes[150:]) > auroc(theirs, yes[150:]) + 0.05


def test_dense_and_sparse_columns_are_multiplied_as_one_matrix() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 5))
    weight, sums = np.random.default_rng(1).normal(size=(5, 2)), np.arange(6.0)
    for dense in range(6):
        found = columns(rows, dense)
        assert found.width == 5
        np.testing.assert_allclose(found @ weight, rows @ weight, rtol=1e-12)
        np.testing.assert_allclose(found.weighted_sum(sums), sums @ rows, rtol=1e-12)
        assert found.words.width == 5 - dense
