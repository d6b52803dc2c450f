"""Every statistic against a reference library, a hand calculation, or a simulation with a planted truth."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import f1_score, roc_auc_score

from equipoise.stats import (
    NOTHING,
    Estimate,
    auroc,
    benjamini_hochberg,
    bootstrap,
    bootstrap_mean,
    f1,
    holm,
    mcnemar,
    paired_difference,
    wilson,
)

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 40), (40, 40), (5, 10), (3, 1000), (499, 500)]
)
def test_wilson_matches_scipy(successes: int, n: int) -> None:
    expected = scipy_stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    found = wilson(successes, n)
    assert (found.value, found.n, found.clusters) == (successes / n, n, n)
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (0, 1), (1, 1), (3, 12), (12, 3), (50, 80), (400, 600)]
)
def test_mcnemar_matches_the_exact_binomial_test(first: int, second: int) -> None:
    expected = scipy_stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-10)


@given(p_values)
def test_benjamini_hochberg_matches_scipy(values: list[float]) -> None:
    expected = scipy_stats.false_discovery_control(values, method="bh")
    np.testing.assert_allclose(benjamini_hochberg(values), expected, rtol=1e-12)


def test_holm_by_hand() -> None:
    # Sorted .005 .01 .03 .04 .9, times 5 4 3 2 1, then never falling, at most 1.
    found = holm([0.04, 0.005, 0.9, 0.01, 0.03])
    assert found == pytest.approx([0.09, 0.025, 0.9, 0.04, 0.09])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(p_values)
def test_holm_rejects_what_the_step_down_rule_rejects(values: list[float]) -> None:
    for level in (0.05, 0.2):
        rejected = set()
        for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
            if values[i] * (len(values) - rank) > level:
                break
            rejected.add(i)
        assert {i for i, p in enumerate(holm(values)) if p <= level} == rejected


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_auroc_matches_sklearn_with_ties(rows: list[tuple[int, bool]]) -> None:
    scores, positive = zip(*rows, strict=True)
    if len(set(positive)) == 2:
        assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    else:
        assert math.isnan(auroc(scores, positive))


def test_auroc_of_no_rows_or_of_a_score_that_is_no_number_is_nan() -> None:
    assert math.isnan(auroc([], []))
    assert math.isnan(auroc([0.1, math.nan, 0.9], [False, True, True]))
    assert auroc([-math.inf, math.inf], [False, True]) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_f1_matches_sklearn(rows: list[tuple[bool, bool]]) -> None:
    predicted, actual = zip(*rows, strict=True)
    if any(predicted) or any(actual):
        assert f1(predicted, actual) == pytest.approx(f1_score(actual, predicted), abs=1e-12)
    else:
        assert math.isnan(f1(predicted, actual))


def simulated(rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """Rows around a true mean of 1, in 120 clusters of 1 to 5 rows that share a deviation."""
    sizes = rng.integers(1, 6, size=120)
    clusters = np.repeat(np.arange(120), sizes)
    values = 1.0 + rng.normal(0, 1, size=120)[clusters] + rng.normal(0, 0.5, size=len(clusters))
    return values, clusters.tolist()


def test_the_clustered_interval_covers_as_often_as_it_says_and_the_naive_one_does_not() -> None:
    rng = np.random.default_rng(7)
    clustered = naive = 0
    for seed in range(300):
        values, clusters = simulated(rng)
        by_cluster = bootstrap_mean(values, clusters, draws=400, seed=seed)
        by_row = bootstrap_mean(values, range(len(values)), draws=200, seed=seed)
        clustered += by_cluster.low <= 1.0 <= by_cluster.high
        naive += by_row.low <= 1.0 <= by_row.high
    assert 0.91 <= clustered / 300 <= 0.98
    assert naive / 300 < 0.85


def test_the_bootstrap_of_a_mean_is_the_bootstrap_of_any_statistic() -> None:
    values, clusters = simulated(np.random.default_rng(1))
    fast = bootstrap_mean(values, clusters, draws=20_000, seed=1)
    general = bootstrap(lambda rows: float(values[rows].mean()), clusters, draws=4000, seed=2)
    error = 4 * (fast.high - fast.low) / math.sqrt(4000)  # of a quantile, about 2.1 sigma / sqrt(draws)
    assert general.value == pytest.approx(fast.value, abs=1e-12)
    assert general.low == pytest.approx(fast.low, abs=error)
    assert general.high == pytest.approx(fast.high, abs=error)
    assert (general.n, general.clusters) == (fast.n, fast.clusters) == (len(values), 120)


def test_without_clusters_the_interval_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(3).normal(5, 2, size=1000)
    found = bootstrap_mean(values, range(1000))
    half = 1.96 * values.std() / math.sqrt(1000)
    assert found.value == pytest.approx(values.mean(), abs=1e-12)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_cluster_names_may_be_anything_and_need_not_be_sorted() -> None:
    values = [1.0, 2.0, 3.0, 4.0]
    by_number = bootstrap_mean(values, [0, 1, 0, 2])
    assert bootstrap_mean(values, ["z", ("a", 1), "z", None]) == by_number
    assert by_number.clusters == 3


@pytest.mark.parametrize(
    "estimate", [bootstrap_mean, lambda v, c, **k: bootstrap(lambda r: v[r].mean(), c, **k)]
)
def test_the_seed_decides_the_draws(estimate: Callable[..., Estimate]) -> None:
    values, clusters = simulated(np.random.default_rng(5))
    one, same, other = (estimate(values, clusters, draws=300, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.low != other.low


def test_a_paired_difference_is_the_mean_of_the_differences() -> None:
    rng = np.random.default_rng(2)
    before = rng.normal(0, 5, size=200)
    after = before - 1 + rng.normal(0, 0.1, size=200)
    found = paired_difference(after, before, range(200))
    assert found.value == pytest.approx((after - before).mean())
    assert found.high - found.low < 0.1  # the spread between rows, fifty times as large, drops out
    assert found.excludes_zero


def test_rows_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match=r"paired rows differ in number: \(2,\) and \(3,\)"):
        paired_difference([1, 2], [1, 2, 3], [0, 1])
    with pytest.raises(ValueError, match="2 values but 1 cluster names"):
        bootstrap_mean([1, 2], ["a"])


def test_no_rows_give_nothing() -> None:
    for found in (wilson(0, 0), bootstrap_mean([], []), bootstrap(lambda rows: 1.0, [])):
        assert found is NOTHING
    assert not NOTHING.excludes_zero


def test_a_value_that_is_no_number_is_not_hidden() -> None:
    found = bootstrap_mean([1.0, math.nan, 3.0], [0, 1, 2])
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_draws_on_which_a_statistic_is_nan_are_left_out_while_they_are_few() -> None:
    scores = np.arange(40) / 40
    positive = np.arange(40) % 2 == 0
    common = bootstrap(lambda rows: auroc(scores[rows], positive[rows]), range(40), draws=400)
    assert common.low < common.value < common.high
    rare = np.arange(40) == 39  # a third of the draws hold no positive row at all
    found = bootstrap(lambda rows: auroc(scores[rows], rare[rows]), range(40), draws=400)
    assert found.value == 1.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize(
    ("low", "high", "excludes"),
    [
        (0.1, 0.2, True),
        (-0.2, -0.1, True),
        (-0.1, 0.1, False),
        (0.0, 0.1, False),
        (math.nan, math.nan, False),
    ],
)
def test_an_interval_excludes_zero_when_it_lies_on_one_side(low: float, high: float, excludes: bool) -> None:
    assert Estimate(0.0, low, high, 10, 10).excludes_zero is excludes
