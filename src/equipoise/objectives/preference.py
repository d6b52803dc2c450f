"""Losses that learn a policy from pairs of responses.

Each loss takes a `PairLogps` and returns one value per pair, [B]; the trainer reduces.
Hyper-parameters are keyword-only and are the settings a config may give. To add a loss,
write the function here, list it in `PREFERENCE_LOSSES`, and give its textbook formula in
`tests/objectives/test_preference.py` (the test fails until you do).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PairLogps(NamedTuple):
    """Both responses of each pair, all [B]: log-probabilities in nats, summed over the whole response."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_len: Tensor
    """Tokens."""
    rejected_len: Tensor
    """Tokens."""
    chosen_unsafe: Tensor
    """1.0 unsafe, 0.0 safe."""
    rejected_unsafe: Tensor
    """1.0 unsafe, 0.0 safe."""

    @property
    def margin(self) -> Tensor:
        """How much more than the reference the policy prefers the chosen response, [B]."""
        return (self.chosen - self.ref_chosen) - (self.rejected - self.ref_rejected)


def dpo(
    pair: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0, sft_weight: float = 0.0
) -> Tensor:
    """-(1-e) log s(beta h) - e log s(-beta h) + sft, h the margin. Rafailov et al. 2023, eq. 7; e as in cDPO.

    The last term, off by default, is `chosen_nll` times `sft_weight`.
    """
    z = beta * pair.margin
    loss = -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)
    return loss + sft_weight * chosen_nll(pair)


def safe_dpo(pair: PairLogps, *, beta: float = 0.1, delta: float = 10.0, sft_weight: float = 0.0) -> Tensor:
    """-log s(beta h - (1[l unsafe] - 1[w unsafe]) delta) + sft, h the margin. Kim et al. 2025 (SafeDPO).

    Pairs must have passed through `safe_dpo_order`; then a safe response must beat an unsafe one by
    delta, and `delta=0`, or pairs of two safe responses, give DPO. The last term is not the paper's:
    off by default, it is `chosen_nll` times `sft_weight`.
    """
    gap = pair.rejected_unsafe - pair.chosen_unsafe
    return -F.logsigmoid(beta * pair.margin - gap * delta) + sft_weight * chosen_nll(pair)


def chosen_nll(pair: PairLogps) -> Tensor:
    """-chosen / length, nats per token, [B]: imitates the chosen response, which margins alone may lose.

    A margin can grow while both responses become less likely; with few pairs it does. Pang et al. 2024
    (iterative RPO), eq. 2.
    """
    return -pair.chosen / pair.chosen_len


Index = Literal[0, 1]


def safe_dpo_order(
    better: Index | Literal["tie"] | None, unsafe_0: bool | None, unsafe_1: bool | None
) -> Index | None:
    """Return which response SafeDPO takes as chosen, or None where the pair is dropped.

    Kim et al. 2025: a winner that is unsafe is swapped with a loser that is safe, and a pair of two
    unsafe responses is dropped. So one safe response wins whatever `better` says, and `better`
    decides between two safe ones. Also dropped, since the paper has no such rows: a pair whose safety
    is not known, and two safe responses without a winner.

    >>> safe_dpo_order(0, True, False), safe_dpo_order(1, False, False), safe_dpo_order(0, True, True)
    (1, 1, None)
    """
    if unsafe_0 is None or unsafe_1 is None or (unsafe_0 and unsafe_1):
        return None
    if unsafe_0 != unsafe_1:
        return 1 if unsafe_0 else 0
    return None if better == "tie" else better


def implicit_reward_margin(pair: PairLogps, *, beta: float = 0.1) -> Tensor:
    """Implicit reward of the chosen response less that of the rejected, beta h, [B]; to be logged."""
    return beta * pair.margin


def implicit_accuracy(pair: PairLogps) -> Tensor:
    """1.0 where the margin is above 0, 0.5 where it is 0, else 0.0, [B]; an untrained policy has 0.5."""
    return (torch.sign(pair.margin) + 1) / 2


PreferenceLoss = Callable[..., Tensor]
PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {"dpo": dpo, "safe_dpo": safe_dpo}
