"""Sign, calibration, threshold and polarity of a scorer: plain floats, sklearn, planted truths."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from equipoise.evaluation.reliability import reliability
from equipoise.evaluation.scorer_quality import (
    FOLDS,
    CostQuality,
    measure_scorer,
    operating_point,
    threshold_at,
)
from equipoise.records import Answer, Pair


def planted(count: int, seed: int = 0, per_prompt: int = 2) -> tuple[list[Pair], np.ndarray]:
    """Pairs whose answers are unsafe with probability sigmoid(cost), and these costs."""
    rng = np.random.default_rng(seed)
    costs = rng.normal(0, 2, (count, 2))
    unsafe = rng.random((count, 2)) < expit(costs)
    pairs = [
        Pair(
            id=f"p{n}",
            prompt=f"question {n // per_prompt}",
            answers=tuple(Answer(response=f"answer {n}", is_safe=not bad) for bad in labels.tolist()),
            better=n % 2,
        )
        for n, labels in enumerate(unsafe)
    ]
    return pairs, costs


def cost_of(pairs: list[Pair], costs: np.ndarray, **settings: Any) -> CostQuality:
    found = measure_scorer(pairs, None, costs, **({"draws": 200} | settings))
    assert found.reward is None
    assert found.cost is not None
    return found.cost


def test_sign_and_auroc_are_those_of_the_labelled_answers() -> None:
    pairs, costs = planted(120)
    first = pairs[0].model_copy(update={"answers": (Answer(response="a"), pairs[0].answers[1])})
    pairs[0] = first  # one answer without a label
    costs[1] = 0.0  # says neither
    found = cost_of(pairs, costs).sign
    assert found is not None
    rows = [
        (c, not a.is_safe)
        for p, cs in zip(pairs, costs, strict=True)
        for a, c in zip(p.answers, cs, strict=True)
    ]
    rows = rows[1:]
    right = [0.5 if c == 0 else float((c > 0) == bad) for c, bad in rows]
    assert found.accuracy.value == pytest.approx(sum(right) / len(right), abs=1e-12)
    above = {bad: [0.5 if c == 0 else float(c > 0) for c, b in rows if b == bad] for bad in (True, False)}
    assert found.recall.value == pytest.approx(sum(above[True]) / len(above[True]), abs=1e-12)
    assert found.false_positive_rate.value == pytest.approx(sum(above[False]) / len(above[False]), abs=1e-12)
    auroc = roc_auc_score([bad for _, bad in rows], [c for c, _ in rows])
    assert found.auroc.value == pytest.approx(auroc, abs=1e-12)
    assert (found.accuracy.n, found.accuracy.clusters) == (239, 60)
    assert found.auroc.low < found.auroc.value < found.auroc.high


def test_calibration_is_that_of_the_sigmoid_and_finds_a_cost_that_is_too_sure() -> None:
    pairs, costs = planted(600)
    honest, sure = cost_of(pairs, costs).calibration, cost_of(pairs, 3 * costs).calibration
    assert honest is not None
    assert sure is not None
    assert honest.squared.low < 0 < honest.squared.high
    assert sure.squared.low > 0
    unsafe = np.array([not a.is_safe for p in pairs for a in p.answers])
    cluster = np.repeat(np.arange(600) // 2, 2)
    direct = reliability(expit(costs.ravel()), unsafe, cluster, draws=200)
    assert direct is not None
    assert honest.naive == direct.naive
    assert honest.squared.value == pytest.approx(direct.squared.value, rel=1e-12)


@pytest.mark.parametrize(("rate", "count"), [(0.05, 5), (0.29, 29), (0.005, 0), (0.999, 99)])
def test_the_threshold_is_the_lowest_that_keeps_the_rate(rate: float, count: int) -> None:
    costs = np.random.default_rng(1).normal(size=100)
    limit = threshold_at(costs, rate)
    assert (costs > limit).sum() == count
    lower = np.sort(costs)[::-1][count + 1] if count < 99 else -math.inf
    assert (costs > lower).sum() > rate * 100
    tied = threshold_at(np.array([1.0, 1.0, 1.0, 0.0]), 0.25)
    assert tied == 1.0  # any lower one would flag three of four


def test_the_operating_point_is_judged_on_prompts_that_did_not_help_to_find_it() -> None:
    pairs, costs = planted(1500, per_prompt=1)
    found = cost_of(pairs, costs, false_positive_rate=0.1).operating
    assert found is not None
    unsafe = np.array([not a.is_safe for p in pairs for a in p.answers])
    assert found.threshold.value == threshold_at(costs.ravel()[~unsafe], 0.1)
    assert found.threshold.low < found.threshold.value < found.threshold.high
    assert found.wanted == 0.1
    assert found.false_positive_rate.low < 0.1 < found.false_positive_rate.high
    recall = (costs.ravel()[unsafe] > found.threshold.value).mean()
    assert found.recall.value == pytest.approx(recall, abs=0.02)


def test_a_prompt_whose_costs_are_all_high_is_not_covered_by_its_own_threshold() -> None:
    """Of 5 prompts each is a fold, so all of the highest one lie above the threshold of the others."""
    costs = np.repeat(np.arange(5.0), 40) + np.tile(np.linspace(0, 0.5, 40), 5)
    prompts = [f"p{i // 40}" for i in range(200)]
    found = operating_point(costs, np.zeros(200, dtype=bool), prompts, 0.05, draws=100)
    assert found is not None
    # the threshold of the others lies among the highest of 160: below all of the highest prompt's costs,
    # above all of any other's
    assert found.false_positive_rate.value == 40 / 200
    assert math.isnan(found.recall.value)


def test_too_few_safe_answers_or_prompts_give_no_threshold() -> None:
    costs, safe = np.arange(200.0), np.zeros(200, dtype=bool)
    names = [f"p{i % FOLDS}" for i in range(200)]
    assert operating_point(costs, safe, names, 0.05, draws=100) is not None
    assert operating_point(costs, safe, [f"p{i % (FOLDS - 1)}" for i in range(200)], 0.05, draws=100) is None
    few = np.arange(200) >= 99
    assert operating_point(costs, few, names, 0.05, draws=100) is None


def test_a_pair_of_a_safe_and_an_unsafe_answer_is_ordered_by_these_labels() -> None:
    answers = (Answer(response="a", is_safe=True), Answer(response="b", is_safe=False))
    unranked = Pair(id="x", prompt="one", answers=answers)
    contrary = Pair(id="y", prompt="two", answers=answers, safer=1)
    ordering = cost_of([unranked, contrary], np.array([[-1.0, 1.0], [-1.0, 1.0]])).ordering
    assert (ordering["mixed"].value, ordering["mixed"].n) == (1.0, 2)


def test_a_cost_with_the_wrong_sign_is_said_to_be_upside_down() -> None:
    pairs, costs = planted(200)
    good = measure_scorer(pairs, None, costs, draws=200)
    bad = measure_scorer(pairs, None, -costs, draws=200)
    assert good.warnings == ()
    [line] = bad.warnings
    assert bad.cost is not None
    mixed = bad.cost.ordering["mixed"]
    assert line.startswith(f"the cost is upside down: {mixed} of the pairs of a safe and an unsafe answer")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("right", "of", "warned"), [(30, 100, True), (44, 100, False), (440, 1000, True), (460, 1000, False)]
)
def test_only_a_clear_case_is_called_upside_down(right: int, of: int, warned: bool) -> None:
    """44 of 100 is below the limit but a coin may do it; 460 of 1000 no coin does, but it is not below."""
    answers = (Answer(response="a", is_safe=True), Answer(response="b", is_safe=False))
    pairs = [Pair(id=f"p{n}", prompt=f"q{n}", answers=answers) for n in range(of)]
    costs = np.array([[-1.0, 1.0] if n < right else [1.0, -1.0] for n in range(of)])
    assert bool(measure_scorer(pairs, None, costs, draws=300).warnings) == warned


def test_a_reward_is_measured_by_better_and_may_be_upside_down_too() -> None:
    pairs, _ = planted(60)
    rewards = np.array([[0.0, 1.0] if p.better == 1 else [1.0, 0.0] for p in pairs])
    good, bad = (measure_scorer(pairs, sign * rewards, None, draws=100) for sign in (1, -1))
    assert good.cost is None
    assert good.reward is not None
    assert (good.reward.ordering["all"].value, good.warnings) == (1.0, ())
    assert [line.split(":")[0] for line in bad.warnings] == ["the reward is upside down"]


def test_pairs_without_safety_labels_are_measured_by_safer_alone() -> None:
    answers = (Answer(response="a"), Answer(response="bb"))
    pairs = [Pair(id=f"p{n}", prompt=f"q{n}", answers=answers, safer=0) for n in range(4)]
    found = cost_of(pairs, np.array([[0.0, 1.0]] * 4))
    assert found[2:] == (None, None, None)
    assert list(found.ordering) == ["all"]
