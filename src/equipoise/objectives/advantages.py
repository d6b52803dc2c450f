"""Advantages of tokens and of responses, for a reward and for costs under a multiplier.

Everything is computed for the reward and for each cost apart, in columns, and is put together last, by
`blend`. **Nothing is scaled after that**: dividing the blended advantages by their deviation would cancel
1 / (1 + k), and would make a step of one size out of a gap of any size, also one that is nearly closed.

A multiplier is updated from raw costs, never from what is here: a group's costs less their mean are 0 in the
mean whatever the policy does.

Shapes: N response tokens in one flat line, response after response; R responses; P prompts with K responses
each; S = 1 + M signals, the reward first, better when higher, then the costs of M constraints, worse when
higher. `slots` [N] is the response of each token, as in `models/layout.py`: it never falls.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Advantages(NamedTuple):
    """What was better than expected, and what a critic is to expect, both in the shape of the signals."""

    advantages: Tensor
    returns: Tensor


def gae(
    signals: Tensor, values: Tensor, slots: Tensor, *, gamma: float = 1.0, decay: float = 0.95
) -> Advantages:
    """A_t = d_t + gamma decay A_(t+1), d_t = r_t + gamma V_(t+1) - V_t; returns A + V. Schulman et al. 2016.

    The value after a response's last token is 0.

    Args:
        signals: [N, S] or [N] reward of each token, and its costs.
        values: The critics' values before each token, in the same shape, without gradient.
        slots: [N] response of each token.
        gamma: Discount per token.
        decay: The paper's lambda.
    """
    if len(slots) == 0:
        return Advantages(signals.clone(), values.clone())
    counts = torch.bincount(slots)
    width = int(counts.max())
    place = torch.arange(len(slots), device=slots.device) - (counts.cumsum(0) - counts)[slots]
    column = width - counts[slots] + place  # all responses end in the last column
    deltas, now = (x.new_zeros(len(counts), width, *x.shape[1:]) for x in (signals, values))
    deltas[slots, column], now[slots, column] = signals, values
    deltas[:, :-1] += gamma * now[:, 1:]
    deltas -= now
    for t in range(width - 2, -1, -1):
        deltas[:, t] += gamma * decay * deltas[:, t + 1]
    advantages = deltas[slots, column]
    return Advantages(advantages, advantages + values)


def whiten(advantages: Tensor, *, together: bool = False, epsilon: float = 1e-8) -> Tensor:
    """(A - mean) / sqrt(variance + epsilon) of each column over all rows, [N, S]; variance over N - 1.

    Apart, reward and costs have one scale, so that a multiplier of order 1 is enough; but a divergence that
    stands in the signals then has weights that differ, and depends on the multiplier. `together` divides all
    columns by the deviation of the reward: multipliers keep their units and the divergence its weight.
    """
    centred = advantages - advantages.mean(dim=0)
    variance = centred.square().sum(dim=0) / max(1, len(advantages) - 1)
    return centred * (variance[:1] if together else variance).add(epsilon).rsqrt()


def blend(advantages: Tensor, multipliers: Sequence[float]) -> Tensor:
    """(A_R - sum_m k_m A_Cm) / (1 + sum_m k_m), [..., S] -> [...]. Dai et al. 2023 (Safe RLHF).

    Growing multipliers do not grow the step.

    >>> blend(torch.tensor([[3.0, 1.0], [0.0, -1.0]]), [2.0])
    tensor([0.3333, 0.6667])
    """
    if advantages.shape[-1] != 1 + len(multipliers):
        raise ValueError(
            f"blend: got {advantages.shape[-1]} columns and {len(multipliers)} multipliers; expected a "
            "column of the reward and one per multiplier"
        )
    weights = advantages.new_tensor([1.0, *(-k for k in multipliers)]) / (1 + sum(multipliers))
    return advantages @ weights


def reinforce(scores: Tensor) -> Tensor:
    """Score less the batch's mean of its column, [P, K, ...]. Williams 1992."""
    return scores - scores.mean(dim=(0, 1), keepdim=True)


def rloo(scores: Tensor) -> Tensor:
    """Score less the mean of the prompt's other responses, [P, K, ...]. Ahmadian et al. 2024 (RLOO)."""
    count = _group_size("rloo", scores)
    return (scores - scores.mean(dim=1, keepdim=True)) * (count / (count - 1))


def grpo(
    scores: Tensor, *, scale: Literal["batch", "group", "none"] = "batch", epsilon: float = 1e-6
) -> Tensor:
    """(score - mean of the prompt's) / (deviation + epsilon), [P, K, ...]. Shao et al. 2024 (GRPO).

    `scale="group"` is the paper's: each prompt's own deviation (over K - 1), so that a prompt whose
    responses hardly differ counts as much as one whose responses differ widely, in reward and in cost.
    With "batch" there is one deviation per column, from the prompts' own means; with "none" there is none.

    Args:
        scores: Reward and costs in columns, each scaled apart.
        scale: As above.
        epsilon: Added to the deviation.
    """
    count = _group_size("grpo", scores)
    centred = scores - scores.mean(dim=1, keepdim=True)
    if scale == "none":
        return centred
    variance = centred.square().sum(dim=1, keepdim=True) / (count - 1)
    if scale == "batch":
        variance = variance.mean(dim=0, keepdim=True)
    return centred / (variance.sqrt() + epsilon)


def _group_size(where: str, scores: Tensor) -> int:
    if scores.shape[1] < 2:
        raise ValueError(f"{where}: got {scores.shape[1]} responses per prompt; expected 2 or more")
    return scores.shape[1]


GROUP_ADVANTAGES: dict[str, Callable[..., Tensor]] = {"reinforce": reinforce, "rloo": rloo, "grpo": grpo}
"""Advantages of responses without a critic: [P, K, S] -> [P, K, S], to be blended."""


def prompt_excess(costs: Tensor, budgets: Sequence[float]) -> Tensor:
    """{mean_k C(x, y_k) - d}+ of each prompt, [P, K, M] -> [P, M]. Peng et al. 2024 (RePO).

    The multiplier follows their mean, with a budget of 0 or a small slack: what one prompt has left over
    pays for no other.
    """
    return (costs.mean(dim=1) - costs.new_tensor(budgets)).clamp(min=0)


def rectify(advantages: Tensor, costs: Tensor, budgets: Sequence[float]) -> Tensor:
    """Cost advantages of prompts over their budget only, the rest 0, [P, K, S]; for `blend`. RePO.

    That is the gradient of E_x {E_y C - d}+: a prompt that keeps its budget learns from reward alone. All
    prompts are divided by the same 1 + sum k, so that they keep their weight beside each other.

    Args:
        advantages: [P, K, 1 + M] of reward and costs.
        costs: [P, K, M] raw.
        budgets: M.
    """
    over = prompt_excess(costs, budgets) > 0
    kept = torch.cat([torch.ones_like(over[:, :1]), over], dim=-1)
    return torch.where(kept[:, None], advantages, 0.0)
