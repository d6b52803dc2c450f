"""What each proposition is worth: weights fitted to answers whose class is known.

Of two answers to one prompt the one of the better class should score higher by a margin, the reward of each
counted in. Mu et al. 2024 (rule-based rewards), section 4.3.

Shapes: N answers, B pairs, P propositions.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.errors import DataError
from equipoise.rewards.rules import CLASSES, AnswerClass, Grades, RuleSet


class OrderedPairs(NamedTuple):
    """Places of two answers to the same prompt of which the first is of a better class, [B] each."""

    better: NDArray[np.intp]
    worse: NDArray[np.intp]


class RankedAnswers(NamedTuple):
    """Answers whose class is known, N of each; those of one prompt and one response type are compared."""

    grades: Grades
    """[N, P]"""
    rewards: NDArray[np.float64]
    """[N] of the reward that the rules are added to, zeros without one."""
    classes: Sequence[AnswerClass]
    response_types: Sequence[str]
    prompts: Sequence[Hashable]

    def pick(self, places: Sequence[int] | NDArray[np.intp]) -> "RankedAnswers":
        """Return some of the answers."""
        chosen = np.asarray(places, dtype=np.intp)
        lists = ([column[i] for i in chosen] for column in self[2:])
        return RankedAnswers(self.grades[chosen], self.rewards[chosen], *lists)


class Fit(NamedTuple):
    """Fitted weights, and what they were fitted on."""

    weights: dict[str, list[float]]
    """Response type -> weight of each proposition [P]; zeros of a type without a pair."""
    pairs: dict[str, int]
    """Response type -> pairs that it was fitted on."""
    loss: dict[str, float]
    """Response type -> mean hinge loss at the end, NaN without a pair."""


def hinge(better: Tensor, worse: Tensor, *, margin: float = 1.0) -> Tensor:
    """max(0, margin + S_worse - S_better) of each pair, [B]. Mu et al. 2024, eq. 2."""
    return (margin + worse - better).clamp(min=0.0)


def ordered_pairs(ranked: RankedAnswers) -> OrderedPairs:
    """All pairs of answers to one prompt, of one response type, that are of different classes."""
    groups: dict[tuple[Hashable, str], list[int]] = {}
    for place, key in enumerate(zip(ranked.prompts, ranked.response_types, strict=True)):
        groups.setdefault(key, []).append(place)
    rank = [CLASSES.index(name) for name in ranked.classes]
    found = [
        (i, j) for places in groups.values() for i in places for j in places if rank[i] < rank[j]
    ]  # a lower rank is a better class
    both = np.array(found, dtype=np.intp).reshape(-1, 2)
    return OrderedPairs(both[:, 0], both[:, 1])


def fit_weights(
    ranked: RankedAnswers,
    rules: RuleSet,
    *,
    keep_signs: bool = False,
    margin: float = 1.0,
    lr: float = 0.01,
    steps: int = 1000,
    weight_decay: float = 0.05,
) -> Fit:
    """Fit the weights of every response type by the mean hinge loss, by AdamW on all pairs at once.

    Args:
        ranked: The answers.
        rules: Say what each proposition is to each response type.
        keep_signs: What an ideal answer must have is worth 0 or more, what it must not 0 or less, and the
            rest nothing; False, as in the paper, lets every weight be whatever fits.
        margin: By how much the better answer should score higher.
        lr: Of AdamW.
        steps: Of AdamW, from weights of 0.
        weight_decay: Of AdamW.

    Raises:
        DataError: No prompt has answers of different classes.
    """
    pairs = ordered_pairs(ranked)
    if not len(pairs.better):
        raise DataError("completions: no prompt has answers of two classes; expected one at least")
    fit = Fit({}, {}, {})
    types = np.array(ranked.response_types)[pairs.better]
    for key, kind in rules.response_types.items():
        mine = types == key
        gaps = torch.tensor(ranked.grades[pairs.better[mine]] - ranked.grades[pairs.worse[mine]])  # [B, P]
        base = torch.tensor(ranked.rewards[pairs.better[mine]] - ranked.rewards[pairs.worse[mine]])  # [B]
        signs = torch.tensor([kind.sign(name) for name in rules.names]) if keep_signs else None
        weights, loss = _fit(gaps, base, signs, margin=margin, lr=lr, steps=steps, weight_decay=weight_decay)
        fit.weights[key], fit.pairs[key], fit.loss[key] = weights.tolist(), int(mine.sum()), loss
    return fit


def _fit(
    gaps: Tensor,
    base: Tensor,
    signs: Tensor | None,
    *,
    margin: float,
    lr: float,
    steps: int,
    weight_decay: float,
) -> tuple[Tensor, float]:
    weights = torch.zeros(gaps.shape[1], dtype=torch.float64, requires_grad=True)
    if not len(gaps):
        return weights.detach(), float("nan")
    optimiser = torch.optim.AdamW([weights], lr=lr, weight_decay=weight_decay)
    nothing = torch.zeros_like(base)
    for _ in range(steps):
        optimiser.zero_grad()
        hinge(base + gaps @ weights, nothing, margin=margin).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if signs is not None:
            with torch.no_grad():
                weights.copy_(torch.where(signs * weights > 0, weights, 0.0))
    final = weights.detach()
    return final, float(hinge(base + gaps @ final, nothing, margin=margin).mean())


def in_order(ranked: RankedAnswers, totals: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """1 for each ordered pair whose better answer scores higher, 0.5 for a tie, else 0; [B]."""
    scores, pairs = np.asarray(totals, dtype=np.float64), ordered_pairs(ranked)
    gap = scores[pairs.better] - scores[pairs.worse]
    found: NDArray[np.float64] = (np.sign(gap) + 1) / 2
    return found


def totals(ranked: RankedAnswers, weights: dict[str, list[float]]) -> NDArray[np.float64]:
    """Reward and rules together of each answer, [N]."""
    each = np.array([weights[key] for key in ranked.response_types]).reshape(ranked.grades.shape)
    found: NDArray[np.float64] = ranked.rewards + (ranked.grades * each).sum(axis=1)
    return found
