"""What a row, or an outcome, counts for in the guard's training: even classes, and doubt of labels.

Shapes: B rows, F features.
"""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from equipoise.data.splits import normalise_prompt
from equipoise.models.windows import TextPair
from equipoise.training.guard_rows import GuardTargets

_FOLDS = 5


def balanced(targets: GuardTargets, power: float) -> GuardTargets:
    """Weigh the outcomes of each threshold, category and refusal by (n / (k n_outcome))^power.

    n rows were labelled, n_outcome of them so, k outcomes occur. Power 1 makes the outcomes count alike
    in sum, 0 leaves them as they are; what occurs alone keeps its weight.
    """
    passed, failed = _even(torch.stack([targets.passed.sum(0), targets.failed.sum(0)]), power)
    there = targets.categories * targets.category_weight
    with_it, without = _even(torch.stack([there.sum(0), (targets.category_weight - there).sum(0)]), power)
    weight = targets.categories * with_it + (1 - targets.categories) * without
    return targets._replace(
        passed=targets.passed * passed,
        failed=targets.failed * failed,
        category_weight=targets.category_weight * weight,
        refusal=targets.refusal * _even(targets.refusal.sum(0), power),
    )


def _even(counts: Tensor, power: float) -> Tensor:
    """Weights of outcomes from their counts, [k, ...] both."""
    occurs = counts > 0
    even = counts.sum(0) / occurs.sum(0).clamp(min=1) / counts.clamp(min=1e-9)
    return torch.where(occurs, even**power, 1.0)


def doubted(targets: GuardTargets, rows: Tensor, weight: float) -> GuardTargets:
    """Let the harm labels of some rows [B, bool] count `weight` times as much; refusals stay."""
    scale = torch.where(rows, weight, 1.0)[:, None]
    return targets._replace(
        passed=targets.passed * scale,
        failed=targets.failed * scale,
        category_weight=targets.category_weight * scale,
    )


def likely_errors(features: Tensor, unsafe: Tensor, texts: Sequence[TextPair], *, seed: int = 0) -> Tensor:
    """Rows whose label safe or unsafe is likely wrong, [B, bool]; prompts and responses apart.

    A logistic regression on the features says P(unsafe) of each row, learned from the rows of other
    prompts only. A row is doubted where the other label is as probable as it is on average among the
    rows that have it, and more probable than the row's own. Northcutt et al. 2021 (confident learning).
    Where fewer than five prompts have either label nothing is doubted.

    Args:
        features: [B, F] of each row.
        unsafe: [B] 1 unsafe, 0 safe, -1 not known.
        texts: Whose prompts must not be on both sides of a fold.
        seed: Of the folds.
    """
    found = torch.zeros(len(texts), dtype=torch.bool)
    prompts = np.array([normalise_prompt(text.prompt) for text in texts])
    is_prompt = torch.tensor([text.response is None for text in texts])
    for kind in (is_prompt, ~is_prompt):
        rows = (kind & (unsafe >= 0)).nonzero().squeeze(-1)
        label, groups = unsafe[rows].numpy(), prompts[rows.numpy()]
        if min(len(set(groups[label == value])) for value in (0, 1)) < _FOLDS:
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=1000))
        folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
        both = cross_val_predict(
            model, features[rows].double().numpy(), label, groups=groups, cv=folds, method="predict_proba"
        )
        usual = np.array([both[label == value, value].mean() for value in (0, 1)])
        here = np.arange(len(label))
        own, other = both[here, label], both[here, 1 - label]
        found[rows] = torch.from_numpy((other >= usual[1 - label]) & (other > own))
    return found
