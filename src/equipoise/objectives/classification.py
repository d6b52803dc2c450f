"""Losses of the guard: categories, ordinal severity, refusal. Every label may be missing.

A missing label gives no loss and no gradient; it is never read as "harmless".

Shapes: B batch, C categories or classes, K severity thresholds (levels above 0).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from equipoise.objectives.sequence import masked_mean

UNKNOWN = -1
"""Label of what nobody labelled."""


def masked_bce(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean over rated categories of -t log s(x) - (1 - t) log s(-x), [B]. A row without any gives 0.

    Args:
        logits: [B, C] log-odds of each category.
        targets: [B, C] 0..1; shares of annotators are fine. Not looked at where the mask is 0.
        mask: [B, C] 1 where the category was rated, else 0.
    """
    rated = mask > 0
    targets = torch.where(rated, targets, 0.0).to(logits.dtype)  # a NaN target would poison the gradient
    losses = F.binary_cross_entropy_with_logits(torch.where(rated, logits, 0.0), targets, reduction="none")
    return masked_mean(losses, mask)


def severity_probabilities(logits: Tensor) -> Tensor:
    """P(severity = 0), ..., P(severity = K), [B, K] -> [B, K + 1]; each row sums to 1.

    Logit j is the log-odds of P(severity > j | severity >= j), so P(severity >= k) is a product that
    can only fall with k, and s(logit 0) = P(severity >= 1) = P(unsafe). CORN, Shi et al. 2021.
    """
    return _severity_log_probabilities(logits).exp()


def _severity_log_probabilities(logits: Tensor) -> Tensor:
    reached = F.pad(F.logsigmoid(logits).cumsum(-1), (1, 0))  # log P(severity >= k), [B, K + 1]
    return reached + F.pad(F.logsigmoid(-logits), (0, 1))  # the highest level has nothing above it


def ordinal_nll(logits: Tensor, level: Tensor, unsafe: Tensor) -> Tensor:
    """-log of the probability of what is known of a row's severity, [B].

    With a level y it is -sum_{j<y} log s(x_j) - log s(-x_y), without the last term at the highest level;
    with `unsafe` only it is the loss of the first threshold; with neither it is 0. Shi et al. 2021 (CORN),
    summed over the thresholds of a row, where the paper averages each threshold over its rows: so it
    is the exact likelihood.

    Args:
        logits: [B, K] as in `severity_probabilities`.
        level: [B] severity 0..K, -1 where it is not known.
        unsafe: [B] 1 unsafe, 0 safe, -1 not known. Not looked at where the level is known.
    """
    thresholds = torch.arange(logits.shape[-1], device=logits.device)
    has_level = (level >= 0).unsqueeze(-1)
    tested = has_level & (thresholds <= level.unsqueeze(-1))  # a threshold is asked of who passed the last
    tested |= ~has_level & (unsafe >= 0).unsqueeze(-1) & (thresholds == 0)
    passed = torch.where(has_level, thresholds < level.unsqueeze(-1), (unsafe == 1).unsqueeze(-1))
    losses = -F.logsigmoid(torch.where(passed, logits, -logits))
    return torch.where(tested, losses, 0.0).sum(-1)


def masked_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-log softmax(logits)[target], [B, C] -> [B]; 0 where the target is -1, not known."""
    return F.cross_entropy(logits, target, ignore_index=UNKNOWN, reduction="none")


CLASSIFICATION_LOSSES: dict[str, Callable[..., Tensor]] = {
    "masked_bce": masked_bce,
    "ordinal_nll": ordinal_nll,
    "masked_cross_entropy": masked_cross_entropy,
}
