"""Losses that learn one policy for several wishes at once, from pairs and a frozen margin reward.

`PairLogps.margin_reward` holds, for each pair, how much more the other wishes prefer the chosen response:
the difference of a scorer's values, or of the implicit rewards of a policy that was aligned with them
(`implicit_rewards`). Several wishes are given as their weighted mean. Its sign is that of a reward: of a
cost, which is worse when higher, the negative is given. Without one it is 0, which is no preference at all.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from equipoise.objectives.preference import PairLogps, above_zero


def modpo(pair: PairLogps, *, beta: float = 0.1, weight: float = 0.5) -> Tensor:
    """-log s((beta h - (1 - w) m) / w), h the margin, m the margin reward. Zhou et al. 2023 (MODPO), eq. 9.

    w, the weight of the wish that the pairs are labelled for, is above 0 and at most 1. The policy that is
    least in this loss is the one that is best for w r + (1 - w) r_m less beta times the divergence, r the
    reward behind the labels; w = 1 is DPO whatever the margin reward. The smaller w, the less is learned from
    the labels, and loss and slope grow as 1 / w.
    """
    above_zero("modpo", beta=beta)
    if not 0 < weight <= 1:
        raise ValueError(f"modpo: weight: got {weight}; expected above 0, and at most 1")
    return -F.logsigmoid((beta * pair.margin - (1 - weight) * pair.margin_reward) / weight)


def soft_dpo(pair: PairLogps, *, beta: float = 0.1) -> Tensor:
    """-p log s(beta h) - (1 - p) log s(-beta h), h the margin, p = s(m) and m the margin reward.

    The expectation of DPO over pseudo-preferences that are drawn with probability p, so nothing is drawn.
    With the difference of r - k c as margin reward this is the second step of MoCAN and PeCAN (Huang et
    al. 2024) and the inner step of constrained DPO (Liu et al. 2024) at the multiplier k. Who is called
    chosen does not matter here: a swapped pair with a negated margin reward has the same loss.
    """
    above_zero("soft_dpo", beta=beta)
    z, p = beta * pair.margin, torch.sigmoid(pair.margin_reward)
    return -p * F.logsigmoid(z) - (1 - p) * F.logsigmoid(-z)


def implicit_rewards(logps: Tensor, ref_logps: Tensor, *, beta: float = 0.1) -> Tensor:
    """beta (log pi - log pi_ref) of responses, in the shape that is given: the reward a policy has learned.

    Known up to a constant for each prompt only, so of use in differences. Rafailov et al. 2023, eq. 5.
    """
    return beta * (logps - ref_logps)


MULTI_OBJECTIVE_LOSSES: dict[str, Callable[..., Tensor]] = {"modpo": modpo, "soft_dpo": soft_dpo}
