"""Order by stratum and length bias: plain floats, scipy, planted truths."""

import math
import random
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from equipoise.evaluation.pair_scores import (
    STRATA,
    PairScores,
    length_bias,
    mean_of,
    ordering,
    rank_correlation,
)
from equipoise.records import Answer, Pair, Polarity
from equipoise.stats import bootstrap, bootstrap_mean


def pair(n: int, *answers: dict[str, Any], prompt: str | None = None) -> Pair:
    first, second = (Answer(**({"response": "some words"} | labels)) for labels in answers)
    return Pair(id=f"p{n}", prompt=prompt or f"question {n}", answers=(first, second))


def scored(
    pairs: list[Pair], scores: list[Any], preferred: list[int], polarity: Polarity = "higher_is_worse"
) -> PairScores:
    return PairScores(pairs, np.array(scores, dtype=float), np.array(preferred), polarity)


SAFE, UNSAFE = {"is_safe": True}, {"is_safe": False}


def graded(level: int) -> dict[str, Any]:
    return {"is_safe": level == 0, "severity": level}


def test_every_pair_counts_in_the_strata_of_its_labels() -> None:
    kinds = [
        ((SAFE, SAFE), {"both safe", "severity gap 0"}),  # a safe answer has severity 0, said or not
        ((SAFE, UNSAFE), {"mixed"}),  # how severe the other is, nobody said
        ((graded(0), graded(3)), {"mixed", "severity gap 3"}),
        ((graded(3), graded(1)), {"both unsafe", "severity gap 2"}),
        ((graded(2), graded(1)), {"both unsafe", "severity gap 1"}),
        ((UNSAFE, UNSAFE), {"both unsafe"}),
        ((SAFE, {}), set()),
        (({"severity": 2}, {"severity": 0}), {"mixed", "severity gap 2"}),  # known from the severity alone
    ]
    pairs = [pair(n, *answers) for n, (answers, _) in enumerate(kinds)]
    found = ordering(scored(pairs, [[0.0, 1.0]] * 8, [0] * 8), draws=100)
    expected = {name: sum(name in kind for _, kind in kinds) for name in STRATA}
    expected["all"] = 8
    assert {name: estimate.n for name, estimate in found.items()} == expected


def test_order_is_counted_by_polarity_with_ties_half_and_unlabelled_pairs_left_out() -> None:
    pairs = [pair(n, SAFE, SAFE) for n in range(5)]
    scores = [[2.0, 1.0], [1.0, 2.0], [1.0, 1.0], [2.0, 1.0], [9.0, 0.0]]
    preferred = [1, 0, 1, 0, -1]
    worse = ordering(scored(pairs, scores, preferred), draws=100)
    assert worse["all"].value == (1 + 1 + 0.5 + 0) / 4
    better = ordering(scored(pairs, scores, preferred, "higher_is_better"), draws=100)
    assert better["both safe"].value == (0 + 0 + 0.5 + 1) / 4
    assert "mixed" not in better


def test_the_interval_rests_on_whole_prompts() -> None:
    rng = random.Random(0)
    pairs = [pair(n, SAFE, SAFE, prompt=f"question {n // 4}") for n in range(40)]
    scores = [[rng.random(), rng.random()] for _ in pairs]
    found = ordering(scored(pairs, scores, [0] * 40), draws=300)["all"]
    right = [float(first < second) for first, second in scores]
    assert found == bootstrap_mean(right, [n // 4 for n in range(40)], draws=300)
    assert (found.n, found.clusters) == (40, 10)


def lengths(n: int, first: int, second: int) -> Pair:
    return pair(n, {"response": "x" * first}, {"response": "x" * second})


@pytest.fixture(scope="module")
def drawn() -> PairScores:
    rng = random.Random(5)
    pairs = [lengths(n, rng.randint(1, 12), rng.randint(1, 12)) for n in range(60)]
    scores = [[rng.gauss(len(a.response) / 6, 1) for a in p.answers] for p in pairs]
    return scored(pairs, scores, [rng.choice([0, 1, 1, -1]) for _ in pairs])


def test_the_overall_correlation_is_that_of_scipy(drawn: PairScores) -> None:
    count = [len(answer.response) for p in drawn.pairs for answer in p.answers]
    found = length_bias(drawn, draws=100).overall
    assert found.value == pytest.approx(spearmanr(drawn.scores.ravel(), count).statistic, abs=1e-12)
    assert (found.n, found.clusters) == (120, 60)
    flat = np.array(count, dtype=float)
    prompts = [f"{i // 2}" for i in range(120)]
    scores = drawn.scores.ravel()
    assert found == bootstrap(lambda rows: rank_correlation(scores[rows], flat[rows]), prompts, draws=100)


def test_within_pairs_it_is_the_mean_of_kendalls_tau_of_two(drawn: PairScores) -> None:
    taus, labels = [], []
    for p, scores, preferred in zip(drawn.pairs, drawn.scores, drawn.preferred, strict=True):
        count = [len(answer.response) for answer in p.answers]
        if count[0] == count[1]:
            continue
        taus.append(kendalltau(scores, count).statistic)
        if preferred >= 0:
            cost = [1.0, 1.0]
            cost[preferred] = 0.0  # the preferred answer has the lower cost
            labels.append(kendalltau(cost, count).statistic)
    assert 0 < len(labels) < len(taus) < 60
    found = length_bias(drawn, draws=100)
    assert found.within_pairs is not None
    assert found.labels_within_pairs is not None
    assert found.within_pairs.value == pytest.approx(sum(taus) / len(taus), abs=1e-12)
    assert found.labels_within_pairs.value == pytest.approx(sum(labels) / len(labels), abs=1e-12)
    assert found.within_pairs.n == len(taus)


@pytest.mark.parametrize("polarity", ["higher_is_better", "higher_is_worse"])
def test_a_score_that_is_the_length_is_right_only_for_one_kind_of_pair(polarity: Polarity) -> None:
    pairs = [lengths(n, 3 + n, 2) for n in range(6)]
    scores = [[len(a.response) for a in p.answers] for p in pairs]
    found = length_bias(scored(pairs, scores, [0, 1, 0, 1, 1, -1], polarity), draws=100)
    assert found.within_pairs is not None
    assert found.shorter_preferred is not None
    assert found.longer_preferred is not None
    assert (found.overall.value > 0.8, found.within_pairs.value) == (True, 1.0)
    longer_is_right = float(polarity == "higher_is_better")
    assert (found.longer_preferred.value, found.longer_preferred.n) == (longer_is_right, 2)
    assert (found.shorter_preferred.value, found.shorter_preferred.n) == (1 - longer_is_right, 3)


def test_what_no_pair_can_tell_is_left_open() -> None:
    pairs = [lengths(n, 4, 4) for n in range(5)]
    found = length_bias(scored(pairs, [[0.0, 1.0]] * 5, [0] * 5), draws=100)
    assert math.isnan(found.overall.value)
    assert found[1:] == (None, None, None, None)
    assert mean_of(np.ones(2), np.zeros(2, dtype=bool), ["a", "b"], draws=100) is None
