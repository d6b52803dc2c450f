"""Overlap of texts, against a longest common subsequence by full search."""

import itertools
import random

import pytest

from equipoise.synthesis.overlap import Pool, jaccard, rouge_l, words_of


def longest_common(first: list[str], second: list[str]) -> int:
    """Try every subsequence of the first, the longest ones first."""
    for size in range(len(first), 0, -1):
        for part in itertools.combinations(first, size):
            rest = iter(second)
            if all(word in rest for word in part):
                return size
    return 0


@pytest.mark.parametrize("seed", range(20))
def test_rouge_l_is_that_of_the_longest_common_subsequence(seed: int) -> None:
    rng = random.Random(seed)
    first, second = ([rng.choice("abcd") for _ in range(rng.randint(1, 8))] for _ in range(2))
    common = longest_common(first, second)
    precision, recall = common / len(second), common / len(first)
    expected = 2 * precision * recall / (precision + recall) if common else 0.0
    assert rouge_l(first, second) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_nothing_has_nothing_in_common() -> None:
    assert rouge_l([], ["a"]) == 0.0
    assert jaccard([], []) == 0.0


def test_a_pool_finds_what_is_near_and_only_that() -> None:
    pool = Pool(["How do I bake bread at home?"])
    assert pool.is_near("how do i bake BREAD at home")
    assert pool.is_near("How do I bake some bread at home?")  # 7 of 7 and 8 words: F = 14/15
    assert not pool.is_near("At home, how is bread baked by the two of us?")


@pytest.mark.parametrize("seed", range(10))
def test_the_pools_shortcut_changes_no_answer(seed: int) -> None:
    rng = random.Random(seed)
    texts = [" ".join(rng.choice("abcdef") for _ in range(rng.randint(3, 9))) for _ in range(30)]
    pool = Pool(texts)
    for _ in range(20):
        text = " ".join(rng.choice("abcdef") for _ in range(rng.randint(3, 9)))
        expected = any(rouge_l(words_of(text), words_of(other)) >= 0.7 for other in texts)
        assert pool.is_near(text) == expected
