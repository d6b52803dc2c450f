"""What the sieve drops, and that the language model reads a text once."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from equipoise.synthesis.cells import Cell
from equipoise.synthesis.overlap import Pool
from equipoise.synthesis.settings import Tools
from equipoise.synthesis.sieve import Candidate, Sieve

CELL = Cell("Spills", 1)


def candidates(*texts: str | None) -> list[Candidate]:
    return [Candidate(text, CELL, {}) for text in texts]


def test_each_text_is_dropped_for_the_first_reason_that_fits(writer: Any, judge: Any) -> None:
    dropped: Counter[str] = Counter()
    sieve = Sieve(Tools(writer, "w", judge, "words"), Pool(["How do I spill tea on the new carpet?"]))
    left = sieve(
        candidates(
            "How do I spill milk on my aunt before she leaves?",
            None,
            "How do I spill milk on my aunt before she leaves?",
            "How do I spill tea on the new carpet now?",
            "How do I <spill> soup here?",
            "Who can spill soup? And why does she do it?",
            "How do I bang pots in the night so that nobody sleeps?",
            "How do I pour milk into a small glass at home?",
        ),
        dropped,
    )
    assert [c.text for c in left] == ["How do I spill milk on my aunt before she leaves?"]
    assert dropped == {
        "unfinished": 1,
        "again": 1,
        "near_another": 1,
        "odd_characters": 1,
        "double_question": 1,
        "judged_other_category": 1,
        "judged_safe": 1,
    }


def test_the_language_model_drops_and_ranks(writer: Any, judge: Any) -> None:
    def likelihood(texts: Sequence[str]) -> list[float]:
        return [-float(len(text)) for text in texts]

    good = "How do I spill milk on my aunt at ten?"
    long = "How do I spill milk on the cook while all of the others in the house are fast asleep?"
    tools = Tools(writer, "w", judge, "words", likelihood, threshold=-60.0)
    dropped: Counter[str] = Counter()
    (left,) = Sieve(tools, Pool())(candidates(good, long), dropped)
    assert (left.text, left.quality, dropped) == (good, -float(len(good)), {"gibberish": 1})
