"""The TF-IDF baseline finds what was planted in rows, on prompts that it has not seen."""

import random

import numpy as np
import pytest

from equipoise.errors import DataError
from equipoise.evaluation.baseline import safer_scores, unsafe_scores
from equipoise.records import Answer, Exchange, Pair
from equipoise.stats import auroc

WORDS = ("river", "stone", "lamp", "paper", "garden", "window", "copper", "bridge", "winter", "market")


def sentence(rng: random.Random, marker: str = "") -> str:
    words = [rng.choice(WORDS) for _ in range(8)]
    if marker:
        words.insert(rng.randrange(9), marker)
    return " ".join(words)


def exchanges(count: int, seed: int, name: str, *, marker: str = "thistle") -> list[Exchange]:
    """Two per prompt; the marker stands in unsafe responses only."""
    rng = random.Random(seed)
    rows = []
    for n in range(count):
        is_safe = rng.random() < 0.5
        text = sentence(rng, "" if is_safe else marker)
        rows.append(Exchange(id=f"{n}", prompt=f"{name} {n // 2}", response=text, is_safe=is_safe))
    return rows


def pairs(count: int, seed: int, name: str, *, second: float = 0.5) -> list[Pair]:
    """The marker stands in the less safe answer; the second is the safer one with probability `second`."""
    rng = random.Random(seed)
    rows = []
    for n in range(count):
        safer = int(rng.random() < second)
        answers = tuple(Answer(response=sentence(rng, "" if k == safer else "thistle")) for k in (0, 1))
        rows.append(Pair(id=f"{n}", prompt=f"{name} {n}", answers=(answers[0], answers[1]), safer=safer))
    return rows


def swapped(pair: Pair) -> Pair:
    first, second = pair.answers
    return pair.model_copy(update={"answers": (second, first), "safer": 1 - int(pair.safer or 0)})


def test_a_planted_word_is_found_in_unseen_responses() -> None:
    test = exchanges(60, 1, "other")
    scores = unsafe_scores(exchanges(240, 0, "train"), test)
    assert scores.shape == (60,)
    assert ((scores > 0) & (scores < 1)).all()
    assert auroc(scores, [not e.is_safe for e in test]) > 0.98


def test_without_a_planted_word_nothing_is_found() -> None:
    test = exchanges(200, 1, "other", marker="")
    scores = unsafe_scores(exchanges(200, 0, "train", marker=""), test)
    assert 0.35 < auroc(scores, [not e.is_safe for e in test]) < 0.65


def test_a_planted_word_orders_unseen_pairs() -> None:
    test = pairs(40, 1, "other")
    scores = safer_scores(pairs(160, 0, "train"), test)
    assert np.mean((scores > 0) == [p.safer == 1 for p in test]) > 0.95


def test_swapping_the_answers_of_test_pairs_turns_the_sign_and_nothing_else() -> None:
    train, test = pairs(60, 0, "train", second=0.9), pairs(40, 1, "other")
    scores, turned = safer_scores(train, test), safer_scores(train, [swapped(p) for p in test])
    np.testing.assert_array_equal(turned, -scores)


def test_where_the_safer_answer_stands_in_training_pairs_does_not_matter() -> None:
    train, test = pairs(60, 0, "train"), pairs(40, 1, "other")
    always_second = [p if p.safer == 1 else swapped(p) for p in train]
    scores = safer_scores(always_second, test)
    np.testing.assert_allclose(scores, safer_scores(train, test), rtol=1e-3, atol=1e-3)
    identical = [p.model_copy(update={"answers": (p.answers[0], p.answers[0])}) for p in test]
    np.testing.assert_array_equal(safer_scores(always_second, identical), 0)


def test_too_little_to_learn_from_is_said() -> None:
    test = exchanges(4, 1, "other")
    safe = [e.model_copy(update={"is_safe": True}) for e in exchanges(8, 0, "train")]
    with pytest.raises(DataError, match="8 training rows cannot be cross-validated by prompt"):
        unsafe_scores(safe, test)
    with pytest.raises(DataError, match="2 labelled responses to train on; expected those of 2 prompts"):
        unsafe_scores(exchanges(2, 0, "train"), test)
    with pytest.raises(DataError, match="0 pairs with `safer` to train on"):
        safer_scores([], pairs(4, 1, "other"))


def test_folds_that_hold_one_kind_only_are_left_out() -> None:
    """One of three prompts has both kinds; sklearn would warn of the other folds, and warnings fail here."""
    train = [
        Exchange(id=f"{n}", prompt=f"p{n // 4}", response=f"stone {'' if safe else 'thistle'}", is_safe=safe)
        for n, safe in enumerate([True, True, False, False] + [True] * 3 + [False] + [True] * 4)
    ]
    scores = unsafe_scores(train, train[:4])
    assert min(scores[2:]) > max(scores[:2])
