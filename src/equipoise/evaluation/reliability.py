"""How far probabilities are from the shares that they predict: bins of equal mass, errors freed of bias.

The plain expected calibration error (ECE) counts the noise of each bin as an error, so it is above zero for
a perfect model too. Two corrections: the mean absolute gap, corrected as Kumar et al. 2019 do (it may
still be a little high near zero, and is nowhere low by much), and the mean squared gap, whose correction
is exact, so that its interval covers zero where nothing is wrong (Bröcker 2012; Ferro and Fricker 2012).

Rows that share a prompt are one cluster: the noise of a bin is that between clusters, and the bootstrap
resamples clusters. Bins stay as they are while it does.

Shapes: N rows, G clusters, B bins, D draws.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from equipoise.stats import Estimate, Floats, Indices

BINS = 15
LEAST_ROWS = 100
"""With fewer rows nothing is said."""

_BLOCK = 500


class Bin(NamedTuple):
    """Rows of like probability."""

    low: float
    """Lowest probability in it."""
    high: float
    predicted: float
    """Mean probability."""
    observed: float
    """Share of rows where it is so."""
    n: int


class Reliability(NamedTuple):
    """Calibration of one kind of probability."""

    naive: float
    """Mean absolute gap over the rows: the plain ECE."""
    corrected: float
    """The same, corrected for the noise of the bins."""
    upper: float
    """Upper 95 % bound of `corrected`, one-sided."""
    squared: Estimate
    """Mean squared gap, without bias; below zero by chance where there is none."""
    bins: tuple[Bin, ...]


class _Sums(NamedTuple):
    """What the gaps of bins and their noise are made of, for each cluster [G, B] or each draw [D, B]."""

    clusters: Floats
    n: Floats
    """Rows."""
    r: Floats
    """Sum of label - probability over them."""
    nn: Floats
    nr: Floats
    rr: Floats


def reliability(
    probabilities: Floats, happened: NDArray[np.bool_], cluster: Indices, *, draws: int = 2000, seed: int = 0
) -> Reliability | None:
    """Measure the calibration of probabilities [N] against what happened [N]; None with too few rows.

    Args:
        probabilities: What was predicted, 0..1.
        happened: Whether it was so.
        cluster: Number of each row's prompt.
        draws: Resamplings of clusters.
        seed: Of the resampling.
    """
    if len(probabilities) < LEAST_ROWS:
        return None
    place = bin_of(probabilities)
    size = np.bincount(place)
    predicted = np.bincount(place, probabilities) / size
    observed = np.bincount(place, happened) / size
    low, high = np.ones(len(size)), np.zeros(len(size))
    np.minimum.at(low, place, probabilities)
    np.maximum.at(high, place, probabilities)
    sums = _per_cluster(happened - probabilities, place, cluster)
    [(corrected, squared)] = _errors(_Sums(*(part.sum(0, keepdims=True) for part in sums)))
    drawn = np.concatenate([_errors(some) for some in _resampled(sums, draws, seed)])
    spread = drawn - drawn.mean(0)  # a draw has the noise twice, so its centre tells nothing
    below, above = np.quantile(spread[:, 1], [0.025, 0.975])
    n, clusters = len(probabilities), len(sums.n)
    return Reliability(
        naive=float(np.abs(observed - predicted) @ size / n),
        corrected=float(corrected),
        upper=float(corrected - np.quantile(spread[:, 0], 0.05)),
        squared=Estimate(float(squared), float(squared - above), float(squared - below), n, clusters),
        bins=tuple(map(Bin, *(part.tolist() for part in (low, high, predicted, observed, size)))),
    )


def bin_of(probabilities: Floats, bins: int = BINS) -> Indices:
    """Number the bin of each row, [N]: as many rows in each as ties allow, which are never torn apart."""
    edges = np.unique(np.quantile(probabilities, np.arange(1, bins) / bins))
    found: Indices = np.unique(np.searchsorted(edges, probabilities, side="right"), return_inverse=True)[1]
    return found


def _per_cluster(residual: Floats, place: Indices, cluster: Indices) -> _Sums:
    cluster = np.unique(cluster, return_inverse=True)[1]
    shape = (int(cluster.max()) + 1, int(place.max()) + 1)
    cell = cluster * shape[1] + place

    def total(weights: Floats) -> Floats:
        return np.bincount(cell, weights, shape[0] * shape[1]).reshape(shape).astype(np.float64)

    n, r = total(np.ones(len(cell))), total(residual)
    return _Sums((n > 0).astype(float), n, r, n * n, n * r, r * r)


def _resampled(sums: _Sums, draws: int, seed: int) -> Iterator[_Sums]:
    """Yield the sums of draws of whole clusters, some draws at a time to bound the memory."""
    count = len(sums.n)
    rng = np.random.default_rng(seed)
    for start in range(0, draws, _BLOCK):
        size = min(_BLOCK, draws - start)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=size)  # [D, G]
        yield _Sums(*(weights @ part for part in sums))


def _errors(sums: _Sums) -> Floats:
    """Corrected mean absolute gap and corrected mean squared gap of each draw, [D, 2].

    With gap d and its standard error s, |d| is about E|d + s Z| - |d| too high (Z normal), so the first
    counts 2|d| - E|d + s Z|: what Kumar et al. 2019 simulate, here in closed form. The second counts
    d^2 - s^2. The error s is that between clusters; where each row is one and all have the same
    probability, s^2 = y (1 - y) / (n - 1) as in Bröcker 2012.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.where(sums.n > 0, sums.r / sums.n, 0.0)  # a draw may leave a bin empty
        spread = np.maximum(sums.rr - 2 * gap * sums.nr + gap**2 * sums.nn, 0.0)
        many = np.where(sums.clusters > 1, sums.clusters / (sums.clusters - 1), 1.0)
        variance = np.where(sums.n > 0, many * spread / sums.n**2, 0.0)
        error = np.sqrt(variance)
        ratio = np.where(error > 0, gap / error, np.inf)
    folded = np.where(error > 0, 2 * error * norm.pdf(ratio) + gap * (2 * norm.cdf(ratio) - 1), np.abs(gap))
    share = sums.n / sums.n.sum(-1, keepdims=True)
    both = [2 * np.abs(gap) - folded, gap**2 - variance]
    return np.stack([(share * each).sum(-1) for each in both], axis=-1)
