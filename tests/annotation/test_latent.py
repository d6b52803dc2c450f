"""Planted truth and planted raters are found again; what EM climbs never falls."""

import numpy as np
import pytest
from scipy.special import expit

from equipoise.annotation.latent import Latent, RaterModel, decide, fit, shares
from equipoise.annotation.rater_models import FullConfusion, Spammer, Thresholds, _likelihood
from equipoise.annotation.raters import Votes
from equipoise.stats import paired_difference

GOOD = [[0.95, 0.05], [0.1, 0.9]]
CONFUSION = np.array(
    [GOOD, [[0.9, 0.1], [0.15, 0.85]], [[0.6, 0.4], [0.5, 0.5]], [[0.55, 0.45], [0.45, 0.55]]]
)
MODELS = {"dawid-skene": FullConfusion(), "mace": Spammer(), "ordinal": Thresholds()}


def simulate(
    confusion: np.ndarray, shares_: list[float], n: int, *, seed: int = 0, answered: float = 1.0
) -> tuple[np.ndarray, Votes]:
    """Draw true values and the answers of raters with these confusion matrices."""
    rng = np.random.default_rng(seed)
    raters, size, _ = confusion.shape
    truth = rng.choice(size, size=n, p=shares_)
    bounds = confusion.cumsum(axis=2)[:, truth]  # [R, N, V]
    answers = (rng.random((raters, n, 1)) > bounds).sum(axis=2)
    rater, item = np.nonzero(rng.random((raters, n)) < answered)
    names = tuple(f"r{r}" for r in range(raters))
    return truth, Votes(
        item, rater, answers[rater, item], tuple(map(str, range(n))), names, tuple(range(size))
    )


def right(found: Latent, truth: np.ndarray) -> np.ndarray:
    return np.array([a == b for a, b in zip(decide(found.posterior), truth, strict=True)], dtype=float)


def votes_of(matrix: list[list[int]], size: int = 2) -> Votes:
    item, rater = np.nonzero(np.array(matrix) >= 0)
    value = np.array(matrix)[item, rater]
    names = tuple(f"r{r}" for r in range(len(matrix[0])))
    return Votes(item, rater, value, tuple(map(str, range(len(matrix)))), names, tuple(range(size)))


def proportional_odds(sharpness: float, thresholds: list[float]) -> np.ndarray:
    above = expit(sharpness * (np.arange(4)[:, None] - np.array(thresholds)))
    return -np.diff(np.hstack([np.ones((4, 1)), above, np.zeros((4, 1))]))


def test_dawid_skene_beats_the_majority_with_an_interval_that_excludes_zero() -> None:
    truth, votes = simulate(CONFUSION, [0.6, 0.4], 800)
    found = fit(votes, FullConfusion())
    majority = np.array(shares(votes).argmax(axis=1) == truth, dtype=float)
    gain = paired_difference(right(found, truth), majority, range(800))
    assert gain.low > 0


def test_planted_confusion_matrices_and_shares_are_recovered() -> None:
    _, votes = simulate(CONFUSION, [0.7, 0.3], 6000)
    found = fit(votes, FullConfusion())
    np.testing.assert_allclose(found.raters.confusion, CONFUSION, atol=0.04)
    np.testing.assert_allclose(found.prior, [0.7, 0.3], atol=0.03)
    assert found.converged


def test_planted_competence_and_habits_are_recovered() -> None:
    competence, habit = (
        np.array([0.9, 0.6, 0.2, 0.0]),
        np.array([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1], [0.3, 0.7]]),
    )
    confusion = competence[:, None, None] * np.eye(2) + ((1 - competence)[:, None] * habit)[:, None]
    truth, votes = simulate(confusion, [0.5, 0.5], 6000)
    found = fit(votes, Spammer(), uniform_prior=True)
    np.testing.assert_allclose(found.raters.parameters["competence"], competence, atol=0.06)
    np.testing.assert_allclose(found.raters.parameters["habit"][1:], habit[1:], atol=0.1)
    np.testing.assert_array_equal(found.prior, [0.5, 0.5])
    assert right(found, truth).mean() > shares(votes).argmax(axis=1).__eq__(truth).mean()


