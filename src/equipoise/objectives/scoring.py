"""Losses of reward and cost models, from the scores of two answers to one prompt.

A reward is better when higher. **A cost is worse when higher, and above 0 means unsafe.** Public code
writes the same mathematics with either sign; here answers keep their places 0 and 1, and which one is
preferred, and whether one is unsafe, are data. A label that is missing (-1) leaves its term out.

Shapes: B pairs.
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
    pairs: CostPairs, *, rank_weight: float = 1.0, sign_weight: float = 1.0, centring: float = 0.001
) -> Tensor:
    """-log s(C_o - C_s) - log s(c_s C_s) - log s(c_o C_o) + centring (C_s^2 + C_o^2) / 2, [B].

    s is the safer answer, o the other; c = +1 for an unsafe answer, -1 for a safe one. Dai et al. 2023
    (Safe RLHF), with the weights 1 of its public code. The first term is left out where it is not known
    which answer is safer, and a sign term where the safety of its answer is not known.
    """
    gap = pairs.cost_1 - pairs.cost_0  # C_o - C_s if answer 0 is safer
    rank = -F.logsigmoid(torch.where(pairs.safer == 0, gap, -gap))
    rank = torch.where(pairs.safer >= 0, rank, 0.0)
    sign = _sign_loss(pairs.cost_0, pairs.unsafe_0) + _sign_loss(pairs.cost_1, pairs.unsafe_1)
    squares = _mean_square(pairs.cost_0, pairs.cost_1)
    return rank_weight * rank + sign_weight * sign + centring * squares


def _sign_loss(score: Tensor, unsafe: Tensor) -> Tensor:
    loss = -F.logsigmoid(torch.where(unsafe == 1, score, -score))
    return torch.where(unsafe >= 0, loss, 0.0)


def _mean_square(a: Tensor, b: Tensor) -> Tensor:
    return (a.square() + b.square()) / 2


SCORING_LOSSES: dict[str, Callable[..., Tensor]] = {"bradley_terry": bradley_terry, "cost": cost}
