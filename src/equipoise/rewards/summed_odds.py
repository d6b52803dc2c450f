"""Linear heads on answers that come in parts: the odds of an answer are the sum of its parts' odds.

One sentence can make a proposition true of a whole answer, and labels do not say which. Where sentences are
the parts, the head learns that too: the log-odds of an answer are log(sum(exp(z))) over the log-odds z of its
sentences, so that the gradient goes to those that speak for it. Where each answer is one part, this is
logistic regression. (Multiple-instance learning; Ray and Craven 2005 compare such heads.)

Shapes: N answers, S parts of them, D columns, P heads.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Places = NDArray[np.intp]

_STEPS = 1000


class Parts(NamedTuple):
    """What heads read of N answers."""

    rows: Floats
    """[S, D]"""
    of: Places
    """[S] which answer each is a part of: 0 to N - 1, ascending, and none left out."""

    def some(self, answers: Sequence[int] | Places) -> "Parts":
        """Return the parts of the answers at these places, in this order."""
        first, count = self.first, np.bincount(self.of)
        rows = [np.arange(first[i], first[i] + count[i]) for i in answers]
        of = np.repeat(np.arange(len(rows)), [len(found) for found in rows])
        return Parts(self.rows[np.concatenate(rows)], of)

    @property
    def first(self) -> Places:
        """The row of each answer's first part, [N]."""
        return np.flatnonzero(np.diff(self.of, prepend=-1))


def whole(rows: Floats) -> Parts:
    """Return answers that are one part each, [N, D]."""
    return Parts(rows, np.arange(len(rows)))


def sum_odds(logits: Floats, first: Places) -> Floats:
    """Sum the odds of parts within each answer, as log-odds: [S] or [S, P] in, [N] or [N, P] out.

    Args:
        logits: Log-odds of the parts.
        first: Where each answer begins.

    >>> np.exp(sum_odds(np.log([1.0, 2.0, 5.0]), np.array([0, 2]))).round(9).tolist()
    [3.0, 5.0]
    """
    found: Floats = np.logaddexp.reduceat(logits, first, axis=0)
    return found


class Head(NamedTuple):
    """Weights of one head."""

    weight: Floats
    """[D]"""
    bias: float
    scale: float = 1.0
    """What the log-odds are multiplied by."""

    def __call__(self, parts: Parts) -> Floats:
        """Log-odds of N answers, [N]."""
        found: Floats = self.scale * (sum_odds(parts.rows @ self.weight, parts.first) + self.bias)
        return found


def fit_head(parts: Parts, yes: Bools, strength: float) -> Head:
    """Fit a head to the truth of N answers by the log loss, with yes and no counting alike.

    Args:
        parts: Of the answers.
        yes: [N]
        strength: Inverse weight of the squared weights, as `C` of scikit-learn's `LogisticRegression`.
    """
    rows, first = parts.rows, parts.first
    sign = np.where(yes, -1.0, 1.0)
    alike = np.where(yes, 0.5 / yes.mean(), 0.5 / (~yes).mean())

    def loss(at: Floats) -> tuple[float, Floats]:
        weight, bias = at[:-1], at[-1]
        logits = rows @ weight
        summed = sum_odds(logits, first)
        wrong = sign * (summed + bias)
        slope = alike * sign * expit(wrong)
        to_parts = slope[parts.of] * np.exp(logits - summed[parts.of])
        value = alike @ np.logaddexp(0, wrong) + weight @ weight / (2 * strength)
        return float(value), np.append(to_parts @ rows + weight / strength, slope.sum())

    found = minimize(
        loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}
    )
    return Head(found.x[:-1], float(found.x[-1]))


class Span(NamedTuple):
    """Coordinates of rows within their span, where L2-regularised weights lie: S of them, not D."""

    rows: Floats
    """[S, S or less]"""
    back: Floats
    """[S or less, D] turns weights of coordinates into weights of columns."""


def span(x: Floats) -> Span:
    """Return the coordinates of rows [S, D]."""
    sizes, left = np.linalg.eigh(x @ x.T)
    kept = sizes > 1e-9 * sizes.max()
    if not kept.any():  # nothing but zeros
        return Span(np.zeros((len(x), 1)), np.zeros((1, x.shape[1])))
    return Span(left[:, kept] * np.sqrt(sizes[kept]), (left[:, kept] / np.sqrt(sizes[kept])).T @ x)
