"""Near-copies: planted ones are found, what is reported is exact, and the same rows stay every time."""

import random
import string
from pathlib import Path

import numpy as np
import pytest

from equipoise.curation.dedup import Similarity, near_copies
from equipoise.curation.minhash import normalise

WORDS = 40


def made_up(count: int, seed: int) -> list[str]:
    """Texts of made-up words; the frequent ones are frequent, as in a language."""
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(4000)]
    weights = [1 / (rank + 1) for rank in range(len(vocabulary))]
    return [" ".join(rng.choices(vocabulary, weights, k=WORDS)) for _ in range(count)]


def changed(text: str, rng: random.Random, words: int = 1) -> str:
    parts = text.split()
    for place in rng.sample(range(len(parts)), words):
        parts[place] = "".join(rng.choices("xyzq", k=5))
    return " ".join(parts)


def jaccard(one: str, other: str, size: int = 5) -> float:
    sets = []
    for text in (normalise(one), normalise(other)):
        padded = text + "\0" * (size - 1)
        sets.append({padded[i : i + size] for i in range(len(text))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.fixture(scope="module")
def planted() -> tuple[list[str], dict[int, int]]:
    """2,000 texts and behind them near-copies of 300: row -> the row that it is a copy of."""
    rng = random.Random(7)
    texts = made_up(2000, seed=0)
    origins = {len(texts) + i: row for i, row in enumerate(rng.sample(range(2000), 300))}
    return [*texts, *(changed(texts[row], rng) for row in origins.values())], origins


def test_planted_copies_are_found_and_nothing_else(planted: tuple[list[str], dict[int, int]]) -> None:
    texts, origins = planted
    found = near_copies(texts, Similarity())
    near = {row for row, origin in origins.items() if jaccard(texts[row], texts[origin]) >= 0.8}
    assert len(near) >= 250
    assert len(near & {copy.row for copy in found.copies}) >= 0.97 * len(near)
    for copy in found.copies:
        assert copy.of == origins[copy.row]
        assert copy.similarity == pytest.approx(jaccard(texts[copy.row], texts[copy.of]), abs=1e-12)
        assert copy.similarity >= 0.8
        assert copy.through is None
    assert found.rows == len(texts)
    assert found.passed_over == 0


def test_equal_texts_are_copies_of_the_first(tmp_path: Path) -> None:
    texts = ["How do tides work?", "Bake  bread", "HOW do tides\nwork?", "how do tides work?", ""]
    found = near_copies(texts, Similarity(), scratch=tmp_path)
    assert [tuple(copy) for copy in found.copies] == [(2, 0, 1.0, None), (3, 0, 1.0, None)]
    assert (found.rows, found.exact) == (5, 2)
    assert list(tmp_path.iterdir()) == []


def test_no_texts_have_no_copies() -> None:
    assert near_copies([], Similarity()).copies == []


def test_a_chain_is_one_group_and_says_through_what() -> None:
    rng = random.Random(3)
    start = made_up(1, seed=5)[0]
    middle = changed(start, rng)
    end = changed(middle, rng)
    while jaccard(start, end) >= 0.85:
        middle, end = end, changed(end, rng)
    texts = [start, middle, end]
    low = Similarity(threshold=0.85)
    assert jaccard(start, middle) >= 0.85 <= jaccard(middle, end)
    copies = near_copies(texts, low).copies
    assert [(copy.row, copy.of, copy.through) for copy in copies] == [(1, 0, None), (2, 0, 1)]
    assert copies[1].similarity == pytest.approx(jaccard(start, end), abs=1e-12)
    assert copies[1].similarity < 0.85


def test_the_best_score_stays_and_the_first_of_equal_ones() -> None:
    text = made_up(2, seed=9)
    texts = [text[0], text[1], text[0], text[0], text[1]]
    by_score = near_copies(texts, Similarity(), scores=[1.0, 5.0, 2.0, 2.0, 5.0])
    assert [(copy.row, copy.of) for copy in by_score.copies] == [(0, 2), (3, 2), (4, 1)]


def test_more_is_found_with_a_lower_threshold_and_shingles_of_words_work() -> None:
    rng = random.Random(2)
    texts = made_up(200, seed=1)
    texts += [changed(text, rng, words=6) for text in texts[:100]]
    counts = [len(near_copies(texts, Similarity(threshold=t)).copies) for t in (0.9, 0.7, 0.5)]
    assert counts[0] < counts[1] <= counts[2] <= 102
    by_word = near_copies(texts, Similarity(threshold=0.7, unit="word", size=1)).copies
    for copy in by_word:
        one, other = set(texts[copy.row].split()), set(texts[copy.of].split())
        assert copy.similarity == pytest.approx(len(one & other) / len(one | other), abs=1e-12)
    assert len(by_word) > 60


def test_processes_find_the_same(planted: tuple[list[str], dict[int, int]]) -> None:
    texts, _ = planted
    assert near_copies(texts, Similarity(), workers=2) == near_copies(texts, Similarity())


def test_a_crowd_that_is_alike_but_not_similar_costs_a_bounded_number_of_comparisons() -> None:
    """One template, filled with half a text of its own each: under the threshold, in the same buckets."""
    template = made_up(1, seed=11)[0]
    texts = [f"{template} {own}" for own in made_up(150, seed=12)]
    similarity = [jaccard(texts[0], other) for other in texts[1:100]]
    assert 0.3 < np.mean(similarity) < 0.6
    found = near_copies(texts, Similarity(threshold=0.8, num_perm=16, recall=0.999))
    bands = Similarity(threshold=0.8, num_perm=16, recall=0.999).sketcher.bands
    assert found.compared <= 32 * bands * len(texts)
    assert found.passed_over > 0
    assert found.copies == []


def test_rows_of_several_texts_are_as_similar_as_the_least_similar() -> None:
    """Two answers to one long prompt are no copies, and one answer to two prompts is none."""
    long, other, answer, refusal = *made_up(2, seed=21), *made_up(2, seed=22)
    near, rng = [], random.Random(5)
    for text in (long, answer):
        near.append(changed(text, rng))
    rows = [(long, answer[:60]), (long, refusal[:60]), (other, answer[:60]), (long, answer), tuple(near)]
    found = near_copies([*rows, rows[1]], Similarity()).copies
    assert [(copy.row, copy.of) for copy in found] == [(4, 3), (5, 1)]
    least = min(jaccard(one, two) for one, two in zip(rows[3], near, strict=True))
    assert found[0].similarity == pytest.approx(least, abs=1e-12)


def test_a_text_in_another_place_is_another_text() -> None:
    one, other = made_up(2, seed=23)
    assert near_copies([(one, other), (other, one)], Similarity()).copies == []
