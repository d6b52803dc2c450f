"""Coefficients of agreement beyond chance, for any number of raters, with answers missing.

Each function takes the answers once and returns a `Statistic`: how often each item is drawn -> the
coefficient. So one pass over the items serves the value and all draws of the bootstrap. A draw in
which chance agreement is complete has no coefficient (NaN).

Shapes: N items, R raters, V values, D draws, G clusters.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from equipoise.stats import NOTHING, Estimate

Floats = NDArray[np.float64]
Integers = NDArray[np.intp]

Statistic = Callable[[Floats], Floats]
"""[D, N] times that each item is drawn -> [D]."""


def identity(size: int) -> Floats:
    """Agreement weights of names: the same or not, [V, V]."""
    return np.eye(size)


def linear(size: int) -> Floats:
    """Agreement weights 1 - |k - l| / (V - 1), [V, V]. Cicchetti and Allison 1971."""
    k = np.arange(size)
    return np.asarray(1 - np.abs(k[:, None] - k) / max(size - 1, 1))


def quadratic(size: int) -> Floats:
    """Agreement weights 1 - (k - l)^2 / (V - 1)^2, [V, V]. Fleiss and Cohen 1973."""
    return 1 - (1 - linear(size)) ** 2


def masi_distance(a: frozenset[str], b: frozenset[str]) -> float:
    """1 - J M of two sets: J shared over all, M 1 equal, 2/3 contained, 1/3 crossing. Passonneau 2006.

    >>> masi_distance(frozenset("ab"), frozenset("a")) == 1 - 1 / 2 * 2 / 3
    True
    """
    if a == b:
        return 0.0
    shared = len(a & b)
    monotony = 2 / 3 if a < b or b < a else 1 / 3
    return 1 - shared / len(a | b) * monotony


def masi(values: Sequence[frozenset[str]]) -> Floats:
    """MASI distances between all sets, [V, V]."""
    names = {name: index for index, name in enumerate(sorted(frozenset().union(*values)))}
    member = np.zeros((len(values), len(names)))
    for row, chosen in zip(member, values, strict=True):
        row[[names[name] for name in chosen]] = 1.0
    shared, size = member @ member.T, member.sum(axis=1)
    least, most = np.minimum.outer(size, size), np.maximum.outer(size, size)
    either = np.add.outer(size, size) - shared
    monotony = np.where(shared == most, 1.0, np.where(shared == least, 2 / 3, 1 / 3))
    return np.asarray(np.where(either > 0, 1 - shared / np.maximum(either, 1) * monotony, 0.0))


def counts_of(codes: Integers, size: int) -> csr_array:
    """Return how many raters gave each value, [N, V], from answers [N, R] with -1 for none."""
    item, rater = np.nonzero(codes >= 0)
    ones = np.ones(len(item))
    return csr_array((ones, (item, codes[item, rater])), shape=(len(codes), size))


def percent(counts: csr_array, weights: Floats) -> Statistic:
    """Share of agreeing pairs of answers to an item, mean over the items with two answers or more."""
    agreed, paired = _agreed(counts, weights)
    return lambda draws: _ratio(draws @ agreed, draws @ paired)


def fleiss(counts: csr_array, weights: Floats) -> Statistic:
    """Fleiss' kappa, weighted and with answers missing. Fleiss 1971; Gwet 2014, section 3.5.

    Chance is that of two answers drawn from the mean share of each value.
    """
    observed, shares = percent(counts, weights), _shares(counts)

    def statistic(draws: Floats) -> Floats:
        p = shares(draws)
        return _beyond_chance(observed(draws), ((p @ weights) * p).sum(1))

    return statistic


def gwet(counts: csr_array, weights: Floats) -> Statistic:
    """Gwet's AC1 (identity weights) or AC2. Gwet 2008; Gwet 2014, section 3.5.

    Chance is sum(weights) / (V (V - 1)) times sum of p (1 - p), so that a rare value does not drive
    the coefficient to zero, as it does kappa.
    """
    observed, shares = percent(counts, weights), _shares(counts)
    size = len(weights)

    def statistic(draws: Floats) -> Floats:
        p = shares(draws)
        scale = weights.sum() / (size * (size - 1)) if size > 1 else math.nan
        return _beyond_chance(observed(draws), scale * (p * (1 - p)).sum(1))

    return statistic


def cohen(codes: Integers, weights: Floats) -> Statistic:
    """Cohen's kappa of two raters, [N, 2], over the items that both answered. Cohen 1960, 1968."""
    both = np.asarray((codes >= 0).all(axis=1))
    size = len(weights)
    agreed = np.where(both, weights[codes[:, 0], codes[:, 1]], 0.0)
    margins = [csr_array(np.eye(size)[codes[:, side]] * both[:, None]) for side in (0, 1)]

    def statistic(draws: Floats) -> Floats:
        n = draws @ both
        first, second = ((side.T @ draws.T).T for side in margins)  # [D, V]
        return _beyond_chance(_ratio(draws @ agreed, n), _ratio(((first @ weights) * second).sum(1), n * n))

    return statistic


