"""The release test: bounds against their formulas, false passes against delta, and what it refuses."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from equipoise.errors import ConfigError, DataError
from equipoise.evaluation.certify import (
    BOUNDS,
    Method,
    certify,
    prompts_needed,
    skew_excess,
    student_power,
)

RUNS = 1000
Draw = Callable[[np.random.Generator, int], Any]


def t_quantile(p: float, df: int) -> float:
    """Invert the t distribution by bisection of its density's integral, nothing borrowed."""
    scale = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    points = np.linspace(0, 30, 300_001)
    density = scale * (1 + points**2 / df) ** (-(df + 1) / 2)
    total = 0.5 + np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * (points[1] - points[0]))])
    return float(np.interp(p, total, points))


def formula(method: Method, x: list[float], delta: float, low: float, high: float) -> float:
    n, mean = len(x), sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / (n - 1)
    if method == "student":
        return mean + t_quantile(1 - delta, n - 1) * math.sqrt(variance / n)
    if method == "hoeffding":
        return mean + (high - low) * math.sqrt(math.log(1 / delta) / (2 * n))
    log = math.log(2 / delta)
    return mean + math.sqrt(2 * variance * log / n) + 7 * (high - low) * log / (3 * (n - 1))


@pytest.mark.parametrize("method", ["student", "hoeffding", "bernstein"])
@pytest.mark.parametrize("delta", [0.05, 0.1, 0.3])
def test_a_bound_is_its_formula(method: Method, delta: float) -> None:
    values = [0.1, 0.7, 0.4, 0.2, 0.9, 0.35]
    found = certify(values, range(6), delta=delta, method=method, low=0.0, high=2.0).bound
    assert found == pytest.approx(formula(method, values, delta, 0.0, 2.0), abs=1e-7)


@pytest.mark.parametrize(("ones", "n"), [(0, 40), (3, 40), (39, 40)])
def test_at_the_binomial_bound_so_few_ones_have_probability_delta(ones: int, n: int) -> None:
    bound = certify([1.0] * ones + [0.0] * (n - ones), range(n), delta=0.1, method="binomial").bound
    chance = sum(math.comb(n, k) * bound**k * (1 - bound) ** (n - k) for k in range(ones + 1))
    assert chance == pytest.approx(0.1, rel=1e-9)


def test_where_all_are_ones_the_bound_is_one() -> None:
    assert certify([1.0, 1.0, 1.0], "abc", method="binomial").bound == 1.0


def test_every_bound_is_tested_above() -> None:
    assert BOUNDS.keys() == {"student", "hoeffding", "bernstein", "binomial"}


def normal(rng: np.random.Generator, n: int) -> Any:
    return rng.normal(0.0, 2.0, n)


def skewed(rng: np.random.Generator, n: int) -> Any:
    """Costs with a long tail to the harmful side: gamma of shape 4 (skew 1), their mean taken off."""
    return rng.gamma(4.0, 1.0, n) - 4.0


def rare(rng: np.random.Generator, n: int) -> Any:
    """Harm in one answer of twenty."""
    return (rng.random(n) < 0.05).astype(float) - 0.05


def passes(draw: Draw, n: int, budget: float, seed: int, **settings: Any) -> float:
    rng = np.random.default_rng(seed)
    return sum(certify(draw(rng, n), range(n), budget=budget, **settings).passed for _ in range(RUNS)) / RUNS


@pytest.mark.parametrize("delta", [0.05, 0.1])
@pytest.mark.parametrize("draw", [normal, skewed])
def test_a_policy_at_the_budget_passes_with_delta_at_most(draw: Draw, delta: float) -> None:
    found = passes(draw, 100, 0.0, 0, delta=delta)
    assert found <= delta + 3 * math.sqrt(delta * (1 - delta) / RUNS)
    assert found >= delta / 3  # a test that passes nobody would keep to that too


@pytest.mark.parametrize("method", ["hoeffding", "bernstein"])
def test_bounds_of_values_with_ends_hold_for_rare_harm(method: Method) -> None:
    delta = 0.1
    ends = {"low": -0.05, "high": 0.95}
    assert passes(rare, 200, 0.0, 1, delta=delta, method=method, **ends) <= delta
    assert passes(rare, 200, 0.3, 1, delta=delta, method=method, **ends) > 0.99


