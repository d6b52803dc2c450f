"""Divergence from the reference: its estimators per token, and rewards of tokens that hold it.

Which estimator is right depends on where it stands. As a *number* k1 and k3 are without bias; as a *loss* on
tokens that the policy itself drew, only k2 has the gradient of KL(policy || reference): that of k1 is 0 in
the mean, and that of k3 is the gradient of KL(reference || policy). As a *reward* k1 is right.

The divergence stands in one place only: in the rewards of tokens (`token_signals`) or in the loss. In the
rewards it has its full weight in the reward and in every cost, so that what remains after
`advantages.blend` is -beta kl whatever the multipliers are. In the reward alone it would fade as they grow.

Shapes: N response tokens in one flat line, response after response; R responses; M constraints. `slots` [N]
is the response of each token, as in `models/layout.py`: it never falls. Of several signals the first column
is the reward, better when higher, and the others are costs, worse when higher.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def k1(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """log pi - log pi_ref, [N], nats: no bias, and as a reward the exact penalty. Schulman 2020."""
    return logps - ref_logps


def k2(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """(log pi - log pi_ref)^2 / 2, [N]: never below 0; as a loss it has the gradient of KL. Schulman 2020."""
    return (logps - ref_logps).square() / 2


def k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """e^x - 1 - x, x = log pi_ref - log pi, [N]: no bias, never below 0. Schulman 2020, as in GRPO.

    Public code bounds it, which also takes the gradient from where it is largest; here it is not bounded.
    """
    gap = ref_logps - logps
    return torch.expm1(gap) - gap


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def token_signals(
    scores: Tensor, kl: Tensor, slots: Tensor, *, beta: float = 0.01, clip: float | None = 50.0
) -> Tensor:
    """-beta kl_t (costs: +beta kl_t) and, at a response's last token, its score, [N, 1 + M].

    Dai et al. 2023 (Safe RLHF). The bound is on the sum, as in the public code: where it acts, the
    divergence is no longer held apart from the multipliers.

    Args:
        scores: [R, 1 + M] reward and costs of each response.
        kl: [N] `k1` of each token, without gradient.
        slots: [N] response of each token; every response has one.
        beta: Weight of the divergence, in units of the reward per nat.
        clip: The bound; None for none.
    """
    counts = torch.bincount(slots, minlength=len(scores))
    if not bool((counts > 0).all()):
        raise ValueError("token_signals: a response has no token; expected at least one to hold its score")
    signs = scores.new_full((scores.shape[1],), beta)
    signs[0] = -beta
    signals = (kl.to(scores.dtype)[:, None] * signs).index_add(0, counts.cumsum(0) - 1, scores)
    return signals if clip is None else signals.clamp(-clip, clip)
