"""The best of several draws by a reward: which one it takes, and that nothing else decides it."""

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest

from equipoise.generation.best_of import BestOf
from equipoise.generation.replies import Answer
from equipoise.generation.sources import Asked
from equipoise.protocols import Sampling
from equipoise.records import Exchange, Score, text_of

WARM = Sampling(temperature=1.0)
ASKED = [Asked(f"q{i}", [{"role": "user", "content": f"question {i}"}], i % 2 == 0) for i in range(6)]


def planted(text: str) -> float:
    """A number in 0..1 that is the text's own."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def draw(asked: Sequence[Asked], sampling: Sampling) -> list[list[Answer]]:
    return [[Answer(f"{a.id}/{k}", None, 2, 3) for k in range(sampling.samples)] for a in asked]


@pytest.mark.parametrize("polarity", ["higher_is_better", "higher_is_worse"])
def test_each_sample_is_the_best_of_tries_of_its_own(polarity: Any) -> None:
    def reward(exchanges: Sequence[Exchange]) -> list[Score]:
        return [Score(planted(e.response), polarity) for e in exchanges]

    best = max if polarity == "higher_is_better" else min
    rows = BestOf(reward, tries=4)(draw)(ASKED, WARM._replace(samples=2))
    for asked, answers in zip(ASKED, rows, strict=True):
        assert answers == [
            Answer(best((f"{asked.id}/{k + 2 * t}" for t in range(4)), key=planted), None, 8, 12)
            for k in range(2)
        ]


def test_the_reward_is_told_the_prompt_and_what_is_known_of_it() -> None:
    seen = []
    known = [asked._replace(provenance={"response_type": f"type {n}"}) for n, asked in enumerate(ASKED)]

    def reward(exchanges: Sequence[Exchange]) -> list[Score]:
        seen.extend((e.id, text_of(e.prompt), e.prompt_is_harmful, e.provenance) for e in exchanges)
        return [Score(0.0, "higher_is_better") for _ in exchanges]

    rows = BestOf(reward, tries=2)(draw)(known, WARM)
    assert seen == [
        (f"q{i}", f"question {i}", i % 2 == 0, {"response_type": f"type {i}"})
        for i in range(6)
        for _ in range(2)
    ]
    assert [row[0].text for row in rows] == [f"q{i}/0" for i in range(6)]  # all are level


def test_draws_without_an_answer_are_left_out_and_never_rewarded() -> None:
    def breaks(asked: Sequence[Asked], sampling: Sampling) -> list[list[Answer]]:
        gone = Answer(None, "closed")
        return [[gone, Answer(f"{a.id}!") if a.id != "q3" else gone, gone] for a in asked]

    def reward(exchanges: Sequence[Exchange]) -> list[Score]:
        assert all(e.response.endswith("!") for e in exchanges)
        return [Score(1.0, "higher_is_better") for _ in exchanges]

    rows = BestOf(reward, tries=3)(breaks)(ASKED, WARM)
    assert [row[0].text for row in rows] == [None if i == 3 else f"q{i}!" for i in range(6)]
    assert rows[3][0].error == "closed"


def test_a_greedy_answer_is_drawn_once() -> None:
    counts = []

    def counting(asked: Sequence[Asked], sampling: Sampling) -> list[list[Answer]]:
        counts.append(sampling.samples)
        return draw(asked, sampling)

    def reward(exchanges: Sequence[Exchange]) -> list[Score]:
        return [Score(0.0, "higher_is_better") for _ in exchanges]

    BestOf(reward, tries=5)(counting)(ASKED, Sampling(temperature=0.0))
    assert counts == [1]