def krippendorff(counts: csr_array, distances: Floats | None = None) -> Statistic:
    """Krippendorff's alpha with the given distances [V, V], or for ordered values with none.

    alpha = 1 - D_o / D_e over the answers to items with two or more. Krippendorff 2011, "Computing
    Krippendorff's alpha-reliability". The ordinal distance depends on how often the values are given.
    """
    sizes = np.asarray(counts.sum(axis=1))
    paired = sizes >= 2
    counts = csr_array(counts * paired[:, None])
    scale = np.where(paired, 1 / np.maximum(sizes - 1, 1), 0.0)
    size = counts.shape[1]
    if distances is None:
        dense = counts.toarray()
        pairs = dense[:, :, None] * dense[:, None, :] * scale[:, None, None]  # [N, V, V], diagonal unused
        coincidences = pairs.reshape(-1, size * size)
    else:
        apart = _pairwise(counts, distances) * scale  # [N]

    def statistic(draws: Floats) -> Floats:
        n = (counts.T @ draws.T).T  # [D, V]
        if distances is None:
            metric = _ordinal(n)
            observed = ((draws @ coincidences).reshape(-1, size, size) * metric).sum((1, 2))
            expected = np.einsum("dk,dkl,dl->d", n, metric, n)
        else:
            observed = draws @ apart
            expected = ((n @ distances) * n).sum(1)
        return 1 - _ratio(observed * (n.sum(1) - 1), expected)

    return statistic


def mean_of(values: Floats, weights: Floats) -> Statistic:
    """Weighted mean of values [N]; NaN in a draw without weight."""
    return lambda draws: _ratio(draws @ (values * weights), draws @ weights)


def value(statistic: Statistic, n: int) -> float:
    """Return the coefficient of the N items as they are."""
    return float(statistic(np.ones((1, n)))[0])


def estimates(
    statistics: Mapping[str, Statistic], clusters: Sequence[Hashable], *, draws: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Return each statistic with a percentile interval; whole clusters of items are resampled.

    As in `stats.bootstrap`: draws without a value are left out, and where they are more than one in
    twenty, or there is one cluster, the interval is NaN.
    """
    if not clusters:
        return dict.fromkeys(statistics, NOTHING)
    seen: dict[Hashable, int] = {}
    group = np.array([seen.setdefault(name, len(seen)) for name in clusters], dtype=np.intp)
    found: dict[str, list[Floats]] = {name: [] for name in statistics}
    rng = np.random.default_rng(seed)
    block = max(1, 4_000_000 // len(group))  # bounds the memory
    for start in range(0, draws, block) if len(seen) > 1 else ():
        rows = min(block, draws - start)
        weights = rng.multinomial(len(seen), np.full(len(seen), 1 / len(seen)), size=rows)
        drawn = weights[:, group].astype(np.float64)
        for name, statistic in statistics.items():
            found[name].append(statistic(drawn))
    result = {}
    for name, statistic in statistics.items():
        values = np.concatenate([*found[name], np.empty(0)])
        kept = values[~np.isnan(values)]
        known = len(seen) > 1 and len(kept) >= 0.95 * draws
        low, high = np.quantile(kept, [0.025, 0.975]) if known else (math.nan, math.nan)
        result[name] = Estimate(value(statistic, len(group)), float(low), float(high), len(group), len(seen))
    return result


def plain(estimate: Estimate) -> dict[str, Any]:
    """Return an estimate for JSON, which has no NaN: None stands for it."""
    return {
        name: None if isinstance(number, float) and math.isnan(number) else number
        for name, number in estimate._asdict().items()
    }


def _agreed(counts: csr_array, weights: Floats) -> tuple[Floats, Floats]:
    """Share of agreeing pairs of answers to each item, and whether there is a pair, both [N]."""
    sizes = counts.sum(axis=1)
    paired = sizes >= 2
    total = _pairwise(counts, weights) - counts @ np.diag(weights)  # an answer is no pair with itself
    return np.where(paired, total / np.maximum(sizes * (sizes - 1), 1), 0.0), paired.astype(np.float64)


def _pairwise(counts: csr_array, matrix: Floats) -> Floats:
    """Sum of the matrix over all ordered pairs of answers to each item, [N]."""
    parts = [np.empty(0)]
    for start in range(0, counts.shape[0], 4096):  # [4096, V] at a time
        dense = counts[start : start + 4096].toarray()
        parts.append(((dense @ matrix) * dense).sum(1))
    return np.concatenate(parts)


def _shares(counts: csr_array) -> Statistic:
    """Mean share of each value over the items with an answer, [D, N] -> [D, V]."""
    sizes = counts.sum(axis=1)
    share = csr_array(counts / np.maximum(sizes, 1)[:, None])
    answered = (sizes >= 1).astype(np.float64)
    return lambda draws: _ratio((share.T @ draws.T).T, (draws @ answered)[:, None])


def _ordinal(n: Floats) -> Floats:
    """Ordinal distances (sum of n from k to l, less half of both ends)^2, [D, V] -> [D, V, V]."""
    upto = np.cumsum(n, axis=1) - n / 2
    return np.asarray((upto[:, :, None] - upto[:, None, :]) ** 2)


def _beyond_chance(observed: Floats, expected: Floats) -> Floats:
    return _ratio(observed - expected, 1 - expected)


def _ratio(a: Floats, b: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(b) > 1e-12, a / b, np.nan)
