"""Losses of reward and cost models, from the scores of two answers to one prompt.

A reward is better when higher. **A cost is worse when higher, and above 0 means unsafe.** Public code
writes the same mathematics with either sign; here answers keep their places 0 and 1, and which one is
preferred, and whether one is unsafe, are data. A label that is missing (-1) leaves its term out.

Shapes: B pairs, C categories.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class RewardPairs(NamedTuple):
    """Rewards of both answers and which is preferred, all [B]."""

    reward_0: Tensor
    reward_1: Tensor
    better: Tensor
    """0 or 1, -1 where it is not known or a tie."""


class CostPairs(NamedTuple):
    """Costs of both answers and what is known of their harm, all [B]."""

    cost_0: Tensor
    cost_1: Tensor
    safer: Tensor
    """0 or 1, -1 where it is not known or a tie."""
    unsafe_0: Tensor
    """1 unsafe, 0 safe, -1 not known."""
    unsafe_1: Tensor
    """1 unsafe, 0 safe, -1 not known."""
    severity_gap: Tensor = torch.zeros(())
    """Severity of answer 1 less that of answer 0, in levels; 0 where one of both is not known."""


def bradley_terry(pairs: RewardPairs, *, margin: float = 0.0, centring: float = 0.001) -> Tensor:
    """-log s(r_w - r_l - margin) + centring (r_w^2 + r_l^2) / 2, [B]. Dai et al. 2023 (Safe RLHF).

    w is the preferred answer, l the other. The squares keep scores near 0, which the first term alone
    leaves free; a pair without a preference gives the squares only.
    """
    gap = pairs.reward_0 - pairs.reward_1  # r_w - r_l if answer 0 is preferred
    rank = -F.logsigmoid(torch.where(pairs.better == 0, gap, -gap) - margin)
    squares = _mean_square(pairs.reward_0, pairs.reward_1)
    return torch.where(pairs.better >= 0, rank, 0.0) + centring * squares


def cost(
    pairs: CostPairs,
    *,
    rank_weight: float = 1.0,
    sign_weight: float = 1.0,
    centring: float = 0.001,
    severity_margin: float = 0.0,
    both_unsafe_weight: float = 1.0,
) -> Tensor:
    """-log s(C_o - C_s - m) - log s(c_s C_s) - log s(c_o C_o) + centring (C_s^2 + C_o^2) / 2, [B].

    s is the safer answer, o the other; c = +1 for an unsafe answer, -1 for a safe one. Dai et al. 2023
    (Safe RLHF), with the weights 1 of its public code. The first term is left out where it is not known
    which answer is safer, and a sign term where the safety of its answer is not known.

    The rest is ours and off by default: m is `severity_margin` for each level by which o is more severe
    than s (0 where it is not, or not known), and the first term of two unsafe answers counts
    `both_unsafe_weight` times: 0 drops it. Their sign terms stay, or the scorer would see fewer unsafe ones.
    """
    is_first = pairs.safer == 0
    gap = torch.where(is_first, pairs.cost_1 - pairs.cost_0, pairs.cost_0 - pairs.cost_1)  # C_o - C_s
    levels = torch.where(is_first, pairs.severity_gap, -pairs.severity_gap).clamp(min=0)
    rank = -F.logsigmoid(gap - severity_margin * levels.to(gap.dtype))
    both_unsafe = (pairs.unsafe_0 == 1) & (pairs.unsafe_1 == 1)
    rank = torch.where(both_unsafe, both_unsafe_weight * rank, rank)
    rank = torch.where(pairs.safer >= 0, rank, 0.0)
    sign = _sign_loss(pairs.cost_0, pairs.unsafe_0) + _sign_loss(pairs.cost_1, pairs.unsafe_1)
    squares = _mean_square(pairs.cost_0, pairs.cost_1)
    return rank_weight * rank + sign_weight * sign + centring * squares


def category_cost(
    pairs: CostPairs,
    *,
    rank_weight: float = 1.0,
    sign_weight: float = 1.0,
    centring: float = 0.001,
    severity_margin: float = 0.0,
) -> Tensor:
    """Mean of `cost` over the categories that a pair has a label for, [B, C] each -> [B]; 0 where none.

    A category's cost above 0 means that the answer is of the category; `unsafe`, `safer` and the severity
    are those of the category alone. Ours: it gives each constraint of a policy a cost of its own.
    """
    each = cost(
        pairs,
        rank_weight=rank_weight,
        sign_weight=sign_weight,
        centring=centring,
        severity_margin=severity_margin,
    )
    known = (pairs.safer >= 0) | (pairs.unsafe_0 >= 0) | (pairs.unsafe_1 >= 0)
    return torch.where(known, each, 0.0).sum(-1) / known.sum(-1).clamp(min=1)


def _sign_loss(score: Tensor, unsafe: Tensor) -> Tensor:
    loss = -F.logsigmoid(torch.where(unsafe == 1, score, -score))
    return torch.where(unsafe >= 0, loss, 0.0)


def _mean_square(a: Tensor, b: Tensor) -> Tensor:
    return (a.square() + b.square()) / 2


SCORING_LOSSES: dict[str, Callable[..., Tensor]] = {
    "bradley_terry": bradley_terry,
    "cost": cost,
    "category_cost": category_cost,
}
