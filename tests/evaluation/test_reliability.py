"""Calibration error: plain floats, closed forms, and planted truths."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from equipoise.evaluation.reliability import BINS, LEAST_ROWS, Reliability, bin_of, reliability

Floats = NDArray[np.float64]


def sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))


def measured(p: Floats, y: NDArray[np.bool_], cluster: NDArray[np.intp], draws: int = 200) -> Reliability:
    found = reliability(p, y, cluster, draws=draws)
    assert found is not None
    return found


def planted(
    seed: int, n: int = 1000, slope: float = 1.0, per: int = 1
) -> tuple[Floats, NDArray[np.bool_], NDArray[np.intp], Floats]:
    """Probabilities that are `slope` times too sure, labels of the true ones, prompts; and the true ones.

    The rows of a prompt are alike, and so are their labels.
    """
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.normal(0, 1.5, n // per), per) + rng.normal(0, 0.1, n)
    true = sigmoid(x)
    happened = np.repeat(rng.random(n // per), per) < true
    return sigmoid(slope * x), happened, np.repeat(np.arange(n // per), per), true


def in_plain_floats(p: list[float], y: list[bool], cluster: list[int]) -> tuple[float, float, float]:
    """Naive, corrected and squared error, bin by bin and cluster by cluster."""
    bins: dict[int, list[int]] = {}
    for row, place in enumerate(bin_of(np.array(p)).tolist()):
        bins.setdefault(place, []).append(row)
    naive = corrected = squared = 0.0
    for rows in bins.values():
        gap = sum(y[i] - p[i] for i in rows) / len(rows)
        sums: dict[int, float] = {}
        for i in rows:
            sums[cluster[i]] = sums.get(cluster[i], 0.0) + y[i] - p[i] - gap
        m = len(sums)
        s = math.sqrt(m / (m - 1) * sum(total**2 for total in sums.values())) / len(rows)
        density = math.exp(-((gap / s) ** 2) / 2) / math.sqrt(2 * math.pi)
        folded = 2 * s * density + gap * math.erf(gap / s / math.sqrt(2))  # E|gap + s Z|
        share = len(rows) / len(p)
        naive += share * abs(gap)
        corrected += share * (2 * abs(gap) - folded)
        squared += share * (gap**2 - s**2)
    return naive, corrected, squared


@pytest.mark.parametrize("per", [1, 4])
def test_the_errors_are_those_of_the_formula(per: int) -> None:
    p, y, cluster, _ = planted(0, n=400, slope=1.7, per=per)
    found = measured(p, y, cluster)
    expected = in_plain_floats(p.tolist(), y.tolist(), cluster.tolist())
    assert (found.naive, found.corrected, found.squared.value) == pytest.approx(expected, rel=1e-9)
    assert (found.squared.n, found.squared.clusters) == (400, 400 // per)


def test_the_noise_of_rows_alike_is_that_of_broecker() -> None:
    # one bin, one probability: gap^2 - y (1 - y) / (n - 1). Bröcker 2012, Ferro and Fricker 2012
    y = np.arange(200) < 50
    found = measured(np.full(200, 0.4), y, np.arange(200))
    assert len(found.bins) == 1
    assert found.squared.value == pytest.approx(0.15**2 - 0.25 * 0.75 / 199, rel=1e-12)
    assert found.naive == pytest.approx(0.15, rel=1e-12)


def test_the_correction_is_what_kumar_et_al_simulate() -> None:
    p, y, cluster, _ = planted(3, n=600, slope=1.4)
    place = bin_of(p)
    rng = np.random.default_rng(0)
    plain, noisy = 0.0, 0.0
    for b in range(place.max() + 1):
        residual = (y - p)[place == b]
        s = residual.std(ddof=1) / math.sqrt(len(residual))
        share = len(residual) / len(p)
        plain += share * abs(residual.mean())
        noisy += share * np.abs(residual.mean() + s * rng.standard_normal(200_000)).mean()
    assert measured(p, y, cluster).corrected == pytest.approx(2 * plain - noisy, abs=3e-4)


@pytest.mark.parametrize("per", [1, 5])
def test_where_nothing_is_wrong_the_plain_error_is_high_and_the_corrected_interval_covers_zero(
    per: int,
) -> None:
    found = [measured(p, y, c) for p, y, c, _ in (planted(seed, per=per) for seed in range(40))]
    naive = np.mean([one.naive for one in found])
    assert naive > 0.03
    assert np.mean([one.corrected for one in found]) < 0.65 * naive
    squared = [one.squared.value for one in found]
    # no bias: within three standard errors of zero, while the plain squares are all above it
    assert abs(np.mean(squared)) < 3 * np.std(squared, ddof=1) / math.sqrt(len(squared))
    assert sum(one.squared.low <= 0 <= one.squared.high for one in found) >= 38
    assert min(sum(b.n * (b.observed - b.predicted) ** 2 for b in one.bins) for one in found) > 0


@pytest.mark.parametrize(("slope", "per"), [(2.0, 1), (4.0, 1), (2.0, 5)])
def test_a_planted_error_is_found_and_lies_under_the_bound(slope: float, per: int) -> None:
    below = covered = 0
    gaps = []
    for seed in range(40):
        p, y, cluster, true = planted(seed, slope=slope, per=per)
        found, place = measured(p, y, cluster), bin_of(p)
        size = np.bincount(place)
        gap = np.abs(np.bincount(place, true - p)) / size
        gaps.append(found.corrected - gap @ size / len(p))
        below += gap @ size / len(p) <= found.upper
        covered += found.squared.low <= gap**2 @ size / len(p) <= found.squared.high
    assert abs(np.mean(gaps)) < 0.012
    assert below >= 33  # 95 % of 40 is 38, and its standard error 1.4
    assert covered >= 34


def test_rows_of_one_prompt_are_no_more_evidence_than_one() -> None:
    p, y, cluster, _ = planted(1, n=300, slope=2.0)
    once = measured(p, y, cluster, draws=400)
    again = measured(np.tile(p, 5), np.tile(y, 5), np.tile(cluster, 5), draws=400)
    assert again.corrected == pytest.approx(once.corrected, rel=1e-9)
    assert again.upper == pytest.approx(once.upper, rel=1e-9)
    assert (again.squared.n, again.squared.clusters) == (1500, 300)


def test_bins_hold_like_numbers_and_what_is_alike_is_never_torn_apart() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(1000)
    sizes = np.bincount(bin_of(p))
    assert len(sizes) == BINS
    assert sizes.max() - sizes.min() <= 1
    few = rng.choice([0.1, 0.5, 0.9], 1000, p=[0.05, 0.05, 0.9])
    places = bin_of(few)
    assert [len(set(places[few == value])) for value in (0.1, 0.5, 0.9)] == [1, 1, 1]
    assert len(set(places)) == places.max() + 1
    # so the order of the rows does not matter, even if it is that of the labels
    y = rng.random(1000) < few
    order = np.argsort(y, kind="stable")
    assert measured(few[order], y[order], order).corrected == pytest.approx(
        measured(few, y, np.arange(1000)).corrected, rel=1e-9
    )


def test_the_table_adds_up() -> None:
    p, y, cluster, _ = planted(5)
    found = measured(p, y, cluster)
    assert sum(one.n for one in found.bins) == 1000
    assert sum(one.n * one.observed for one in found.bins) == pytest.approx(y.sum())
    assert sum(one.n * one.predicted for one in found.bins) == pytest.approx(p.sum())
    assert all(one.low <= one.predicted <= one.high for one in found.bins)
    highs, lows = [one.high for one in found.bins[:-1]], [one.low for one in found.bins[1:]]
    assert all(high < low for high, low in zip(highs, lows, strict=True))


def test_too_few_rows_say_nothing() -> None:
    few = LEAST_ROWS - 1
    assert reliability(np.full(few, 0.5), np.arange(few) < 9, np.arange(few)) is None
