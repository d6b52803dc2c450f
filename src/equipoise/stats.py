"""Estimates with intervals. Rows that share a prompt are not independent, so resampling is by cluster.

Shapes: N rows, G clusters. Intervals are two-sided at 95 % unless said otherwise.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

Z95 = 1.959963984540054


class Estimate(NamedTuple):
    """A number with its interval, and how many rows and clusters it rests on."""

    value: float
    low: float
    high: float
    n: int
    clusters: int

    def __str__(self) -> str:
        """Return for example `0.250 [0.180, 0.330]`."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


NOTHING = Estimate(math.nan, math.nan, math.nan, 0, 0)
"""The estimate from no rows."""


def wilson(successes: int, n: int, *, z: float = Z95) -> Estimate:
    """Proportion with Wilson's score interval. Wilson 1927.

    >>> str(wilson(5, 10))
    '0.500 [0.237, 0.763]'
    """
    if n == 0:
        return NOTHING
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), n, n)


def bootstrap_mean(
    values: ArrayLike, clusters: Sequence[Hashable], *, draws: int = 10_000, seed: int = 0
) -> Estimate:
    """Mean of values [N] with a percentile interval; whole clusters are resampled.

    One cluster says nothing of how clusters differ, so its interval is NaN.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        return NOTHING
    group = _codes(clusters, len(x))
    count = int(group.max()) + 1
    if count == 1:
        return Estimate(float(x.mean()), math.nan, math.nan, len(x), count)
    sums, sizes = np.bincount(group, x), np.bincount(group)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for start in range(0, draws, 500):  # 500 draws at a time bound the memory
        stop = min(start + 500, draws)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=stop - start)  # [draws, G]
        means[start:stop] = (weights @ sums) / (weights @ sizes)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(x.mean()), float(low), float(high), len(x), count)


def bootstrap(
    statistic: Callable[[Indices], float],
    clusters: Sequence[Hashable],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Any statistic of rows, given as a function of row indices, by resampling whole clusters.

    A draw on which the statistic is NaN (one class only, say) is left out; if more than one in
    twenty is, the interval is NaN, because it would describe other data. So is that of one cluster.
    """
    if not len(clusters):
        return NOTHING
    group = _codes(clusters, len(clusters))
    count = int(group.max()) + 1
    value = statistic(np.arange(len(group)))
    if count == 1:
        return Estimate(value, math.nan, math.nan, len(group), count)
    order = np.argsort(group, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(group))[:-1])
    rng = np.random.default_rng(seed)
    values = np.array(
        [statistic(np.concatenate([rows[g] for g in rng.integers(count, size=count)])) for _ in range(draws)]
    )
    kept = values[~np.isnan(values)]
    if len(kept) < 0.95 * draws:
        return Estimate(value, math.nan, math.nan, len(group), count)
    low, high = np.quantile(kept, [0.025, 0.975])
    return Estimate(value, float(low), float(high), len(group), count)


def paired_difference(
    after: ArrayLike, before: ArrayLike, clusters: Sequence[Hashable], *, draws: int = 10_000, seed: int = 0
) -> Estimate:
    """Mean of `after - before`, row by row, with a clustered bootstrap interval."""
    a, b = np.asarray(after, dtype=np.float64), np.asarray(before, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired rows differ in number: {a.shape} and {b.shape}")
    return bootstrap_mean(a - b, clusters, draws=draws, seed=seed)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test from the two discordant counts. McNemar 1947."""
    n, k = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return float(min(1.0, 2 * tail))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order. Holm 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda j: p_values[j])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """False-discovery-rate adjusted p-values, in the given order. Benjamini and Hochberg 1995."""
    n = len(p_values)
    adjusted = [0.0] * n
    running = 1.0
    order = sorted(range(n), key=lambda j: p_values[j])
    for rank in range(n, 0, -1):
        i = order[rank - 1]
        running = min(running, p_values[i] * n / rank)
        adjusted[i] = running
    return adjusted


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Probability that a positive row scores above a negative one, ties count half.

    NaN where there is one class only, or a score that is NaN.

    >>> auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75
    """
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    n_positive, n_negative = int(y.sum()), int((~y).sum())
    if not n_positive or not n_negative or np.isnan(s).any():
        return math.nan
    _, inverse, counts = np.unique(s, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank = last - (counts - 1) / 2  # ranks from 1, ties share their mean
    return float(
        (mean_rank[inverse][y].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
    )


def f1(predicted: ArrayLike, actual: ArrayLike) -> float:
    """Harmonic mean of precision and recall; NaN where nothing is predicted and nothing is there."""
    p, a = np.asarray(predicted, dtype=bool), np.asarray(actual, dtype=bool)
    total = int(p.sum() + a.sum())
    return 2 * int((p & a).sum()) / total if total else math.nan


def _codes(clusters: Sequence[Hashable], n: int) -> Indices:
    """Number clusters from 0 in order of appearance, [N]."""
    if len(clusters) != n:
        raise ValueError(f"{n} values but {len(clusters)} cluster names")
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(name, len(seen)) for name in clusters], dtype=np.intp)
