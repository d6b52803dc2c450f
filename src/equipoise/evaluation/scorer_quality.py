"""How well a scorer orders, signs and calibrates held-out pairs, and whether it is upside down.

Intervals are 95 %, from resampling whole prompts. A measure whose labels no pair has is None.

Shapes: N pairs, M labelled answers.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import expit

from equipoise.data.check import is_safe, ranked_safer
from equipoise.evaluation.pair_scores import Flags, LengthBias, PairScores, length_bias, mean_of, ordering
from equipoise.evaluation.reliability import LEAST_ROWS, Reliability, reliability
from equipoise.records import Pair
from equipoise.stats import NOTHING, Estimate, Floats, Indices, auroc, bootstrap

FOLDS = 5
"""Parts of the prompts for the threshold: each part is judged by the threshold of the others."""
UPSIDE_DOWN = 0.45
"""Below this share of pairs in the right order a score is upside down, if its interval is below a half."""


class RewardQuality(NamedTuple):
    """Of a reward, on pairs with `better`."""

    ordering: dict[str, Estimate]
    """Stratum -> share of pairs whose better answer has the higher reward, ties half."""
    length: LengthBias


class Sign(NamedTuple):
    """Whether a cost is above 0 exactly for unsafe answers; a cost of 0 counts half."""

    accuracy: Estimate
    auroc: Estimate
    """Of the cost, unsafe against safe: does not depend on where 0 lies."""
    false_positive_rate: Estimate
    """Share of safe answers with a cost above 0."""
    recall: Estimate
    """Share of unsafe answers with a cost above 0."""


class OperatingPoint(NamedTuple):
    """The lowest threshold that flags no more than a wanted share of the safe answers."""

    wanted: float
    """Share of safe answers."""
    threshold: Estimate
    """An answer is flagged where its cost is above this."""
    false_positive_rate: Estimate
    """On prompts that did not help to find the threshold."""
    recall: Estimate
    """Share of unsafe answers flagged, on such prompts."""


class CostQuality(NamedTuple):
    """Of a cost, on pairs with `safer` and answers with safety labels."""

    ordering: dict[str, Estimate]
    """Stratum -> share of pairs whose less safe answer has the higher cost, ties half."""
    length: LengthBias
    sign: Sign | None
    calibration: Reliability | None
    """Of sigmoid(cost) as P(unsafe); None with few answers."""
    operating: OperatingPoint | None
    """None with few safe answers."""


class ScorerQuality(NamedTuple):
    """What was measured."""

    reward: RewardQuality | None
    cost: CostQuality | None
    warnings: tuple[str, ...]
    """One line for each score that is upside down."""


def measure_scorer(
    pairs: Sequence[Pair],
    rewards: Floats | None,
    costs: Floats | None,
    *,
    false_positive_rate: float = 0.05,
    draws: int = 2000,
) -> ScorerQuality:
    """Measure scores on held-out pairs.

    A pair of a safe and an unsafe answer is ordered by these labels, whatever its `safer` says.

    Args:
        pairs: With the labels that are taken for the truth.
        rewards: [N, 2] higher is better; None of a scorer without.
        costs: [N, 2] higher is worse; None of a scorer without.
        false_positive_rate: Share of safe answers that the threshold may flag.
        draws: Resamplings behind every interval.
    """
    warnings: list[str] = []
    reward = cost = None
    if rewards is not None:
        better = np.array([_index(pair.better) for pair in pairs], dtype=np.intp)
        scored = PairScores(pairs, rewards, better, "higher_is_better")
        reward = RewardQuality(ordering(scored, draws=draws), length_bias(scored, draws=draws))
        warnings += _polarity("reward", reward.ordering.get("all"), "pairs")
    if costs is not None:
        safer = np.array([_safer(pair) for pair in pairs], dtype=np.intp)
        scored = PairScores(pairs, costs, safer, "higher_is_worse")
        each = _each_answer(scored, false_positive_rate, draws)
        cost = CostQuality(ordering(scored, draws=draws), length_bias(scored, draws=draws), *each)
        warnings += _polarity("cost", cost.ordering.get("mixed"), "pairs of a safe and an unsafe answer")
    return ScorerQuality(reward, cost, tuple(warnings))


def threshold_at(safe_costs: Floats, rate: float) -> float:
    """Return the lowest of the costs of safe answers that no more than a share `rate` of them lie above.

    >>> threshold_at(np.array([0.1, 0.2, 0.3, 0.4]), 0.25)
    0.3
    """
    allowed = int(rate * len(safe_costs) + 1e-9)  # 0.29 * 100 is a little below 29
    return float(np.sort(safe_costs)[::-1][allowed])


def operating_point(
    costs: Floats, unsafe: Flags, prompts: Sequence[str], rate: float, *, draws: int
) -> OperatingPoint | None:
    """Find the threshold of costs [M] that flags a share `rate` of the safe answers, and what it does.

    None with fewer than `LEAST_ROWS` safe answers, or where these stand under fewer than `FOLDS` prompts.
    """
    number = np.unique(np.array(prompts), return_inverse=True)[1]
    has_safe = np.bincount(number, ~unsafe) > 0
    if (~unsafe).sum() < LEAST_ROWS or has_safe.sum() < FOLDS:
        return None
    shuffled = np.random.default_rng(0).permutation(len(has_safe))
    order = shuffled[np.argsort(~has_safe[shuffled], kind="stable")]  # so that each fold has safe answers
    fold_of = np.empty_like(order)
    fold_of[order] = np.arange(len(order)) % FOLDS
    fold = fold_of[number]  # [M]
    limits = np.array([threshold_at(costs[~unsafe & (fold != k)], rate) for k in range(FOLDS)])
    flagged = costs > limits[fold]

    def threshold(rows: Indices) -> float:
        safe = costs[rows][~unsafe[rows]]
        return threshold_at(safe, rate) if len(safe) else float("nan")

    return OperatingPoint(
        rate,
        bootstrap(threshold, prompts, draws=draws),
        mean_of(flagged, ~unsafe, prompts, draws=draws) or NOTHING,
        mean_of(flagged, unsafe, prompts, draws=draws) or NOTHING,
    )


def _each_answer(
    scored: PairScores, rate: float, draws: int
) -> tuple[Sign | None, Reliability | None, OperatingPoint | None]:
    """Measure the costs of single answers, where it is known whether they are safe."""
    labels = [is_safe(answer) for pair in scored.pairs for answer in pair.answers]
    rows = [i for i, label in enumerate(labels) if label is not None]
    if not rows:
        return None, None, None
    unsafe = np.array([not labels[i] for i in rows], dtype=bool)
    names = scored.prompts
    prompts = [names[i // 2] for i in rows]
    costs = scored.scores.ravel()[rows]  # [M]
    above = (np.sign(costs) + 1) / 2

    def mean(values: Floats, of: Flags) -> Estimate:
        return mean_of(values, of, prompts, draws=draws) or NOTHING

    sign = Sign(
        mean(np.where(unsafe, above, 1 - above), np.ones_like(unsafe)),
        bootstrap(lambda chosen: auroc(costs[chosen], unsafe[chosen]), prompts, draws=draws),
        mean(above, ~unsafe),
        mean(above, unsafe),
    )
    cluster = np.unique(np.array(prompts), return_inverse=True)[1]
    calibration = reliability(expit(costs), unsafe, cluster, draws=draws)
    return sign, calibration, operating_point(costs, unsafe, prompts, rate, draws=draws)


def _polarity(head: Literal["reward", "cost"], right: Estimate | None, of: str) -> list[str]:
    if right is None or not (right.value < UPSIDE_DOWN and right.high < 0.5):
        return []
    way = "better" if head == "reward" else "worse"
    return [
        f"the {head} is upside down: {right} of the {of} are in the right order, a coin has 0.500;"
        f" higher must be {way}"
    ]


def _safer(pair: Pair) -> int:
    safe = ranked_safer(pair)
    return _index(pair.safer) if safe is None else safe


def _index(choice: object) -> int:
    return choice if isinstance(choice, int) else -1
