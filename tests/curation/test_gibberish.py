"""Gibberish with a likelihood of the test's own, and without a model."""

import math
import pickle
import random
from collections.abc import Sequence

import numpy as np
import pytest

from equipoise.curation.gibberish import (
    Improbable,
    Jumbled,
    Remembering,
    Repetitive,
    association,
    threshold_for,
)

SENTENCES = [
    "Could you tell me how long the bread should stay in the oven before it is done?",
    "I went to the market in the morning and bought some apples, because they were cheap.",
    "There are many ways to explain this to a child, but a picture is often the best of them.",
    "You should talk to a doctor if the pain does not go away after a few days.",
    "The old bridge was closed last year, so we have to take the road along the river.",
    "If you want to learn the language quickly, it is a good idea to read a little every day.",
    "She said that she would write to me when she had found a new place to live.",
    "This is not the first time that the company has changed its mind about the price.",
]


def letters(texts: Sequence[str]) -> list[float]:
    """A likelihood that can be counted by hand: less the longer the words."""
    return [-sum(map(len, text.split())) / len(text.split()) for text in texts]


def shuffled(text: str, rng: random.Random) -> str:
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def test_what_is_under_the_threshold_is_gibberish_and_short_texts_are_not_asked_for() -> None:
    asked: list[str] = []

    def likelihood(texts: Sequence[str]) -> list[float]:
        asked.extend(texts)
        return letters(texts)

    check = Improbable(likelihood, threshold=-4.0, min_words=3)
    texts = ["a b c", "abcde abcde abcde", "abcdefgh abcdefgh", "abcd abcd abcd"]
    assert check.reasons(texts) == [None, "gibberish", None, None]
    assert asked == [texts[0], texts[1], texts[3]]
    assert check(texts[1]) == "gibberish"


def test_the_threshold_for_a_model_leaves_out_the_share_that_was_asked_for() -> None:
    values = np.random.default_rng(0).normal(-4, 1, 1000).tolist()
    threshold = threshold_for(values, 0.03)
    assert sum(value < threshold for value in values) == 30


def test_without_a_model_order_is_heard_in_plain_english() -> None:
    rng = random.Random(0)
    check = Jumbled()
    assert [check(text) for text in SENTENCES] == [None] * len(SENTENCES)
    fakes = [shuffled(text, rng) for text in SENTENCES for _ in range(10)]
    assert sum(check(text) == "gibberish" for text in fakes) >= 0.6 * len(fakes)
    real, fake = (np.mean([association(t) for t in texts]) for texts in (SENTENCES, fakes))
    assert real > 0 > fake


def test_without_a_model_short_texts_pass() -> None:
    assert Jumbled()("of the of the of the of") is None
    assert Jumbled()("") is None


def test_what_was_never_seen_counts_as_chance() -> None:
    """Two words that the corpus does not hold: their classes may have met, but hardly more than by chance."""
    assert abs(association("Zzyzx 123456 \u2603")) < math.log(4)
    assert association("") == 0


def test_going_round_in_circles_is_repetitive() -> None:
    loop = "I am a little model and " * 8
    assert Repetitive()(loop) == "repetitive"
    assert Repetitive()(" ".join(SENTENCES)) is None
    assert Repetitive()("no no no no no") is None  # too short to say
    words = [str(i) for i in range(20)]  # 38 runs of three in twice 20 words; 18 of them stood before
    assert Repetitive(share=18 / 38)(" ".join(words * 2)) == "repetitive"
    assert Repetitive(share=18 / 38 + 1e-9)(" ".join(words * 2)) is None


@pytest.mark.parametrize("check", [Jumbled(), Repetitive(), Improbable(letters)])
def test_filters_can_be_compared(check: object) -> None:
    assert check == type(check)(*vars(check).values())
    if not isinstance(check, Improbable):
        assert pickle.loads(pickle.dumps(check)) == check


def test_a_remembered_likelihood_reads_each_text_once() -> None:
    asked: list[list[str]] = []

    def length(texts: Sequence[str]) -> list[float]:
        asked.append(list(texts))
        return [float(len(text)) for text in texts]

    remembered = Remembering(length)
    assert remembered(["bread", "tea", "bread"]) == [5.0, 3.0, 5.0]
    assert remembered(["tea", "coffee"]) == [3.0, 6.0]
    assert remembered(["bread"]) == [5.0]
    assert asked == [["bread", "tea"], ["coffee"]]
