"""Mixtures of rewards and max-min aggregates against plain floats and against the saddle point."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from equipoise.objectives.maxmin import (
    hard_assignment,
    hard_log_likelihood,
    mean_of_min,
    min_of_mean,
    soft_assignment,
    soft_log_likelihood,
    unit_log_likelihoods,
)

GAPS = [[1.0, -2.0], [0.5, 0.5], [-3.0, 4.0], [900.0, -900.0]]
UNITS = [0, 2, 0, 3]  # unit 1 has no pairs
SHARES = [0.8, 0.2]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def expected() -> list[list[float]]:
    table = [[0.0, 0.0] for _ in range(4)]
    for row, unit in zip(GAPS, UNITS, strict=True):
        table[unit] = [old + log_sigmoid(gap) for old, gap in zip(table[unit], row, strict=True)]
    return table


def found() -> torch.Tensor:
    return unit_log_likelihoods(torch.tensor(GAPS, dtype=torch.float64), torch.tensor(UNITS), 4)


def test_log_likelihoods_of_units_match_formula() -> None:
    torch.testing.assert_close(found(), torch.tensor(expected(), dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_assignments_and_likelihoods_match_formula() -> None:
    shares = torch.tensor(SHARES, dtype=torch.float64)
    posterior, total, best = [], 0.0, 0.0
    for row in expected():
        top = max(math.log(s) + value for s, value in zip(SHARES, row, strict=True))
        joint = [math.exp(math.log(s) + value - top) for s, value in zip(SHARES, row, strict=True)]
        posterior.append([value / sum(joint) for value in joint])
        total += top + math.log(sum(joint))
        best += max(row)
    found_posterior = soft_assignment(found(), shares)
    torch.testing.assert_close(
        found_posterior, torch.tensor(posterior, dtype=torch.float64), rtol=1e-12, atol=1e-300
    )
    assert found_posterior[1].tolist() == pytest.approx(SHARES)  # nothing is known of it
    assert soft_log_likelihood(found(), shares).item() == pytest.approx(total, rel=1e-12)
    assert hard_log_likelihood(found()).item() == pytest.approx(best, rel=1e-12)
    assert hard_assignment(found()).tolist() == [[0, 1], [1, 0], [1, 0], [1, 0]]


def test_a_group_without_a_share_gets_nobody() -> None:
    posterior = soft_assignment(found(), torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert posterior.tolist() == [[1.0, 0.0]] * 4


REWARDS = torch.tensor([[1.0, 0.0], [0.1, 1.1], [0.4, 0.4]], dtype=torch.float64)  # 3 answers, 2 groups
TEMPERATURE = 0.05


def policy_of(rewards: torch.Tensor) -> torch.Tensor:
    """The answers' probabilities that are best for one reward each, with a small price on divergence."""
    return (rewards / TEMPERATURE).softmax(0)


def test_aggregates_match_formula() -> None:
    equal = torch.tensor([0.5, 0.5], dtype=torch.float64)
    raw = [0.5 * math.exp(-0.3 * mean) for mean in (1.5 / 3, 1.5 / 3)]
    raw[0] = 0.5 * math.exp(-0.3 * (1.0 + 0.1 + 0.4) / 3)
    raw[1] = 0.5 * math.exp(-0.3 * (0.0 + 1.1 + 0.4) / 3)
    weights = [value / sum(raw) for value in raw]
    blended = min_of_mean(REWARDS, equal, lr=0.3)
    assert blended.weights.tolist() == pytest.approx(weights, rel=1e-12)
    expected_rewards = [weights[0] * a + weights[1] * b for a, b in REWARDS.tolist()]
    assert blended.rewards.tolist() == pytest.approx(expected_rewards, rel=1e-12)
    least = mean_of_min(REWARDS, equal)
    assert least.rewards.tolist() == [0.0, 0.1, 0.4]
    assert torch.equal(least.weights, equal)


def test_weights_move_to_the_group_that_is_worst_off() -> None:
    weights = torch.tensor([0.5, 0.5])
    for _ in range(200):
        weights = min_of_mean(torch.tensor([[2.0, 1.0], [1.0, 0.0]]), weights).weights
    assert weights[1] > 0.99
    assert weights.sum().item() == pytest.approx(1)


def test_min_of_mean_goes_to_the_saddle_point_and_mean_of_min_does_not() -> None:
    def dual(q: float) -> float:
        blended = REWARDS @ torch.tensor([q, 1 - q], dtype=torch.float64)
        return TEMPERATURE * float((blended / TEMPERATURE).logsumexp(0))

    saddle = minimize_scalar(dual, bounds=(0, 1), method="bounded", options={"xatol": 1e-10})

    weights = torch.tensor([0.9, 0.1], dtype=torch.float64)
    policy = policy_of(REWARDS @ weights)
    for _ in range(500):
        seen = 3 * policy[:, None] * REWARDS  # its mean over the answers is the mean under the policy
        weights = min_of_mean(seen, weights, lr=0.05).weights
        policy = policy_of(REWARDS @ weights)
    assert weights[0].item() == pytest.approx(saddle.x, abs=1e-4)
    worst = (policy @ REWARDS).min().item()

    cautious = policy_of(mean_of_min(REWARDS, weights).rewards)
    assert cautious.argmax().item() == 2  # an answer that is nobody's favourite
    assert (cautious @ REWARDS).min().item() < 0.41
    assert worst > 0.53
