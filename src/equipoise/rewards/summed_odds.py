"""Linear heads on answers that come in parts: the odds of an answer are the sum of its parts' odds.

One sentence can make a proposition true of a whole answer, and labels do not say which. Where sentences are
the parts, the head learns that too: the log-odds of an answer are log(sum(exp(z))) over the log-odds z of its
sentences, so that the gradient goes to those that speak for it. Where each answer is one part, this is
logistic regression. (Multiple-instance learning; Ray and Craven 2005 compare such heads.) More sentences are
more odds, so what a head says grows with the logarithm of their number.

Shapes: N answers, S parts of them, D columns, P heads.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit
from threadpoolctl import threadpool_limits

from equipoise.stats import Floats, Indices

Bools = NDArray[np.bool_]

_STEPS = 1000
"""Of the fit, at most; some 50 are usual."""


class Columns(NamedTuple):
    """R rows of D columns, of which the last are mostly zero."""

    dense: Floats
    """[R, the first of D]"""
    sparse: csr_array
    """[R, the rest of D]"""

    def __matmul__(self, weight: Floats) -> Floats:
        """Multiply by weights: [D] or [D, P] in, [R] or [R, P] out."""
        width = self.dense.shape[1]
        found: Floats = self.dense @ weight[:width] + self.sparse @ weight[width:]
        return found

    def weighted_sum(self, weights: Floats) -> Floats:
        """Sum the rows by weights of theirs: [R] in, [D] out."""
        return np.concatenate([weights @ self.dense, weights @ self.sparse])

    @property
    def width(self) -> int:
        """Number of columns D."""
        return int(self.dense.shape[1] + self.sparse.shape[1])

    @property
    def words(self) -> "Columns":
        """The sparse columns alone."""
        return Columns(self.dense[:, :0], self.sparse)

    def some(self, rows: Indices) -> "Columns":
        """Return the rows at these places."""
        return Columns(self.dense[rows], self.sparse[rows])


class Parts(NamedTuple):
    """What heads read of N answers."""

    rows: Columns
    """[S, D]"""
    of: Indices
    """[S] which answer each is a part of: 0 to N - 1, ascending, and none left out."""

    def some(self, answers: Sequence[int] | Indices) -> "Parts":
        """Return the parts of the answers at these places, in this order."""
        rows, of = parts_of(self.of, answers)
        return Parts(self.rows.some(rows), of)

    @property
    def first(self) -> Indices:
        """The row of each answer's first part, [N]."""
        return np.flatnonzero(np.diff(self.of, prepend=-1))


def parts_of(of: Indices, answers: Sequence[int] | Indices) -> tuple[Indices, Indices]:
    """Return where the parts of some answers are, and which of these answers each is of.

    Both have as many places as these answers have parts.

    Args:
        of: As in `Parts`.
        answers: Indices of answers.

    >>> [found.tolist() for found in parts_of(np.array([0, 1, 1, 2]), [2, 1])]
    [[3, 1, 2], [0, 1, 1]]
    """
    first, count = np.flatnonzero(np.diff(of, prepend=-1)), np.bincount(of)
    rows = [np.arange(first[i], first[i] + count[i]) for i in answers]
    return np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(found) for found in rows])


def sum_odds(logits: Floats, first: Indices) -> Floats:
    """Sum the odds of parts within each answer, as log-odds: [S] or [S, P] in, [N] or [N, P] out.

    Args:
        logits: Log-odds of the parts.
        first: Where each answer begins.

    >>> np.exp(sum_odds(np.log([1.0, 2.0, 5.0]), np.array([0, 2]))).round(9).tolist()
    [3.0, 5.0]
    """
    found: Floats = np.logaddexp.reduceat(logits, first, axis=0)
    return found


class OddsHeads(NamedTuple):
    """Heads that read the same parts."""

    weight: Floats
    """[P, D]"""
    bias: Floats
    """[P]"""

    def __call__(self, parts: Parts) -> Floats:
        """Log-odds of N answers, [N, P]."""
        found: Floats = sum_odds(parts.rows @ self.weight.T, parts.first) + self.bias
        return found


def fit_odds(parts: Parts, truth: Floats, strength: float) -> OddsHeads:
    """Fit heads by the log loss, with yes and no of each counting alike.

    The fit begins at 0; where answers have several parts the loss is not convex, and another beginning could
    end elsewhere.

    Args:
        parts: Of the answers.
        truth: [N, P] 1 yes, 0 no, NaN where the answer does not count. Where all that count are one of the
            two, weights and bias are 0.
        strength: Inverse weight of the squared weights, as `C` of scikit-learn's `LogisticRegression`.
    """
    # products this small lose by being shared out: eightfold on two cores
    with threadpool_limits(1, user_api="blas"):
        heads = np.array([_fit_one(parts, column, strength) for column in truth.T])
    return OddsHeads(heads[:, :-1], heads[:, -1])


def _fit_one(parts: Parts, truth: Floats, strength: float) -> Floats:
    """Weights and bias of one head, [D + 1]."""
    start = np.zeros(parts.rows.width + 1)
    counts = np.flatnonzero(~np.isnan(truth))
    yes = truth[counts] == 1
    if yes.all() or not yes.any():
        return start
    rows, of = parts.some(counts)
    first = np.flatnonzero(np.diff(of, prepend=-1))
    sign = np.where(yes, -1.0, 1.0)
    alike = np.where(yes, 0.5 / yes.mean(), 0.5 / (~yes).mean())

    def loss(at: Floats) -> tuple[float, Floats]:
        weight, bias = at[:-1], at[-1]
        logits = rows @ weight
        summed = sum_odds(logits, first)
        wrong = sign * (summed + bias)
        slope = alike * sign * expit(wrong)
        down = rows.weighted_sum(slope[of] * np.exp(logits - summed[of]))
        value = alike @ np.logaddexp(0, wrong) + weight @ weight / (2 * strength)
        return float(value), np.append(down + weight / strength, slope.sum())

    found: Floats = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}).x
    return found
