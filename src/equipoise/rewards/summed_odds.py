"""Linear heads on answers that come in parts: the odds of an answer are the sum of its parts' odds.

One sentence can make a proposition true of a whole answer, and labels do not say which. Where sentences are
the parts, the head learns that too: the log-odds of an answer are log(sum(exp(z))) over the log-odds z of its
sentences, so that the gradient goes to those that speak for it. Where each answer is one part, this is
logistic regression. (Multiple-instance learning; Ray and Craven 2005 compare such heads.)

Shapes: N answers, S parts of them, D columns, the first F of them dense, P heads.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Places = NDArray[np.intp]

_STEPS = 1000


class Columns(NamedTuple):
    """Rows of D columns, of which the last are mostly zero."""

    dense: Floats
    """[S, F]"""
    sparse: csr_array
    """[S, D - F]"""

    def __matmul__(self, weight: Floats) -> Floats:
        """Multiply by weights: [D] or [D, P] in, [S] or [S, P] out."""
        width = self.dense.shape[1]
        found: Floats = self.dense @ weight[:width] + self.sparse @ weight[width:]
        return found

    def weighed(self, rows: Floats) -> Floats:
        """Sum the rows by weights [S] of theirs, [D]."""
        return np.concatenate([rows @ self.dense, rows @ self.sparse])

    @property
    def width(self) -> int:
        """Number of columns D."""
        return int(self.dense.shape[1] + self.sparse.shape[1])

    @property
    def words(self) -> "Columns":
        """The sparse columns alone."""
        return Columns(self.dense[:, :0], self.sparse)

    def some(self, rows: Places) -> "Columns":
        """Return the rows at these places."""
        return Columns(self.dense[rows], self.sparse[rows])


class Parts(NamedTuple):
    """What heads read of N answers."""

    rows: Columns
    """[S, D]"""
    of: Places
    """[S] which answer each is a part of: 0 to N - 1, ascending, and none left out."""

    def some(self, answers: Sequence[int] | Places) -> "Parts":
        """Return the parts of the answers at these places, in this order."""
        rows, of = parts_of(self.of, answers)
        return Parts(self.rows.some(rows), of)

    @property
    def first(self) -> Places:
        """The row of each answer's first part, [N]."""
        return np.flatnonzero(np.diff(self.of, prepend=-1))


def parts_of(of: Places, answers: Sequence[int] | Places) -> tuple[Places, Places]:
    """Return where the parts of some answers are, and which of these answers each is of, both [S].

    Args:
        of: As in `Parts`.
        answers: Places of answers.

    >>> [found.tolist() for found in parts_of(np.array([0, 1, 1, 2]), [2, 1])]
    [[3, 1, 2], [0, 1, 1]]
    """
    first, count = np.flatnonzero(np.diff(of, prepend=-1)), np.bincount(of)
    rows = [np.arange(first[i], first[i] + count[i]) for i in answers]
    return np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(found) for found in rows])


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

    Args:
        parts: Of the answers.
        truth: [N, P] 1 yes, 0 no, NaN where the answer does not count. A head of which all that count are one
            of the two is 0.
        strength: Inverse weight of the squared weights, as `C` of scikit-learn's `LogisticRegression`.
    """
    heads = np.array([_fit_one(parts, column, strength) for column in truth.T])
    return OddsHeads(heads[:, :-1], heads[:, -1])


def _fit_one(parts: Parts, truth: Floats, strength: float) -> Floats:
    """Weights and bias of one head, [D + 1]."""
    rows, of, first = parts.rows, parts.of, parts.first
    yes, no = truth == 1, truth == 0
    start = np.zeros(rows.width + 1)
    if not (yes.any() and no.any()):
        return start
    sign, half = np.where(yes, -1.0, 1.0), (yes | no).sum() / 2
    alike = yes * (half / yes.sum()) + no * (half / no.sum())

    def loss(at: Floats) -> tuple[float, Floats]:
        weight, bias = at[:-1], at[-1]
        logits = rows @ weight
        summed = sum_odds(logits, first)
        wrong = sign * (summed + bias)
        slope = alike * sign * expit(wrong)
        down = rows.weighed(slope[of] * np.exp(logits - summed[of]))
        value = alike @ np.logaddexp(0, wrong) + weight @ weight / (2 * strength)
        return float(value), np.append(down + weight / strength, slope.sum())

    found: Floats = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}).x
    return found
