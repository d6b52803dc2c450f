"""Utilities against the closed form, the score equations, and planted truth."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from equipoise.annotation.bradley_terry import Comparisons, bradley_terry, in_cycles
from equipoise.errors import DataError


def comparisons(rows: list[tuple[int, int, float]]) -> Comparisons:
    first, second, result = zip(*rows, strict=True)
    return Comparisons(np.array(first), np.array(second), np.array(result, dtype=float))


def test_two_things_have_the_log_odds_of_their_wins() -> None:
    data = comparisons([(0, 1, 1)] * 6 + [(1, 0, 1)] * 2)
    found = bradley_terry(data, 2, prior_sd=None)
    assert found.values[0] - found.values[1] == pytest.approx(math.log(3), abs=1e-6)
    assert found.tie == 0.0


def test_half_ties_and_davidson_by_hand() -> None:
    """5 wins, 3 losses, 2 ties. Half: log(6/4). Davidson: log(5/3), nu = 2 / sqrt(5 * 3)."""
    data = comparisons([(0, 1, 1)] * 5 + [(0, 1, 0)] * 3 + [(0, 1, 0.5)] * 2)
    half = bradley_terry(data, 2, ties="half", prior_sd=None)
    assert half.values[0] - half.values[1] == pytest.approx(math.log(6 / 4), abs=1e-6)
    assert half.tie is None
    full = bradley_terry(data, 2, prior_sd=None)
    assert full.values[0] - full.values[1] == pytest.approx(math.log(5 / 3), abs=1e-6)
    assert full.tie == pytest.approx(2 / math.sqrt(15), abs=1e-6)


def test_expected_wins_equal_wins_at_the_maximum() -> None:
    """The score equations of Bradley and Terry, on a round of four."""
    rng = np.random.default_rng(0)
    rows = [(i, j, float(rng.random() < 0.6)) for i in range(4) for j in range(4) if i < j for _ in range(10)]
    u = bradley_terry(comparisons(rows), 4, prior_sd=None).values
    for k in range(4):
        wins = sum(r if i == k else 1 - r for i, j, r in rows if k in (i, j))
        expected = sum(1 / (1 + math.exp(u[j + i - k] - u[k])) for i, j, _ in rows if k in (i, j))
        assert wins == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("ties", ["davidson", "half"])
def test_planted_utilities_are_recovered(ties: str) -> None:
    rng = np.random.default_rng(1)
    planted, nu = rng.normal(0, 1.5, 40), 0.6
    first, second = rng.integers(0, 40, (2, 1200))
    first, second = first[first != second], second[first != second]
    weights = np.stack(
        [np.exp(planted[first]), np.exp(planted[second]), nu * np.exp((planted[first] + planted[second]) / 2)]
    )
    drawn = (rng.random(len(first)) > (weights / weights.sum(0)).cumsum(0)).sum(0)
    data = Comparisons(first, second, np.array([1.0, 0.0, 0.5])[drawn])
    found = bradley_terry(data, 40, ties=ties)  # type: ignore[arg-type]
    assert spearmanr(found.values, planted).statistic > 0.9
    if ties == "davidson":
        assert found.tie == pytest.approx(nu, rel=0.3)
        assert np.abs(found.values - (planted - planted.mean())).mean() < 0.3


def test_without_a_prior_the_wins_must_lead_everywhere() -> None:
    chain = comparisons([(0, 1, 1), (1, 2, 1)])
    with pytest.raises(DataError, match="do not lead from each of 3 to every other, got 3 parts"):
        bradley_terry(chain, 3, prior_sd=None)
    found = bradley_terry(chain, 3)
    assert list(np.argsort(-found.values)) == [0, 1, 2]


def test_groups_that_never_met_are_told_apart_and_centred_each() -> None:
    found = bradley_terry(comparisons([(0, 1, 1), (2, 3, 1), (2, 3, 1)]), 4)
    assert list(found.groups) == [0, 0, 1, 1]
    assert found.values[0] + found.values[1] == pytest.approx(0, abs=1e-9)
    assert found.values[2] > found.values[0] > 0


def test_a_cycle_is_found_and_a_chain_is_none() -> None:
    rows = [(0, 1, 1.0), (1, 2, 1.0), (0, 2, 0.0), (3, 4, 1.0), (4, 0, 1.0)]
    assert in_cycles(comparisons(rows), 5) == [True, True, True, False, False]
