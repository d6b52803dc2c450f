"""Losses that learn a policy and its critics from what the policy itself has generated.

One loss per response token, [N]; the loop reduces. Summed and divided by the tokens of the step, each token
counts the same; through `response_means` and divided by the responses, each response does, which is what the
public code of Safe RLHF does.

Shapes: N response tokens in one flat line, response after response; R responses. `slots` [N] is the response
of each token, as in `models/layout.py`: it never falls.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.objectives.message_wise import message_signs
from equipoise.objectives.sequence import segment_sums, sft

LOG_RATIO_BOUND = 20.0
"""A ratio beyond e^20 would be infinite soon, and its gradient not a number even where it is clipped."""


class PolicyTokens(NamedTuple):
    """What the policy did and what came of it, all [N]; log-probabilities in nats."""

    logps: Tensor
    """Under the policy that learns, with gradient."""
    old_logps: Tensor
    """Under the policy that drew the tokens."""
    advantages: Tensor


class ValueTokens(NamedTuple):
    """A critic's values before each token, and what they should have been; one shape, [N] or [N, S]."""

    values: Tensor
    """With gradient."""
    old_values: Tensor
    """When the tokens were drawn."""
    returns: Tensor


def ppo(
    tokens: PolicyTokens, *, clip: float = 0.2, clip_high: float | None = None, dual_clip: float | None = None
) -> Tensor:
    """-min(q A, clip(q, 1 - c, 1 + c) A), q = pi / pi_old. Schulman et al. 2017, eq. 7.

    What is not the paper's is off by default: an upper bound of its own, 1 + clip_high (Yu et al. 2025,
    DAPO), and for A < 0 the loss at most -dual_clip A (Ye et al. 2020).
    """
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"ppo: dual_clip: got {dual_clip}; expected above 1")
    ratio = _ratio(tokens)
    bounded = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    loss = -torch.minimum(ratio * tokens.advantages, bounded * tokens.advantages)
    if dual_clip is None:
        return loss
    return torch.where(tokens.advantages < 0, torch.minimum(loss, -dual_clip * tokens.advantages), loss)


def reinforce(tokens: PolicyTokens) -> Tensor:
    """-A log pi, for tokens of the policy itself. Williams 1992."""
    return -tokens.advantages * tokens.logps


POLICY_LOSSES: dict[str, Callable[..., Tensor]] = {"ppo": ppo, "reinforce": reinforce}


def clipped_value(tokens: ValueTokens, *, clip: float | None = 5.0) -> Tensor:
    """max((V - G)^2, (clip(V, V_old - c, V_old + c) - G)^2) / 2, G the return. As in Safe RLHF.

    The larger of the two: a critic that has left the bound learns only if that brings it back.
    """
    loss = (tokens.values - tokens.returns).square()
    if clip is not None:
        near = tokens.old_values + (tokens.values - tokens.old_values).clamp(-clip, clip)
        loss = torch.maximum(loss, (near - tokens.returns).square())
    return loss / 2


def ptx(logps: Tensor, *, coef: float = 16.0) -> Tensor:
    """-coef log p of each token of a text to be remembered, [N]. Ouyang et al. 2022, eq. 2.

    A term of the same step's loss. The public code of Safe RLHF takes a step of its own for it, so that it
    passes through Adam apart and its weight beside the policy's loss is lost.
    """
    return coef * sft(logps)


def response_means(losses: Tensor, slots: Tensor, count: int) -> Tensor:
    """Mean over the tokens of each response, [N] -> [R], R = count; 0 where it has none."""
    lengths = torch.bincount(slots, minlength=count).clamp(min=1)
    return segment_sums(losses, slots, count) / lengths


def is_clipped(tokens: PolicyTokens, *, clip: float = 0.2, clip_high: float | None = None) -> Tensor:
    """Whether the bound took the token's gradient, bool [N]; to be logged."""
    ratio = _ratio(tokens)
    above = ratio > 1 + (clip if clip_high is None else clip_high)
    return torch.where(tokens.advantages > 0, above, (ratio < 1 - clip) & (tokens.advantages < 0))


def appo_mask(
    advantages: Tensor,
    scores: Tensor,
    slots: Tensor,
    *,
    baseline: float | None = None,
    threshold: float = 0.3,
) -> Tensor:
    """Good messages where the advantage is at least the baseline, bad ones where it is below, bool [N].

    Equilibrate RLHF, 2025 (APPO): what a token's advantage says is learned only where its message agrees.
    The public code compares each token alone, with a baseline of 0: `threshold=0`, `baseline=0`. Tokens that
    do not count have no loss; a response may have none that do.

    Args:
        advantages: [N] of reward, higher is better.
        scores: [N] score of each token, higher is better.
        slots: [N] response of each token.
        baseline: b, for both; None for the mean of `scores`, and 0 for the advantages.
        threshold: tau in standard deviations of `scores`, as in `message_signs`.
    """
    signs = message_signs(scores, slots, baseline=baseline, threshold=threshold)
    return torch.where(advantages >= (baseline or 0.0), signs > 0, signs < 0)


def _ratio(tokens: PolicyTokens) -> Tensor:
    return (tokens.logps - tokens.old_logps).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
