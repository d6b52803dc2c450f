"""Losses that learn a policy from pairs of responses.

Each loss takes a `PairLogps` and returns one value per pair, [B]; the trainer reduces.
Hyper-parameters are keyword-only and are the settings a config may give. To add a loss,
write the function here, list it in `PREFERENCE_LOSSES`, and give its textbook formula in
`tests/objectives/test_preference.py` (the test fails until you do). A hyper-parameter with
which a loss would teach the reverse, or nothing, raises ValueError.
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
    margin_reward: Tensor = torch.zeros(())
    """A frozen reward of the chosen response less that of the rejected; 0 where there is none."""
    weight: Tensor = torch.ones(())
    """What the pair counts for; the trainer multiplies its loss by it, a loss does not look at it."""
    severity_gap: Tensor = torch.zeros(())
    """Severity levels of the rejected response less those of the chosen, -3..3; 0 where not known."""

    @classmethod
    def alternating(
        cls, sums: Tensor, ref_sums: Tensor, lengths: Tensor, unsafe: Tensor, **more: Tensor
    ) -> "PairLogps":
        """Make pairs of numbers in the order chosen, rejected, chosen, ..., [2B] each; `more` is [B]."""
        both = [part[side::2] for part in (sums, ref_sums, lengths, unsafe) for side in (0, 1)]
        return cls(*both, **more)

    @property
    def margin(self) -> Tensor:
        """How much more than the reference the policy prefers the chosen response, [B]."""
        return (self.chosen - self.ref_chosen) - (self.rejected - self.ref_rejected)

    @property
    def mean_gap(self) -> Tensor:
        """Nats per token of the chosen response less those of the rejected, no reference, [B]."""
        return self.chosen / self.chosen_len - self.rejected / self.rejected_len


def dpo(
    pair: PairLogps,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    severity_margin: float = 0.0,
    sft_weight: float = 0.0,
) -> Tensor:
    """-(1-e) log s(z) - e log s(-z) + sft, z = beta h - m gap. Rafailov et al. 2023, eq. 7; e as in cDPO.

    h is the margin. The rest is off by default: m is `severity_margin`, by which the chosen response
    must win for each level that it is less severe (an offset as in Amini et al. 2024, its scale ours),
    and sft is `chosen_nll` times `sft_weight`.
    """
    above_zero("dpo", beta=beta)
    not_below_zero("dpo", severity_margin=severity_margin, sft_weight=sft_weight)
    if not 0 <= label_smoothing <= 0.5:
        raise ValueError(f"dpo: label_smoothing: got {label_smoothing}; expected 0 to 0.5")
    z = beta * pair.margin - severity_margin * pair.severity_gap
    loss = -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)
    return loss + sft_weight * chosen_nll(pair)


def safe_dpo(
    pair: PairLogps,
    *,
    beta: float = 0.1,
    delta: float = 10.0,
    severity_margin: float = 0.0,
    sft_weight: float = 0.0,
) -> Tensor:
    """-log s(beta h - (1[l unsafe] - 1[w unsafe]) delta) + sft, h the margin. Kim et al. 2025 (SafeDPO).

    Pairs must have passed through `safe_dpo_order`; then a safe response must beat an unsafe one by
    delta, and `delta=0`, or pairs of two safe responses, give DPO. What is not the paper's is off by
    default: `severity_margin` for each level of the severity gap beside delta, as in `dpo`, and
    `chosen_nll` times `sft_weight`.
    """
    above_zero("safe_dpo", beta=beta)
    not_below_zero("safe_dpo", delta=delta, severity_margin=severity_margin, sft_weight=sft_weight)
    gap = pair.rejected_unsafe - pair.chosen_unsafe
    z = beta * pair.margin - gap * delta - severity_margin * pair.severity_gap
    return -F.logsigmoid(z) + sft_weight * chosen_nll(pair)


def ipo(pair: PairLogps, *, tau: float = 0.1) -> Tensor:
    """(a - 1/(2 tau))^2, a the margin in nats per token. Azar et al. 2023, eq. 17.

    **Means over tokens, not sums**: eq. 17 read literally compares summed log-probabilities, so that one
    target would hold for ten tokens and for a thousand. The authors' runs, and TRL, divide the
    log-ratio of each response by its length.
    """
    above_zero("ipo", tau=tau)
    chosen = (pair.chosen - pair.ref_chosen) / pair.chosen_len
    rejected = (pair.rejected - pair.ref_rejected) / pair.rejected_len
    return (chosen - rejected - 1 / (2 * tau)).square()


def simpo(pair: PairLogps, *, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """-log s(beta (chosen/len - rejected/len) - gamma), no reference. Meng et al. 2024, eq. 6."""
    above_zero("simpo", beta=beta)
    return -F.logsigmoid(beta * pair.mean_gap - gamma)


def orpo(pair: PairLogps, *, beta: float = 0.1) -> Tensor:
    """nll - beta log s(log odds_w - log odds_l), odds = p / (1 - p), no reference. Hong et al. 2024, eq. 6.

    p is the probability per token, exp(log-probability / length); nll is `chosen_nll`, over the response
    alone (public code also counts the tokens of the prompt). beta is the paper's lambda.
    """
    above_zero("orpo", beta=beta)
    log_odds = _log_odds(pair.chosen / pair.chosen_len) - _log_odds(pair.rejected / pair.rejected_len)
    return chosen_nll(pair) - beta * F.logsigmoid(log_odds)


def _log_odds(logp: Tensor) -> Tensor:
    """log p - log(1 - p), without 1 - p where it would cancel; a certain p counts as 1 - epsilon."""
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    return logp - torch.log(-torch.expm1(logp))


def bfpo(pair: PairLogps, *, beta: float = 0.01, b1: float = 3.0, alpha: float = 0.5) -> Tensor:
    """(h - g / beta)^2, g = b1 b3 s_w - b3 s_l - alpha, b3 = 1 / (b1 - 1), s = 1[safe]. Zhang et al. 2024.

    BFPO: chosen is the more helpful response, and safety decides what margin h it should have. With the
    defaults g is 1 for a safe response over an unsafe one, .5 between two safe ones, -.5 between two
    unsafe ones, and -1 for an unsafe response over a safe one, which so loses.
    """
    above_zero("bfpo", beta=beta, **{"b1 - 1": b1 - 1})
    b3 = 1 / (b1 - 1)
    target = b1 * b3 * (1 - pair.chosen_unsafe) - b3 * (1 - pair.rejected_unsafe) - alpha
    return (pair.margin - target / beta).square()


def above_zero(where: str, **settings: float) -> None:
    """Raise ValueError for a setting of the loss `where` that is not above 0."""
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"{where}: {name}: got {value}; expected above 0")


def not_below_zero(where: str, **settings: float) -> None:
    """Raise ValueError for a setting of the loss `where` that is not 0 or more."""
    for name, value in settings.items():
        if not value >= 0:
            raise ValueError(f"{where}: {name}: got {value}; expected 0 or more")


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
PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {
    "dpo": dpo,
    "safe_dpo": safe_dpo,
    "ipo": ipo,
    "simpo": simpo,
    "orpo": orpo,
    "bfpo": bfpo,
}
REFERENCE_FREE = frozenset({"simpo", "orpo"})
"""Losses that do not look at the reference, so that it need not be computed."""