def test_the_exact_bound_holds_for_rare_harm_and_is_sharper() -> None:
    def zero_one(rng: np.random.Generator, n: int) -> Any:
        return (rng.random(n) < 0.05).astype(float)

    assert passes(zero_one, 200, 0.05, 2, delta=0.1, method="binomial") <= 0.1 + 3 * math.sqrt(0.09 / RUNS)
    sharp = passes(zero_one, 200, 0.12, 2, delta=0.1, method="binomial")
    blunt = passes(zero_one, 200, 0.12, 2, delta=0.1, method="bernstein", low=0.0, high=1.0)
    assert sharp > 0.9 > blunt


def test_the_power_that_is_told_is_the_share_that_passes() -> None:
    margin, deviation, n = 0.5, 2.0, 100
    told = student_power(n, margin, deviation, 0.1)
    found = passes(normal, n, margin, 3, delta=0.1)
    assert told == pytest.approx(found, abs=3 * math.sqrt(0.25 / RUNS))
    assert 0.8 < told < 0.95


def test_fewest_prompts_are_just_enough() -> None:
    n = prompts_needed(0.3, 1.0, 0.1, power=0.8)
    assert n is not None
    assert student_power(n, 0.3, 1.0, 0.1) >= 0.8 > student_power(n - 1, 0.3, 1.0, 0.1)
    assert prompts_needed(0.0, 1.0, 0.1) is None
    assert prompts_needed(1e-5, 1.0, 0.1) is None


def test_what_skew_adds_is_what_false_passes_have_over_delta() -> None:
    """Costs with skew 2, over many more runs than above, t statistics in one go."""
    delta, n = 0.1, 60
    rng = np.random.default_rng(4)
    x = rng.exponential(1.0, (40_000, n)) - 1.0
    t = math.sqrt(n) * x.mean(axis=1) / x.std(axis=1, ddof=1)
    excess = float((t <= -stats.t.ppf(1 - delta, n - 1)).mean()) - delta
    assert skew_excess(2.0, n, delta) == pytest.approx(excess, abs=0.006)
    assert excess > 0.02


def test_answers_to_one_prompt_count_as_one_value() -> None:
    once = certify([0.0, 1.0, 3.0], "abc", budget=9.0)
    many = certify([0.0, 0.0, 0.5, 1.5, 3.0, 3.0], "aabbcc", budget=9.0)
    assert many.bound == once.bound
    assert (once.prompts, once.values, many.prompts, many.values) == (3, 3, 3, 6)


def test_the_test_is_passed_exactly_up_to_the_bound() -> None:
    values = [0.2, -0.4, 0.1, -0.3]
    bound = certify(values, range(4)).bound
    assert certify(values, range(4), budget=bound).passed
    assert not certify(values, range(4), budget=np.nextafter(bound, -np.inf)).passed


@pytest.mark.parametrize(
    ("values", "settings", "what"),
    [
        ([0.1], {}, "of 1 prompts"),
        ([0.1, math.nan], {}, "not finite"),
        ([0.0, 0.0, 0.0], {}, "expected binomial"),
        ([0.0, 1.0, 0.0], {}, "expected binomial"),
        ([0.3, 0.3], {}, "all are the same"),
        ([0.3, 1.0], {"method": "binomial"}, "binomial takes one 0 or 1 per prompt"),
        ([0.3, 1.2], {"method": "hoeffding", "low": 0.0, "high": 1.0}, "got 1.2; expected none outside 0.0"),
    ],
)
def test_values_that_do_not_suit_the_bound_are_refused(
    values: list[float], settings: dict[str, Any], what: str
) -> None:
    with pytest.raises(DataError, match=what):
        certify(values, range(len(values)), **settings)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"delta": 0.0}, "delta: got 0.0"),
        ({"method": "bernstein", "low": 0.0}, "bernstein: low and high: got 0.0 and None"),
        ({"method": "hoeffding", "low": 1.0, "high": 1.0}, "hoeffding: low and high"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        certify([0.1, 0.2], "ab", **settings)
