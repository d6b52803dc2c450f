"""Messages: runs of tokens that a score says are good or bad, and losses that learn from some of them only.

Adaptive message-wise alignment (Equilibrate RLHF, 2025, and its ancestor, Adaptive Message-wise RLHF, 2024).
A score for each token, from a reward or a critic, is turned into a sign that changes only where the score is
clearly on the other side of a baseline, so that tokens form messages. Of a chosen response the good messages
are learned, of a rejected one the bad messages are unlearned; what is masked has a gradient of exactly 0.

The baseline is a mean over all tokens that are given. Given all tokens of the data once, before training, the
masks do not depend on how a step is split into micro-batches.

Shapes: N response tokens in one flat line, response after response; R responses, R = 2B for pairs, whose
chosen response is 2i and whose rejected is 2i + 1; B pairs; P prompts. `slots` [N] is the response of each
token, as in `models/layout.py`: it never falls.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.objectives.preference import PairLogps, dpo
from equipoise.objectives.sequence import segment_sums, sft


class TokenPairs(NamedTuple):
    """Log-probabilities in nats of the response tokens of pairs, and which of them count, all [N]."""

    logps: Tensor
    ref_logps: Tensor
    slots: Tensor
    """Response of each token, 2i chosen and 2i + 1 rejected."""
    kept: Tensor
    """True where the token counts, under policy and reference alike."""
    pairs: int
    """B."""


def adpo(tokens: TokenPairs, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """-log s(beta (sum_t m_t^w D_t^w - sum_t m_t^l D_t^l)), D = log pi - log pi_ref, m the masks, [B].

    Equilibrate RLHF, 2025 (ADPO). With all masks 1 this is DPO; label smoothing, off by default, is as there.
    """
    return dpo(masked_pairs(tokens), beta=beta, label_smoothing=label_smoothing)


def masked_pairs(tokens: TokenPairs) -> PairLogps:
    """Sum what counts of each response, so that any loss of pairs becomes a message-wise one.

    Lengths are those of what counts, at least 1, so that a response of which nothing does has a mean of 0 per
    token; no response is said to be unsafe.
    """
    count = 2 * tokens.pairs
    sums = segment_sums(torch.where(tokens.kept, tokens.logps, 0.0), tokens.slots, count)
    ref_sums = segment_sums(torch.where(tokens.kept, tokens.ref_logps, 0.0), tokens.slots, count)
    lengths = segment_sums(tokens.kept.to(sums.dtype), tokens.slots, count).clamp(min=1)
    return PairLogps.alternating(sums, ref_sums, lengths, unsafe=torch.zeros_like(sums))


def masked_sft(logps: Tensor, kept: Tensor) -> Tensor:
    """-log p of the tokens that count, one loss for each of them; others are not looked at. [N] -> [kept]."""
    return sft(logps[kept])


def score_increments(scores: Tensor, slots: Tensor, before: Tensor) -> Tensor:
    """r_t = R(y up to t) - R(y before t), [N], from the score of every prefix; sums to the whole response's.

    Args:
        scores: [N] score of the response up to and with each token.
        slots: [N] response of each token.
        before: [R] score of each prompt alone.
    """
    previous = torch.where(_starts(slots), before[slots], scores.roll(1))
    return scores - previous


def message_signs(
    scores: Tensor, slots: Tensor, *, baseline: float | None = None, threshold: float = 0.3
) -> Tensor:
    """+1 in a good message, -1 in a bad one, 0 before either is known, [N].

    The sign turns to + only above baseline + tau and to - only below baseline - tau; between them it stays.
    The first token of a response has the sign of its own difference, however small (the paper leaves that
    open), so 0 remains only while scores are exactly the baseline.

    Args:
        scores: [N] score of each token, higher is better.
        slots: [N] response of each token.
        baseline: What a score is compared with; the mean of `scores` where None. The public code has 0.
        threshold: tau in standard deviations of `scores`.
    """
    if len(scores) == 0:
        return scores.long()
    gap = scores - (scores.mean() if baseline is None else baseline)
    tau = threshold * scores.std(correction=0)
    starts = _starts(slots)
    turns = starts | (gap.abs() > tau)
    place = torch.arange(len(scores), device=scores.device)
    last = torch.where(turns, place, 0).cummax(0).values  # the first token starts a response: no turn is 0's
    return gap.sign().long()[last]


def message_mask(
    scores: Tensor,
    slots: Tensor,
    chosen: Tensor,
    *,
    baseline: float | None = None,
    threshold: float = 0.3,
) -> Tensor:
    """Which tokens count: good messages of chosen responses, bad messages of rejected ones, bool [N].

    A response of which nothing would count counts whole.

    Args:
        scores: [N] score of each token, higher is better.
        slots: [N] response of each token.
        chosen: [R] True where the response is to become more likely, False where less.
        baseline: As in `message_signs`.
        threshold: As in `message_signs`.
    """
    signs = message_signs(scores, slots, baseline=baseline, threshold=threshold)
    kept = signs == torch.where(chosen, 1, -1)[slots]
    is_empty = segment_sums(kept.long(), slots, len(chosen)) == 0
    return kept | is_empty[slots]


def best_of_n(rewards: Tensor, prompts: Tensor) -> Tensor:
    """Whether a response is the best of its prompt, the first of equals, bool [R].

    >>> best_of_n(torch.tensor([1.0, 3.0, 3.0, 0.5]), torch.tensor([0, 0, 0, 1])).tolist()
    [False, True, False, True]
    """
    best = torch.zeros_like(rewards, dtype=torch.bool)
    for prompt in set(prompts.tolist()):
        mine = (prompts == prompt).nonzero().flatten()
        best[mine[rewards[mine].argmax()]] = True
    return best


def best_of_n_mask(
    scores: Tensor,
    slots: Tensor,
    rewards: Tensor,
    prompts: Tensor,
    *,
    baseline: float | None = None,
    threshold: float = 0.3,
) -> Tensor:
    """Tokens that best-of-n fine-tuning imitates: good messages of each prompt's best response, bool [N].

    Equilibrate RLHF, 2025 (ARJ); for `masked_sft`. A best response without a good message counts whole.

    Args:
        scores: [N] score of each token, higher is better.
        slots: [N] response of each token.
        rewards: [R] reward of each response.
        prompts: [R] prompt of each response.
        baseline: As in `message_signs`; a mean is taken over the tokens of all responses.
        threshold: As in `message_signs`.
    """
    everyone = torch.ones_like(rewards, dtype=torch.bool)
    kept = message_mask(scores, slots, everyone, baseline=baseline, threshold=threshold)
    return kept & best_of_n(rewards, prompts)[slots]


def _starts(slots: Tensor) -> Tensor:
    """True at the first token of each response, [N]."""
    return torch.cat([torch.ones_like(slots[:1], dtype=torch.bool), slots[1:] != slots[:-1]])


MESSAGE_WISE_LOSSES: dict[str, Callable[..., Tensor]] = {"adpo": adpo}
