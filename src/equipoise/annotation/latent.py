"""The true answers behind those of raters who err, each in their own way, by expectation maximisation.

One loop serves all models: the items' answers are weighed by how each rater answers when the truth is
k (the rater's confusion matrix), and a `RaterModel` says what form the confusion matrices have. What
is climbed is the log posterior, so it never falls. Items without an answer stay missing (NaN).

Shapes: M answers, N items, R raters, V values (K of the true ones).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from equipoise.annotation.coefficients import Floats, Integers
from equipoise.annotation.raters import Votes

FLOOR = 1e-12
"""Least probability of an answer, so that its logarithm is finite."""


class Raters(NamedTuple):
    """What a model says of the raters."""

    confusion: Floats
    """P(answer v | truth k) of each rater, [R, K, V]."""
    log_prior: float
    """Logarithm of the prior of the parameters, up to a constant."""
    parameters: dict[str, Floats]
    """What the confusion matrices are made of, by name; the first axis is the rater."""


RaterModel = Callable[[Floats, Raters | None], Raters]
"""Expected counts [R, K, V] of answer v where the truth is k, and the raters before -> better ones."""


class Latent(NamedTuple):
    """The estimated truth."""

    posterior: Floats
    """P(truth = k) of each item, [N, V]; NaN for an item without an answer."""
    prior: Floats
    """Share of each true value, [V]."""
    raters: Raters
    trace: tuple[float, ...]
    """Log posterior after each round."""
    converged: bool


def fit(
    votes: Votes,
    model: RaterModel,
    *,
    prior_count: float = 1.0,
    uniform_prior: bool = False,
    rounds: int = 500,
    tolerance: float = 1e-8,
) -> Latent:
    """Estimate truth, shares and raters from answers, beginning at the share of votes.

    Args:
        votes: The answers to one question.
        model: The form of the raters' confusion matrices.
        prior_count: Items of each value that are added to the shares.
        uniform_prior: Whether all values are held equally frequent.
        rounds: The most rounds.
        tolerance: It has converged when the log posterior gains less than this times its size.
    """
    pattern, votes = _patterns(votes)  # items with the same answers are one, so many as they are
    weight = np.bincount(pattern, minlength=len(votes.items)).astype(np.float64)
    n, r, v = len(votes.items), len(votes.raters), len(votes.values)
    m = np.arange(len(votes.item))
    ones = np.ones(len(m))
    to_items = csr_array((ones, (votes.item, m)), shape=(n, len(m)))
    to_cells = csr_array((weight[votes.item], (votes.rater * v + votes.value, m)), shape=(r * v, len(m)))
    answered = to_items.sum(axis=1) > 0
    posterior = shares(votes)
    posterior[~answered] = 0.0
    raters, prior = None, np.full(v, 1 / v)
    trace: list[float] = []
    converged = False
    while len(trace) < rounds and not converged:
        counts = (to_cells @ posterior[votes.item]).reshape(r, v, v).transpose(0, 2, 1)  # [R, K, V]
        raters = model(counts, raters)
        if not uniform_prior:
            totals = weight @ posterior + prior_count
            prior = totals / totals.sum()
        log_prior = np.log(np.maximum(prior, FLOOR))
        logs = np.log(np.maximum(raters.confusion, FLOOR))
        joint = log_prior + to_items @ logs[votes.rater, :, votes.value]  # [N, K]
        top = joint.max(axis=1, keepdims=True)
        evidence = top[:, 0] + np.log(np.exp(joint - top).sum(axis=1))
        posterior = np.exp(joint - evidence[:, None])
        posterior[~answered] = 0.0
        shares_prior = 0.0 if uniform_prior else prior_count * float(log_prior.sum())
        trace.append(float((weight * evidence)[answered].sum()) + raters.log_prior + shares_prior)
        converged = len(trace) > 1 and trace[-1] - trace[-2] < tolerance * max(1.0, abs(trace[-1]))
    posterior[~answered] = np.nan
    assert raters is not None
    return Latent(posterior[pattern], prior, raters, tuple(trace), converged)


def shares(votes: Votes) -> Floats:
    """Return each item's share of votes for each value, [N, V]; NaN for an item without an answer."""
    size = len(votes.values)
    cells = np.bincount(votes.item * size + votes.value, minlength=len(votes.items) * size)
    table = cells.reshape(len(votes.items), size).astype(np.float64)
    total = table.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(table, total, out=np.full_like(table, np.nan), where=total > 0))


def decide(posterior: Floats) -> list[int | None]:
    """Return the most probable value of each item, the first of equal ones; None where it is missing."""
    return [None if np.isnan(row).any() else int(row.argmax()) for row in posterior]


def _patterns(votes: Votes) -> tuple[Integers, Votes]:
    """Return the number of each item's pattern of answers, [N], and the answers of one item per pattern."""
    cells = votes.rater * len(votes.values) + votes.value
    order = np.lexsort((cells, votes.item))
    ends = np.cumsum(np.bincount(votes.item, minlength=len(votes.items))).tolist()
    seen: dict[bytes, int] = {}
    keys = (cells[order[start:end]].tobytes() for start, end in zip([0, *ends], ends, strict=False))
    pattern = np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.intp)
    _, chosen = np.unique(pattern, return_index=True)
    is_kept = np.isin(votes.item, chosen)
    kept = Votes(
        pattern[votes.item[is_kept]],
        votes.rater[is_kept],
        votes.value[is_kept],
        tuple(votes.items[i] for i in chosen),
        votes.raters,
        votes.values,
    )
    return pattern, kept
