"""Which categories of harm go together, from counts of label sets.

Shapes: P distinct label sets, C categories. A category that nobody looked at is neither present nor
absent: a pair of categories is compared over the responses in which both were rated.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Floats = NDArray[np.float64]

Matrix = list[list[float | None]]
"""One row and one column per category; None where a value is not defined."""


class LabelSet(NamedTuple):
    """The categories of a response, and which were looked at; None = all."""

    flagged: frozenset[str]
    rated: frozenset[str] | None = None


class Correlation(BaseModel):
    """How the categories of unsafe responses go together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    """Unsafe responses with a category label."""
    names: list[str]
    """Of the rows and columns: the categories that occur, in the order of the taxonomy."""
    phi: Matrix
    """Pearson's correlation of the 0/1 columns; None where a column does not vary."""
    conditional: Matrix
    """[a][b] is P(b | a), the share of the responses with a that have b as well."""
    solo: dict[str, float | None]
    """Category -> share of its responses that have no other category."""
    order: list[str]
    """The names so that alike ones are neighbours."""

    def strongest(self, count: int) -> list[tuple[str, str, float]]:
        """Return the pairs of categories with the highest phi."""
        pairs = [
            (self.names[a], self.names[b], value)
            for a, row in enumerate(self.phi)
            for b, value in enumerate(row[:a])
            if value is not None
        ]
        return sorted(pairs, key=lambda pair: -pair[2])[:count]


def correlate(counts: Mapping[LabelSet, int], names: Sequence[str]) -> Correlation:
    """Correlate categories over responses that are given as counts of their label sets.

    Args:
        counts: Label set -> how many responses have it; one without any category counts as well.
        names: Categories in the order of the taxonomy; one that no response has is left out.
    """
    flagged = {name for labels in counts for name in labels.flagged}
    shown = [name for name in names if name in flagged]
    weights = np.array(list(counts.values()), dtype=np.float64)  # [P]
    has = np.array([[name in labels.flagged for name in shown] for labels in counts], dtype=np.float64)
    rated = np.array(
        [[labels.rated is None or name in labels.rated for name in shown] for labels in counts],
        dtype=np.float64,
    )
    has, rated = has.reshape(len(counts), -1), np.maximum(rated.reshape(len(counts), -1), has)  # [P, C]
    weighted = weights[:, None] * has
    n, both = rated.T @ (weights[:, None] * rated), has.T @ weighted  # [C, C]
    own = weighted.T @ rated  # [a, b]: responses with a in which b was rated
    phi = phi_coefficients(n, both, own)
    alone = weights @ (has * (has.sum(axis=1, keepdims=True) == 1))
    solo = _ratio(alone, weights @ has)
    return Correlation(
        n=int(weights.sum()),
        names=shown,
        phi=_listed(phi),
        conditional=_listed(_ratio(both, own)),
        solo=dict(zip(shown, _listed(solo[None])[0], strict=True)),
        order=[shown[i] for i in cluster_order(phi)],
    )


def phi_coefficients(n: Floats, both: Floats, own: Floats) -> Floats:
    """Return the phi coefficient of every two columns, [C, C]; NaN where one does not vary.

    (n n11 - n1. n.1) / sqrt(n1. n0. n.1 n.0), which is Pearson's r of two 0/1 columns. Yule 1912.

    Args:
        n: Rows in which both columns are known.
        both: Rows in which both are 1.
        own: [a, b]: rows in which a is 1 and b is known.
    """
    other = own.T
    spread = own * (n - own) * other * (n - other)
    with np.errstate(invalid="ignore", divide="ignore"):
        phi: Floats = np.where(spread > 0, (n * both - own * other) / np.sqrt(spread), np.nan)
    return phi


def cluster_order(phi: Floats) -> list[int]:
    """Return the columns so that alike ones are neighbours: average linkage over 1 - phi.

    An undefined phi counts as 0. The leaves are turned so that neighbours are as near as the tree allows
    (Bar-Joseph et al. 2001).
    """
    if len(phi) < 3:
        return list(range(len(phi)))
    from scipy.cluster.hierarchy import leaves_list, linkage  # loads slowly
    from scipy.spatial.distance import squareform

    distance = 1 - np.nan_to_num(phi)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return [int(i) for i in leaves_list(tree)]


def _ratio(part: Floats, whole: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: Floats = np.where(whole > 0, part / whole, np.nan)
    return ratio


def _listed(matrix: Floats) -> Matrix:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]