def test_planted_thresholds_are_recovered_and_a_few_answers_suffice_for_severity() -> None:
    planted = [(5.0, [0.5, 1.5, 2.5]), (3.0, [0.1, 1.1, 2.1]), (1.0, [0.8, 1.9, 2.6]), (0.7, [0.3, 1.4, 2.9])]
    confusion = np.array([proportional_odds(*row) for row in planted])
    _, votes = simulate(confusion, [0.5, 0.15, 0.25, 0.1], 4000)
    found = fit(votes, Thresholds())
    np.testing.assert_allclose(found.raters.parameters["sharpness"], [row[0] for row in planted], rtol=0.3)
    np.testing.assert_allclose(found.raters.parameters["thresholds"], [row[1] for row in planted], atol=0.25)
    errors = {name: 0.0 for name in MODELS}
    for seed in range(8):
        truth, few = simulate(confusion, [0.5, 0.15, 0.25, 0.1], 100, seed=seed, answered=0.7)
        for name, model in MODELS.items():
            guess = np.array([2 if v is None else v for v in decide(fit(few, model).posterior)])
            errors[name] += float(np.abs(guess - truth).mean())
    assert min(errors, key=lambda name: errors[name]) == "ordinal"


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_log_posterior_never_falls(model: RaterModel, seed: int) -> None:
    rng = np.random.default_rng(seed)
    confusion = rng.dirichlet(np.ones(3), size=(5, 3))
    _, votes = simulate(confusion, [0.5, 0.3, 0.2], 60, seed=seed, answered=0.5)
    found = fit(votes, model, rounds=60)
    assert min(np.diff(found.trace)) > -1e-7


def test_gradient_of_the_thresholds_is_that_of_finite_differences() -> None:
    rng = np.random.default_rng(4)
    raw, counts = rng.normal(0, 0.7, (2, 4)), rng.random((2, 4, 4)) * 10
    _, gradient = _likelihood(raw, counts)
    for place in np.ndindex(raw.shape):
        step = np.zeros_like(raw)
        step[place] = 1e-6
        change = _likelihood(raw + step, counts)[0] - _likelihood(raw - step, counts)[0]
        assert gradient[place] == pytest.approx(change / 2e-6, rel=1e-5, abs=1e-5)


def test_one_round_equals_the_formulas_in_plain_floats() -> None:
    """Two raters, three items: start at vote shares, one M step, one E step, without priors."""
    matrix = [[0, 0], [0, 1], [1, 1]]
    found = fit(votes_of(matrix), FullConfusion(prior_count=0.0), prior_count=0.0, rounds=1)
    start = [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    prior = [sum(row[k] for row in start) / 3 for k in range(2)]
    confusion = [
        [
            [
                sum(start[i][k] for i in range(3) if matrix[i][r] == v) / sum(start[i][k] for i in range(3))
                for v in range(2)
            ]
            for k in range(2)
        ]
        for r in range(2)
    ]
    np.testing.assert_allclose(found.raters.confusion, confusion, atol=1e-12)
    for i in range(3):
        joint = [prior[k] * confusion[0][k][matrix[i][0]] * confusion[1][k][matrix[i][1]] for k in range(2)]
        np.testing.assert_allclose(found.posterior[i], [j / sum(joint) for j in joint], atol=1e-9)


def test_prior_of_a_confusion_matrix_is_the_share_of_right_answers_it_adds() -> None:
    raters = FullConfusion(prior_count=4.0, prior_accuracy=0.7)(np.zeros((1, 4, 4)), None)
    np.testing.assert_allclose(raters.confusion[0], np.full((4, 4), 0.1) + 0.6 * np.eye(4), atol=1e-15)


def test_a_thousand_answers_to_one_item_do_not_underflow() -> None:
    found = fit(votes_of([[0] * 1000, [1] * 1000, [0] * 1000]), FullConfusion())
    assert decide(found.posterior) == [0, 1, 0]
    np.testing.assert_allclose(found.posterior.sum(axis=1), 1.0)


def test_an_item_without_an_answer_stays_missing() -> None:
    votes = votes_of([[0, 0, 0], [-1, -1, -1], [1, 1, 0]])
    for model in MODELS.values():
        found = fit(votes, model)
        assert decide(found.posterior)[1] is None
        assert not np.isnan(found.posterior[[0, 2]]).any()
    assert decide(shares(votes))[1] is None
