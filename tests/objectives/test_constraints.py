"""The dual of a cost constraint against plain floats, a grid and the primal problem itself."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from equipoise.objectives.constraints import (
    ascend,
    draw_preferences,
    dual_slope,
    dual_value,
    expected_severity,
    group_costs,
    lagrangian,
    preference_probability,
    severity_at_least,
    solve_dual,
    tilted_mean,
)

BETA = 0.5


def scored(prompts: int = 6, responses: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rewards and costs that rise together, so that the constraint bites."""
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randn(prompts, responses, generator=generator, dtype=torch.float64)
    noise = torch.randn(prompts, responses, generator=generator, dtype=torch.float64)
    return reward, 0.8 * reward + 0.6 * noise


def value_in_floats(reward: Tensor, cost: Tensor, k: float, budget: float, beta: float) -> float:
    total = 0.0
    for rewards, costs in zip(reward.tolist(), cost.tolist(), strict=True):
        mean = sum(
            math.exp((r - k * (c - budget)) / beta) for r, c in zip(rewards, costs, strict=True)
        ) / len(rewards)
        total += beta * math.log(mean)
    return total / len(reward)


@pytest.mark.parametrize("multiplier", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("budget", [-0.2, 0.0, 0.7])
def test_dual_value_matches_formula(multiplier: float, budget: float) -> None:
    reward, cost = scored()
    found = dual_value(reward, cost, multiplier, budget=budget, beta=BETA)
    assert found.item() == pytest.approx(value_in_floats(reward, cost, multiplier, budget, BETA), rel=1e-12)


@pytest.mark.parametrize("multiplier", [0.0, 0.3, 2.0])
def test_dual_slope_is_the_derivative_of_the_value(multiplier: float) -> None:
    reward, cost = scored()
    step = 1e-5
    ends = [dual_value(reward, cost, multiplier + d, budget=0.1, beta=BETA).item() for d in (-step, step)]
    slope = dual_slope(reward, cost, multiplier, budget=0.1, beta=BETA).item()
    assert slope == pytest.approx((ends[1] - ends[0]) / (2 * step), abs=1e-8)


def test_the_dual_is_convex() -> None:
    reward, cost = scored()
    slopes = [dual_slope(reward, cost, k, beta=BETA).item() for k in np.linspace(0, 20, 41)]
    assert (np.diff(slopes) > 0).all()


def test_large_exponents_do_not_overflow() -> None:
    reward = torch.tensor([[1e4, 0.0]], dtype=torch.float64)
    value = dual_value(reward, torch.zeros(1, 2), 3.0, beta=0.1)
    assert value.item() == pytest.approx(1e4 - 0.1 * math.log(2), rel=1e-12)
    low = dual_value(-reward - 1e4, torch.full((1, 2), 1e4), 1e3, beta=0.1)
    assert low.item() == pytest.approx(-1e4 - 1e7 - 0.1 * math.log(2), rel=1e-12)


@pytest.mark.parametrize("budget", [-0.6, -0.2, 0.2])
@pytest.mark.parametrize("seed", range(2))
def test_the_solver_finds_what_a_grid_finds(budget: float, seed: int) -> None:
    reward, cost = scored(seed=seed)
    solution = solve_dual(reward, cost, budget=budget, beta=BETA)
    assert solution.state == "active"
    around = np.arange(-2000, 2001) * 1e-3
    grid = (around + round(solution.multiplier))[around + round(solution.multiplier) >= 0]
    k = torch.tensor(grid)[:, None, None]
    exponent = (reward - k * (cost - budget)) / BETA
    values = BETA * (exponent.logsumexp(-1) - math.log(8)).mean(-1)
    assert solution.multiplier == pytest.approx(grid[int(values.argmin())], abs=1e-3)
    assert solution.cost == pytest.approx(budget, abs=1e-7)
    assert solution.reward == pytest.approx(
        tilted_mean(reward, reward, cost, solution.multiplier, beta=BETA).item()
    )


def test_the_solution_is_that_of_the_problem_with_the_constraint() -> None:
    reward, cost = scored(prompts=2, responses=4)
    budget = 0.0

    def policy(free: np.ndarray) -> np.ndarray:
        weights = np.exp(free.reshape(2, 4))
        return weights / weights.sum(-1, keepdims=True)

    def loss(free: np.ndarray) -> float:
        p = policy(free)
        return float(-((p * reward.numpy()).sum(-1) - BETA * (p * np.log(4 * p)).sum(-1)).mean())

    def slack(free: np.ndarray) -> float:
        return budget - float((policy(free) * cost.numpy()).sum(-1).mean())

    best = minimize(
        loss,
        np.zeros(8),
        method="SLSQP",
        constraints=[{"type": "ineq", "fun": slack}],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    solution = solve_dual(reward, cost, budget=budget, beta=BETA)
    assert solution.state == "active"
    found = (policy(best.x) * reward.numpy()).sum(-1).mean()
    assert solution.reward == pytest.approx(found, abs=1e-4)
    duality = dual_value(reward, cost, solution.multiplier, budget=budget, beta=BETA).item()
    assert duality == pytest.approx(-best.fun, abs=1e-8)


def test_a_budget_that_is_kept_anyway_has_no_multiplier() -> None:
    reward, cost = scored()
    solution = solve_dual(reward, cost, budget=5.0, beta=BETA)
    assert (solution.multiplier, solution.state) == (0.0, "inactive")
    assert solution.cost == pytest.approx(tilted_mean(cost, reward, cost, 0.0, beta=BETA).item())


def test_a_budget_that_no_policy_keeps_is_said_to_be_infeasible() -> None:
    reward, cost = scored()
    least = cost.amin(dim=-1).mean().item()
    solution = solve_dual(reward, cost, budget=least - 0.1, beta=BETA)
    assert (solution.multiplier, solution.state) == (math.inf, "infeasible")
    assert solution.cost == pytest.approx(least)
    far = tilted_mean(reward, reward, cost, 1e7, beta=BETA).item()
    assert solution.reward == pytest.approx(far)
    just = solve_dual(reward, cost, budget=least + 1e-3, beta=BETA)
    assert just.state == "active"
    assert just.cost == pytest.approx(least + 1e-3, abs=1e-7)


def test_only_the_sum_of_reward_and_cost_shifts_that_a_prompt_allows_matters() -> None:
    reward, cost = scored()
    shift = torch.linspace(-50, 50, 6, dtype=torch.float64)[:, None]  # PeCAN's rewards are known up to this
    plain = solve_dual(reward, cost, beta=BETA)
    shifted = solve_dual(reward + shift, cost, beta=BETA)
    assert shifted.multiplier == pytest.approx(plain.multiplier, abs=1e-8)


def test_ascending_on_the_best_policys_cost_arrives_at_the_solution() -> None:
    reward, cost = scored()
    multiplier = 0.0
    for _ in range(400):
        mean_cost = tilted_mean(cost, reward, cost, multiplier, beta=BETA).item()
        multiplier = ascend(multiplier, mean_cost, budget=-0.2, lr=0.3)
    assert multiplier == pytest.approx(solve_dual(reward, cost, budget=-0.2, beta=BETA).multiplier, abs=1e-6)


@pytest.mark.parametrize(
    ("multiplier", "mean_cost", "expected"), [(1.0, 3.0, 1.4), (1.0, 1.0, 1.0), (0.1, -9.0, 0.0)]
)
def test_the_multiplier_goes_up_while_the_budget_is_exceeded(
    multiplier: float, mean_cost: float, expected: float
) -> None:
    assert ascend(multiplier, mean_cost, budget=1.0, lr=0.2) == pytest.approx(expected)


def test_pseudo_preferences_follow_the_lagrangian() -> None:
    reward, cost = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([2.0, 0.0, -0.5])
    gap = lagrangian(reward, cost, 0.75) - lagrangian(torch.zeros(3), torch.zeros(3), 0.75)
    assert gap.tolist() == [-0.5, 0.0, 0.875]
    expected = [1 / (1 + math.exp(-value)) for value in gap.tolist()]
    assert preference_probability(gap).tolist() == pytest.approx(expected, rel=1e-6)
    drawn = draw_preferences(gap.repeat(20_000), torch.Generator().manual_seed(0)).view(-1, 3)
    shares = (drawn == 0).double().mean(0).tolist()
    assert shares == pytest.approx(expected, abs=0.015)
    again = draw_preferences(gap.repeat(20_000), torch.Generator().manual_seed(0)).view(-1, 3)
    assert torch.equal(drawn, again)


def test_severities_as_costs_match_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(5, 4, generator=generator, dtype=torch.float64).softmax(-1)
    rows = probabilities.tolist()
    expected = [sum(level * p for level, p in enumerate(row)) for row in rows]
    assert expected_severity(probabilities).tolist() == pytest.approx(expected, rel=1e-12)
    assert severity_at_least(probabilities).tolist() == pytest.approx([r[2] + r[3] for r in rows], rel=1e-12)
    # the expected level is the sum of the chances to reach each
    reached = torch.stack([severity_at_least(probabilities, level) for level in (1, 2, 3)]).sum(0)
    torch.testing.assert_close(expected_severity(probabilities), reached, rtol=1e-12, atol=0)


def test_a_groups_cost_is_its_worst_category() -> None:
    costs = torch.tensor([[-5.0, 2.0, -9.0], [-1.0, -2.0, 4.0]])
    members = torch.tensor([[True, True, False], [False, False, True], [True, False, True]])
    assert group_costs(costs, members).tolist() == [[2.0, -9.0, -5.0], [-1.0, 4.0, 4.0]]
