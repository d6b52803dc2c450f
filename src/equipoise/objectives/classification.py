"""Losses of the guard: categories, ordinal severity, refusal, and look-alikes. Every label may be missing.

What is known of a row comes as weights of its outcomes: 1 and 0 for a plain label, shares of annotators
for a soft one, times whatever the row or the outcome counts for. Where all are 0 nothing is known: no
loss and no gradient; a missing label is never read as "harmless".

Shapes: B batch, C categories or classes, K severity thresholds (levels above 0).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_bce(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean over rated categories of w (-t log s(x) - (1 - t) log s(-x)), [B]. A row without any gives 0.

    Args:
        logits: [B, C] log-odds of each category.
        targets: [B, C] 0..1; shares of annotators are fine. Not looked at where the weight is 0.
        weights: [B, C] above 0 where the category was rated, else 0; 1 for a plain label.
    """
    rated = weights > 0
    targets = torch.where(rated, targets, 0.0).to(logits.dtype)  # a NaN target would poison the gradient
    losses = F.binary_cross_entropy_with_logits(torch.where(rated, logits, 0.0), targets, reduction="none")
    return (losses * weights).sum(-1) / rated.sum(-1).clamp(min=1)


def severity_probabilities(logits: Tensor) -> Tensor:
    """P(severity = 0), ..., P(severity = K), [B, K] -> [B, K + 1]; each row sums to 1.

    Logit j is the log-odds of P(severity > j | severity >= j), so P(severity >= k) is a product that
    can only fall with k, and s(logit 0) = P(severity >= 1) = P(unsafe). CORN, Shi et al. 2021.
    """
    return _severity_log_probabilities(logits).exp()


def _severity_log_probabilities(logits: Tensor) -> Tensor:
    reached = F.pad(F.logsigmoid(logits).cumsum(-1), (1, 0))  # log P(severity >= k), [B, K + 1]
    return reached + F.pad(F.logsigmoid(-logits), (0, 1))  # the highest level has nothing above it


def ordinal_nll(logits: Tensor, passed: Tensor, failed: Tensor) -> Tensor:
    """-sum_j p_j log s(x_j) + f_j log s(-x_j), [B], over the thresholds of severity.

    A row of level y passed the thresholds below y and failed threshold y, if there is one; the sum is
    then -log P(severity = y). A row that is known to be unsafe only passed the first threshold. Shi et
    al. 2021 (CORN), summed over the thresholds of a row, where the paper averages each threshold over
    its rows: so it is the exact likelihood.

    Args:
        logits: [B, K] as in `severity_probabilities`.
        passed: [B, K] weight of "severity is above j"; 0 where the threshold was not tested.
        failed: [B, K] weight of "severity is j".
    """
    up = torch.where(passed > 0, -F.logsigmoid(logits) * passed, 0.0)
    down = torch.where(failed > 0, -F.logsigmoid(-logits) * failed, 0.0)
    return (up + down).sum(-1)


def soft_cross_entropy(logits: Tensor, shares: Tensor) -> Tensor:
    """-sum_c w_c log softmax(x)_c, [B]; 0 where no class has any weight.

    Args:
        logits: [B, C] of the classes.
        shares: [B, C] weight of each class: 1 for a plain label, shares of annotators for a soft one.
    """
    known = (shares > 0).any(-1, keepdim=True)
    losses = torch.log_softmax(torch.where(known, logits, 0.0), dim=-1) * shares
    return -losses.sum(-1)


def within_group_ranking(logit: Tensor, unsafe: Tensor, group: Tensor, *, margin: float = 0.0) -> Tensor:
    """Half the mean over look-alikes j of softplus(margin - (x_unsafe - x_safe)), [B].

    The look-alikes of a row are those of its group with the other label: a safe and an unsafe answer to
    one prompt, or a harmless prompt and its harmful twin. Each pair is met from both sides, so a group
    with one of each gives the loss of its pair once: -log s(x_unsafe - x_safe - margin), as a ranker
    has it (Burges et al. 2005, RankNet). Whatever all rows of a group share (the topic) cannot lower it.

    Args:
        logit: [B] log-odds of P(unsafe).
        unsafe: [B] 1 unsafe, 0 safe, -1 not known.
        group: [B] number of the group, -1 for none.
        margin: Log-odds by which an unsafe row should lie above a safe one.
    """
    known = (group >= 0) & (unsafe >= 0)
    partners = (group[:, None] == group) & (unsafe[:, None] != unsafe) & known[:, None] & known  # [B, B]
    gap = torch.where(unsafe[:, None] == 1, logit[:, None] - logit, logit - logit[:, None])
    losses = torch.where(partners, F.softplus(margin - torch.where(partners, gap, 0.0)), 0.0)
    return losses.sum(-1) / partners.sum(-1).clamp(min=1) / 2


CLASSIFICATION_LOSSES: dict[str, Callable[..., Tensor]] = {
    "masked_bce": masked_bce,
    "ordinal_nll": ordinal_nll,
    "soft_cross_entropy": soft_cross_entropy,
    "within_group_ranking": within_group_ranking,
}
