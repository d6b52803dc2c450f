"""Every coefficient against hand values, its formula in fractions, or a reference library."""

from collections.abc import Callable
from fractions import Fraction
from itertools import permutations

import krippendorff as reference
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from equipoise.annotation.coefficients import (
    Statistic,
    cohen,
    counts_of,
    estimates,
    fleiss,
    gwet,
    identity,
    krippendorff,
    linear,
    masi,
    masi_distance,
    percent,
    plain,
    quadratic,
    value,
)

# Krippendorff 2011, example C: 4 observers, 12 units, 5 values, answers missing
EXAMPLE = np.array(
    [
        [1, 1, 0, 1],
        [2, 2, 3, 2],
        [3, 3, 3, 3],
        [3, 3, 3, 3],
        [2, 2, 2, 2],
        [1, 2, 3, 4],
        [4, 4, 4, 4],
        [1, 1, 2, 1],
        [2, 2, 2, 2],
        [0, 5, 5, 5],
        [0, 0, 1, 1],
        [0, 0, 3, 0],
    ]
)
CODES = EXAMPLE - 1

# Fleiss's psychiatric form: 10 subjects, 14 raters, 5 categories (worked example, kappa 0.210)
FLEISS = np.array(
    [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
)


def as_codes(table: np.ndarray) -> np.ndarray:
    return np.array([np.repeat(np.arange(table.shape[1]), row) for row in table])


def rows_of(codes: np.ndarray) -> list[list[int]]:
    return [[int(v) for v in row if v >= 0] for row in codes]


def plain_percent(rows: list[list[int]]) -> Fraction:
    shares = [
        Fraction(sum(a == b for a, b in permutations(row, 2)), len(row) * (len(row) - 1))
        for row in rows
        if len(row) > 1
    ]
    return sum(shares, Fraction(0)) / len(shares)


def plain_shares(rows: list[list[int]], size: int) -> list[Fraction]:
    kept = [row for row in rows if row]
    return [
        sum((Fraction(row.count(k), len(row)) for row in kept), Fraction(0)) / len(kept) for k in range(size)
    ]


def plain_fleiss(rows: list[list[int]], size: int) -> Fraction:
    chance = sum((p * p for p in plain_shares(rows, size)), Fraction(0))
    return (plain_percent(rows) - chance) / (1 - chance)


def plain_gwet(rows: list[list[int]], size: int) -> Fraction:
    chance = sum((p * (1 - p) for p in plain_shares(rows, size)), Fraction(0)) / (size - 1)
    return (plain_percent(rows) - chance) / (1 - chance)


def plain_alpha(rows: list[list[int]], apart: Callable[[int, int], float | Fraction]) -> float:
    kept = [row for row in rows if len(row) > 1]
    everything = [v for row in kept for v in row]
    observed = sum(apart(a, b) / (len(row) - 1) for row in kept for a, b in permutations(row, 2))
    expected = sum(apart(a, b) for a, b in permutations(everything, 2)) / (len(everything) - 1)
    return 1 - float(observed / expected)


def of(statistic: Statistic, codes: np.ndarray) -> float:
    return value(statistic, len(codes))


def test_nominal_coefficients_equal_their_formulas_in_fractions() -> None:
    counts, rows = counts_of(CODES, 5), rows_of(CODES)
    assert of(percent(counts, identity(5)), CODES) == pytest.approx(float(plain_percent(rows)), abs=1e-12)
    assert of(fleiss(counts, identity(5)), CODES) == pytest.approx(float(plain_fleiss(rows, 5)), abs=1e-12)
    assert of(gwet(counts, identity(5)), CODES) == pytest.approx(float(plain_gwet(rows, 5)), abs=1e-12)


def test_published_values_of_the_textbook_examples() -> None:
    counts = counts_of(CODES, 5)
    assert of(krippendorff(counts, 1 - identity(5)), CODES) == pytest.approx(0.743, abs=5e-4)
    assert of(krippendorff(counts), CODES) == pytest.approx(0.815, abs=5e-4)
    assert of(gwet(counts, identity(5)), CODES) == pytest.approx(0.77544, abs=5e-6)  # Gwet 2014
    assert of(fleiss(counts, identity(5)), CODES) == pytest.approx(0.76117, abs=5e-6)  # Gwet 2014
    codes = as_codes(FLEISS)
    assert of(fleiss(counts_of(codes, 5), identity(5)), codes) == pytest.approx(0.210, abs=5e-4)


def test_cohen_of_a_table_by_hand() -> None:
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, chance 0.5, kappa 0.4."""
    codes = np.array([[1, 1]] * 20 + [[1, 0]] * 5 + [[0, 1]] * 10 + [[0, 0]] * 15)
    assert of(cohen(codes, identity(2)), codes) == pytest.approx(0.4, abs=1e-12)
    assert of(
        cohen(np.vstack([codes, [[1, -1]]]), identity(2)), np.vstack([codes, [[1, -1]]])
    ) == pytest.approx(0.4, abs=1e-12)


@pytest.mark.parametrize(
    ("weights", "name"), [(identity, None), (linear, "linear"), (quadratic, "quadratic")]
)
def test_cohen_equals_scikit_learn(weights: Callable[[int], np.ndarray], name: str | None) -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 4, 80)
    second = np.where(rng.random(80) < 0.6, first, rng.integers(0, 4, 80))
    codes = np.stack([first, second], axis=1)
    expected = cohen_kappa_score(first, second, weights=name)
    assert of(cohen(codes, weights(4)), codes) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_alpha_equals_the_reference_library_with_answers_missing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, 60)
    codes = np.where(rng.random((60, 5)) < 0.6, truth[:, None], rng.integers(0, 4, (60, 5)))
    codes[rng.random((60, 5)) < 0.4] = -1
    data = np.where(codes < 0, np.nan, codes).T
    counts = counts_of(codes, 4)
    for level, statistic in (
        ("nominal", krippendorff(counts, 1 - identity(4))),
        ("ordinal", krippendorff(counts)),
    ):
        expected = reference.alpha(data, level_of_measurement=level, value_domain=[0, 1, 2, 3])
        assert of(statistic, codes) == pytest.approx(expected, abs=1e-12)


def test_quadratic_weights_equal_the_formula_and_forgive_near_misses() -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 4, (30, 3))
    weights = quadratic(4)
    rows = rows_of(codes)
    agreed = np.mean([np.mean([weights[a, b] for a, b in permutations(row, 2)]) for row in rows])
    p = [float(share) for share in plain_shares(rows, 4)]
    chance = sum(weights[k, j] * p[k] * p[j] for k in range(4) for j in range(4))
    counts = counts_of(codes, 4)
    assert of(fleiss(counts, weights), codes) == pytest.approx((agreed - chance) / (1 - chance), abs=1e-12)
    spread = weights.sum() / 12 * sum(x * (1 - x) for x in p)
    assert of(gwet(counts, weights), codes) == pytest.approx((agreed - spread) / (1 - spread), abs=1e-12)
    near = np.array([[0, 1], [2, 3], [1, 2], [0, 0], [3, 3]])
    far = np.array([[0, 3], [2, 0], [1, 3], [0, 0], [3, 3]])
    assert of(cohen(near, weights), near) > of(cohen(far, weights), far)


def test_masi_distances_by_hand() -> None:
    a, b = frozenset, masi_distance
    assert b(a("ab"), a("ab")) == 0.0
    assert b(a(), a()) == 0.0
    assert b(a("a"), a("b")) == 1.0
    assert b(a(), a("b")) == 1.0
    assert b(a("a"), a("abc")) == pytest.approx(1 - 1 / 3 * 2 / 3, abs=1e-15)
    assert b(a("ab"), a("bc")) == pytest.approx(1 - 1 / 3 * 1 / 3, abs=1e-15)


def test_alpha_of_sets_equals_its_formula() -> None:
    values = [frozenset(text) for text in ("", "a", "b", "ab", "abc")]
    rng = np.random.default_rng(5)
    codes = rng.integers(-1, 5, (25, 4))
    assert masi(values) == pytest.approx(np.array([[masi_distance(a, b) for b in values] for a in values]))
    statistic = krippendorff(counts_of(codes, 5), masi(values))
    expected = plain_alpha(rows_of(codes), lambda a, b: masi_distance(values[a], values[b]))
    assert of(statistic, codes) == pytest.approx(expected, abs=1e-12)


def test_a_rare_value_lowers_kappa_but_not_ac1() -> None:
    codes = np.array([[0, 0]] * 95 + [[1, 0]] * 2 + [[0, 1]] * 3)
    assert of(cohen(codes, identity(2)), codes) < 0.0
    assert of(gwet(counts_of(codes, 2), identity(2)), codes) > 0.9


def test_answers_that_never_differ_have_no_kappa() -> None:
    codes = np.zeros((5, 2), dtype=int)
    assert np.isnan(of(cohen(codes, identity(2)), codes))
    assert np.isnan(of(krippendorff(counts_of(codes, 2), 1 - identity(2)), codes))
    found = estimates({"kappa": cohen(codes, identity(2))}, range(5), draws=50)["kappa"]
    assert plain(found) == {"value": None, "low": None, "high": None, "n": 5, "clusters": 5}


def test_interval_is_that_of_resampled_clusters() -> None:
    """A percentage of agreeing items is a mean, whose clustered interval `stats` computes by another way."""
    from equipoise.stats import bootstrap_mean

    rng = np.random.default_rng(7)
    codes = rng.integers(0, 2, (200, 2))
    clusters = [i // 2 for i in range(200)]
    found = estimates({"p": percent(counts_of(codes, 2), identity(2))}, clusters, draws=4000)["p"]
    mean = bootstrap_mean(codes[:, 0] == codes[:, 1], clusters, draws=4000)
    assert found.value == pytest.approx(mean.value)
    assert (found.low, found.high) == pytest.approx((mean.low, mean.high), abs=0.01)
    assert found.clusters == 100


def test_interval_covers_the_true_coefficient_as_often_as_it_says() -> None:
    """Two raters who copy a fair coin with probability 0.7, else toss their own: kappa is 0.49."""
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(120):
        truth = rng.integers(0, 2, 150)
        codes = np.stack(
            [np.where(rng.random(150) < 0.7, truth, rng.integers(0, 2, 150)) for _ in range(2)], 1
        )
        found = estimates({"k": cohen(codes, identity(2))}, range(150), draws=300)["k"]
        hits += found.low <= 0.49 <= found.high
    assert 0.88 <= hits / 120 <= 0.99


def test_one_cluster_and_no_row_have_no_interval() -> None:
    codes = np.array([[0, 1], [1, 1], [0, 0]])
    one = estimates({"p": percent(counts_of(codes, 2), identity(2))}, ["a"] * 3)["p"]
    assert (one.value, one.clusters) == (pytest.approx(2 / 3), 1)
    assert np.isnan(one.low)
    none = estimates({"p": percent(counts_of(codes[:0], 2), identity(2))}, [])["p"]
    assert (none.n, np.isnan(none.value)) == (0, True)
