"""Constraints on cost: the multiplier, and what is best under it, found from scored responses alone.

A policy that maximises reward less beta times the divergence from its reference, under mean cost <= budget,
is the reference tilted by exp((r - k c) / beta), where k, the multiplier, is least in a convex function of
one variable, the dual. Responses of the reference with reward and cost are enough to find it before any
training (MoCAN from scorers, PeCAN from the implicit rewards of two aligned policies; Huang et al. 2024,
"one-shot"). The policy then learns from pairs whose margin reward is the difference of r - k c, by `soft_dpo`
of `multi_objective.py`.

A cost is worse when higher. Of a paper's g, better when higher, with the floor b, the cost is -g and the
budget -b; a budget relative to the reference is its mean cost less the improvement.

What is constrained need not be one cost: the expected severity, the probability of a severe response, or the
cost of each group of categories are costs too, each with a budget and a multiplier of its own.

Shapes: P prompts, K responses of the reference for each, B pairs or responses, L severity levels,
C categories, G groups of them.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

State = Literal["active", "inactive", "infeasible"]
"""active: the budget binds; inactive: it is kept without a multiplier; infeasible: no policy over these
responses keeps it."""


class DualSolution(NamedTuple):
    """The multiplier that is least in the dual, and what it means."""

    multiplier: float
    """0 where inactive, infinite where infeasible."""
    state: State
    cost: float
    """Mean cost of the policy that is best under the multiplier."""
    reward: float
    """Its mean reward."""


def lagrangian(reward: Tensor, cost: Tensor, multiplier: float) -> Tensor:
    """R - k c, in the shape that is given: what is maximised at a multiplier k."""
    return reward - multiplier * cost


def dual_value(
    reward: Tensor, cost: Tensor, multiplier: float, *, budget: float = 0.0, beta: float = 0.1
) -> Tensor:
    """beta E_x log E_(y~ref) exp((r - k (c - d)) / beta), d the budget: convex in the multiplier k. Scalar.

    Huang et al. 2024 (MoCAN), with the mean over K responses for the expectation. Safe from overflow.

    Args:
        reward: [P, K] of responses of the reference, higher is better.
        cost: [P, K], higher is worse.
        multiplier: k, at least 0.
        budget: d, in units of the cost.
        beta: Weight of the divergence from the reference, in units of the reward per nat.
    """
    exponent = lagrangian(reward.double(), cost.double() - budget, multiplier) / beta
    return beta * (exponent.logsumexp(dim=-1) - math.log(exponent.shape[-1])).mean()


def dual_slope(
    reward: Tensor, cost: Tensor, multiplier: float, *, budget: float = 0.0, beta: float = 0.1
) -> Tensor:
    """Derivative of `dual_value` in the multiplier: the budget less the best policy's mean cost. Scalar."""
    return budget - tilted_mean(cost, reward, cost, multiplier, beta=beta)


def tilted_mean(
    values: Tensor, reward: Tensor, cost: Tensor, multiplier: float, *, beta: float = 0.1
) -> Tensor:
    """Mean of values [P, K] under the policy that is best at a multiplier: ref exp((r - k c) / beta). Scalar.

    With costs as values this is what constrained DPO watches, without training and sampling a policy.
    """
    weights = (lagrangian(reward.double(), cost.double(), multiplier) / beta).softmax(dim=-1)
    return (weights * values.double()).sum(dim=-1).mean()


def solve_dual(
    reward: Tensor, cost: Tensor, *, budget: float = 0.0, beta: float = 0.1, tolerance: float = 1e-9
) -> DualSolution:
    """Find the multiplier that is least in the dual, by bisection of its slope, which only rises.

    Args:
        reward: [P, K] of responses of the reference, higher is better.
        cost: [P, K], higher is worse.
        budget: As in `dual_value`.
        beta: As in `dual_value`.
        tolerance: Width of the last bracket, relative to the multiplier where that is above 1.
    """

    def found(multiplier: float, state: State) -> DualSolution:
        at = [tilted_mean(values, reward, cost, multiplier, beta=beta).item() for values in (cost, reward)]
        return DualSolution(multiplier, state, *at)

    def slope(multiplier: float) -> float:
        return dual_slope(reward, cost, multiplier, budget=budget, beta=beta).item()

    if slope(0.0) >= 0:
        return found(0.0, "inactive")
    least = cost.double().amin(dim=-1, keepdim=True)
    if least.mean().item() >= budget:  # what the best policy's cost goes to as the multiplier grows
        cheapest = torch.where(cost.double() == least, reward.double(), -math.inf)
        weights = (cheapest / beta).softmax(dim=-1)
        best = (weights * reward.double()).sum(dim=-1).mean().item()
        return DualSolution(math.inf, "infeasible", least.mean().item(), best)
    low, high = 0.0, 1.0
    while slope(high) < 0:
        low, high = high, 2 * high
    while high - low > tolerance * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return found(high, "active")


def preference_probability(gap: Tensor) -> Tensor:
    """P(the first answer is preferred) = s(gap), gap the difference of r - k c, [B]. Bradley-Terry."""
    return torch.sigmoid(gap)


def draw_preferences(gap: Tensor, generator: torch.Generator) -> Tensor:
    """Draw which answer is preferred, 0 or 1, [B], with `preference_probability`: pseudo-preferences."""
    drawn = torch.rand(gap.shape, generator=generator, dtype=torch.float64).to(gap.device)
    return (drawn >= preference_probability(gap.double())).long()


def ascend(multiplier: float, mean_cost: float, *, budget: float = 0.0, lr: float = 0.1) -> float:
    """k <- max(0, k + lr (mean cost - d)): up while the policy costs more than d, else down.

    The outer step of constrained DPO (Liu et al. 2024); with `tilted_mean` as cost it goes down the dual.

    >>> ascend(0.5, mean_cost=2.0, budget=1.0), ascend(0.05, mean_cost=0.0, budget=1.0)
    (0.6, 0.0)
    """
    return max(0.0, multiplier + lr * (mean_cost - budget))


def expected_severity(probabilities: Tensor) -> Tensor:
    """sum_l l P(severity = l), [B, L] -> [B]: a cost in severity levels.

    >>> expected_severity(torch.tensor([[0.5, 0.0, 0.0, 0.5], [0.0, 1.0, 0.0, 0.0]]))
    tensor([1.5000, 1.0000])
    """
    levels = torch.arange(probabilities.shape[-1], dtype=probabilities.dtype, device=probabilities.device)
    return probabilities @ levels


def severity_at_least(probabilities: Tensor, level: int = 2) -> Tensor:
    """P(severity >= level), [B, L] -> [B]: its mean is a rate, so a budget of 0.01 is one in a hundred.

    >>> severity_at_least(torch.tensor([[0.5, 0.25, 0.0, 0.25]]))
    tensor([0.2500])
    """
    return probabilities[..., level:].sum(dim=-1)


def group_costs(costs: Tensor, members: Tensor) -> Tensor:
    """The highest cost among each group's categories, [B, C] -> [B, G], for one multiplier per group.

    Costs or probabilities alike: a response that is harmful in one category is harmful in its group, however
    harmless it is in the others, which a mean would hide.

    Args:
        costs: [B, C], higher is worse.
        members: bool [G, C], at least one category in each group.
    """
    return torch.where(members, costs[:, None], -math.inf).amax(dim=-1)
