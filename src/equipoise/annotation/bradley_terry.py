"""Utilities behind preferences: how good each answer is, from who was preferred to whom.

Shapes: M comparisons, N things that are compared.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, log_expit, logsumexp

from equipoise.annotation.coefficients import Floats, Integers
from equipoise.errors import DataError

Ties = Literal["davidson", "half"]


class Comparisons(NamedTuple):
    """Which of two was preferred, all [M]."""

    first: Integers
    second: Integers
    result: Floats
    """1 the first, 0 the second, 0.5 a tie."""


class Utilities(NamedTuple):
    """The fitted utilities; those of each connected group have mean 0."""

    values: Floats
    """[N], in nats: the log odds of being preferred are their difference."""
    tie: float | None
    """Davidson's nu, 0 where there are no ties; None where ties count half."""
    groups: Integers
    """Number of the connected group of each thing, [N]; utilities of two groups cannot be compared."""


def bradley_terry(
    comparisons: Comparisons, size: int, *, ties: Ties = "davidson", prior_sd: float | None = 3.0
) -> Utilities:
    """Fit utilities u by the highest posterior, with a normal prior of deviation `prior_sd` on each.

    P(i over j) = e^u_i / (e^u_i + e^u_j); a tie counts half to each, or with Davidson has a weight of
    its own, nu e^((u_i + u_j) / 2). Bradley and Terry 1952; Davidson 1970, eq. 2.1.

    Raises:
        DataError: without a prior, where some things were never preferred, directly or over others, to
            the rest: then their utilities are infinite (Ford 1957).
    """
    groups = _groups(comparisons, size, "weak")
    if prior_sd is None:
        strong = len(set(_groups(comparisons, size, "strong")))
        if strong != 1:
            raise DataError(
                f"preferences: the wins do not lead from each of {size} to every other, got {strong} parts;"
                " expected one, or a prior"
            )
    tied = ties == "davidson" and bool((comparisons.result == 0.5).any())
    loss = _davidson if tied else _half
    weight = 0.0 if prior_sd is None else prior_sd**-2

    def objective(x: Floats) -> tuple[float, Floats]:
        value, gradient = loss(x, comparisons, size)
        u = x[:size] - (0.0 if weight else x[:size].mean())
        gradient[:size] += weight * u
        return value + 0.5 * weight * float(u @ u), gradient

    start = np.zeros(size + tied)
    options = {"maxiter": 10_000, "maxfun": 100_000, "ftol": 1e-15, "gtol": 1e-9}
    x = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    means = np.bincount(groups, x[:size]) / np.bincount(groups)
    tie = None if ties == "half" else float(np.exp(x[size])) if tied else 0.0
    return Utilities(x[:size] - means[groups], tie, groups)


def in_cycles(comparisons: Comparisons, size: int) -> list[bool]:
    """Whether each strict preference is part of a cycle such as a over b, b over c, c over or equal a."""
    part = _groups(comparisons, size, "strong")
    pairs: Sequence[tuple[int, int, float]] = list(zip(*comparisons, strict=True))
    return [bool(result != 0.5 and part[a] == part[b]) for a, b, result in pairs]


def _half(x: Floats, data: Comparisons, size: int) -> tuple[float, Floats]:
    gap = x[data.first] - x[data.second]
    loss = -(data.result * log_expit(gap) + (1 - data.result) * log_expit(-gap)).sum()
    pull = expit(gap) - data.result
    gradient = np.bincount(data.first, pull, size) - np.bincount(data.second, pull, size)
    return float(loss), np.asarray(gradient, dtype=np.float64)


def _davidson(x: Floats, data: Comparisons, size: int) -> tuple[float, Floats]:
    first, second = x[data.first], x[data.second]
    logits = np.stack([first, second, x[size] + (first + second) / 2])  # [3, M]
    logs = logits - logsumexp(logits, axis=0)
    happened = np.stack([data.result == 1, data.result == 0, data.result == 0.5])
    pull = np.exp(logs) - happened
    gradient = np.bincount(data.first, pull[0] + pull[2] / 2, size)
    gradient += np.bincount(data.second, pull[1] + pull[2] / 2, size)
    return float(-logs[happened].sum()), np.append(gradient, pull[2].sum())


def _groups(data: Comparisons, size: int, connection: Literal["weak", "strong"]) -> Integers:
    """Number the parts of the graph of wins; a tie leads both ways."""
    wins, losses = data.result >= 0.5, data.result <= 0.5
    start = np.concatenate([data.first[wins], data.second[losses]])
    end = np.concatenate([data.second[wins], data.first[losses]])
    graph = csr_array((np.ones(len(start)), (start, end)), shape=(size, size))
    _, part = connected_components(graph, directed=True, connection=connection)
    return np.asarray(part, dtype=np.intp)
