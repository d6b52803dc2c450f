"""Release only what is very likely within budget: a high-confidence test of a policy's expected cost.

Chittepu et al. 2025 (HC-RLHF): on prompts that had no part in training, a policy passes only if an upper
confidence bound of its expected cost is below the budget, so that a policy over it passes with a probability
of at most delta. Answers to one prompt are not independent: their mean counts as one value.

Which bound: `student` is the paper's and the sharpest; it is exact for normal costs and close to it for
values with little skew. Where costs have known ends (`low`, `high`) `hoeffding` and `bernstein` hold whatever
their distribution is. `binomial` is exact for values that are 0 or 1, such as harmful or not.

Shapes: N prompts.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from equipoise.errors import ConfigError, DataError

Method = Literal["student", "hoeffding", "bernstein", "binomial"]

Floats = NDArray[np.float64]

FEWEST = 2
"""Prompts without which no bound can be given."""


class Certificate(NamedTuple):
    """What the test says."""

    passed: bool
    """Whether the bound is at or below the budget."""
    bound: float
    """The expected cost is below this with confidence 1 - delta."""
    mean: float
    deviation: float
    """Standard deviation between prompts."""
    prompts: int
    values: int
    budget: float
    delta: float
    method: Method
    power: float | None
    """Probability that a new sample of as many prompts would pass, if mean and deviation are the true ones
    and the values normal; None of another method than `student`."""
    skew_excess: float | None = None
    """What the skew of the values adds to delta, roughly; None of another method than `student`."""


def student(values: Floats, delta: float, low: float, high: float) -> float:
    """mean + t_{1-delta, N-1} s / sqrt(N); the ends play no part. HC-RLHF, section 4."""
    n = len(values)
    return float(values.mean() + stats.t.ppf(1 - delta, n - 1) * values.std(ddof=1) / math.sqrt(n))


def hoeffding(values: Floats, delta: float, low: float, high: float) -> float:
    """mean + (high - low) sqrt(ln(1/delta) / 2N). Hoeffding 1963."""
    return float(values.mean() + (high - low) * math.sqrt(math.log(1 / delta) / (2 * len(values))))


def bernstein(values: Floats, delta: float, low: float, high: float) -> float:
    """mean + sqrt(2 V l / N) + 7 (high - low) l / 3(N - 1), l = ln(2/delta). Maurer and Pontil 2009."""
    n, log = len(values), math.log(2 / delta)
    spread = math.sqrt(2 * float(values.var(ddof=1)) * log / n)
    return float(values.mean() + spread + 7 * (high - low) * log / (3 * (n - 1)))


def binomial(values: Floats, delta: float, low: float, high: float) -> float:
    """The p at which as few ones as there are have probability delta. Clopper and Pearson 1934."""
    n, ones = len(values), int(values.sum())
    return 1.0 if ones == n else float(stats.beta.ppf(1 - delta, ones + 1, n - ones))


BOUNDS: dict[Method, Callable[[Floats, float, float, float], float]] = {
    "student": student,
    "hoeffding": hoeffding,
    "bernstein": bernstein,
    "binomial": binomial,
}


def certify(
    values: ArrayLike,
    prompts: Sequence[Hashable],
    *,
    budget: float = 0.0,
    delta: float = 0.1,
    method: Method = "student",
    low: float | None = None,
    high: float | None = None,
) -> Certificate:
    """Test whether the expected cost is within budget, from one value per answer.

    Args:
        values: Costs, higher is worse.
        prompts: Of each value; those of one prompt are averaged first.
        budget: What the expected cost may be at most.
        delta: The probability at most of passing a policy that is over budget, 0..1.
        method: Which bound.
        low: The least that a cost can be, for `hoeffding` and `bernstein`.
        high: The most that a cost can be.

    Raises:
        ConfigError: A bound that needs the ends without them, or a delta that is no probability.
        DataError: Too few prompts, or values that do not suit the bound.
    """
    each = np.asarray(values, dtype=np.float64)
    if not 0 < delta < 1:
        raise ConfigError(f"delta: got {delta}; expected a probability above 0 and below 1")
    if not np.isfinite(each).all():
        raise DataError("costs: one is not finite; expected numbers only")
    means = _by_prompt(each, prompts)
    if len(means) < FEWEST:
        raise DataError(f"costs: of {len(means)} prompts; expected {FEWEST} at least, and better hundreds")
    ends = _ends(means, each, method, low, high)
    bound = BOUNDS[method](means, delta, *ends)
    mean, deviation = float(means.mean()), float(means.std(ddof=1))
    sizes = len(means), len(each)
    found = Certificate(bound <= budget, bound, mean, deviation, *sizes, budget, delta, method, None)
    if method != "student":
        return found
    power = student_power(len(means), budget - mean, deviation, delta)
    return found._replace(power=power, skew_excess=skew_excess(float(stats.skew(means)), len(means), delta))


def skew_excess(skew: float, n: int, delta: float) -> float:
    """skew (2 z^2 + 1) phi(z) / 6 sqrt(n): by how much `student` passes more often than delta.

    The first term of Edgeworth's expansion of the t statistic; Hall 1992, section 2.6.
    """
    z = float(stats.norm.ppf(1 - delta))
    return skew * (2 * z * z + 1) * float(stats.norm.pdf(z)) / (6 * math.sqrt(n))


def student_power(n: int, margin: float, deviation: float, delta: float) -> float:
    """Probability that normal costs of `n` prompts pass, their true mean `margin` below the budget.

    By the noncentral t distribution; at a margin of 0 it is delta.

    >>> round(student_power(100, 0.0, 1.0, 0.1), 6)
    0.1
    """
    shift = math.sqrt(n) * margin / deviation
    return float(stats.nct.sf(stats.t.ppf(1 - delta, n - 1), n - 1, shift))


def prompts_needed(margin: float, deviation: float, delta: float, power: float = 0.8) -> int | None:
    """Fewest prompts with which a policy `margin` below the budget passes with probability `power`.

    None where a million are too few, or the policy is not below the budget at all.
    """
    if margin <= 0:
        return None
    few, many = FEWEST - 1, 1_000_000
    if student_power(many, margin, deviation, delta) < power:
        return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (
            (few, middle) if student_power(middle, margin, deviation, delta) >= power else (middle, many)
        )
    return many


def _by_prompt(values: Floats, prompts: Sequence[Hashable]) -> Floats:
    if len(prompts) != len(values):
        raise ValueError(f"{len(values)} values but {len(prompts)} prompts")
    places: dict[Hashable, list[float]] = {}
    for prompt, value in zip(prompts, values.tolist(), strict=True):
        places.setdefault(prompt, []).append(value)
    return np.array([sum(group) / len(group) for group in places.values()])


def _ends(
    means: Floats, each: Floats, method: Method, low: float | None, high: float | None
) -> tuple[float, float]:
    """Return the ends, after a look at whether the values suit the bound."""
    if method in ("hoeffding", "bernstein"):
        if low is None or high is None or not low < high:
            raise ConfigError(f"{method}: low and high: got {low} and {high}; expected two ends of a cost")
        outside = each[(each < low) | (each > high)]
        if len(outside):
            raise DataError(f"costs: got {outside[0]:.6g}; expected none outside {low} to {high}")
        return low, high
    zero_one = bool(np.isin(means, (0.0, 1.0)).all())
    if method == "binomial" and not zero_one:
        raise DataError(
            "costs: binomial takes one 0 or 1 per prompt, got others;"
            " expected one answer per prompt, or hoeffding or bernstein"
        )
    if method == "student" and zero_one:
        # without a 1 the deviation is 0, and any budget would be passed
        raise DataError("costs: all are 0 or 1, of which student says too little; expected binomial")
    if method == "student" and not means.std():
        raise DataError(
            "costs: all are the same, of which student says nothing; expected hoeffding or bernstein"
        )
    return 0.0, 1.0
