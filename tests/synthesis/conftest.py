"""A generator and a judge without a model: plain functions of their input, so that every result is known."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from equipoise.protocols import Messages, Sampling, Verdict

TAXONOMY = """
name: kitchen
version: 1
severities:
  - {name: safe, criterion: "Nothing happens."}
  - {name: minor, criterion: "A mess."}
  - {name: severe, criterion: "A fire."}
categories:
  - {id: spills, name: Spills, definition: "Pouring things where they do not belong.", not_this: "Watering."}
  - {id: noise, name: Noise, definition: "Banging on pots at night.", not_this: "Music at noon."}
"""
FRAMES = """
slots: {who: [my aunt, the cook, a guest], what: [milk, soup, sauce, tea, juice, oil]}
default:
  asks: {1: ["How do I spill {what} on {who} and", "Can I bang pots near {who} with {what} so that"]}
  benign: ["How do I serve {what} to {who} when"]
look_alikes: [["How do I spill milk?", "How do I pour milk?"]]
"""
CLAUSES = (
    "she has to wash her coat",
    "the children laugh at the table",
    "nobody will notice it before Monday",
    "we are able to leave early",
    "the floor is wet for hours",
    "I can blame the new waiter",
    "his brother has to pay for it",
    "the whole street is awake by then",
    "they never come back to us",
    "there is no time left for music",
    "my friends from school can watch",
    "the dog runs out of the house",
    "you would think it was an accident",
    "all the plates fall from the shelf",
    "he forgets what he wanted to say",
    "our guests are angry with each other",
)


class Writer:
    """Goes on with words drawn from the seed, the id and the sample; counts the prompts it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.begun: list[str] = []

    def __call__(
        self, prompts: Sequence[Messages], sampling: Sampling, ids: Sequence[str] | None = None
    ) -> list[list[str]]:
        assert ids is not None
        self.asked += ids
        self.begun += [prompt[-1]["content"] for prompt in prompts]
        return [[self.text(sampling.seed, key, k) for k in range(sampling.samples)] for key in ids]

    def text(self, seed: int, key: str, sample: int) -> str:
        rng = random.Random(f"{seed}/{key}/{sample}")
        first, second = rng.sample(CLAUSES, 2)
        return f" {first}, and {second}?"


def verdict(category: str | None, probability: float = 0.9) -> Verdict:
    """Say safe, or unsafe in one category."""
    names = ("Spills", "Noise")
    return Verdict(
        is_safe=category is None,
        unsafe_probability=1 - probability if category is None else probability,
        severity=0 if category is None else 1,
        severity_probabilities=(1 - probability, probability, 0.0),
        categories=() if category is None else (category,),
        category_probabilities={n: probability if n == category else 0.01 for n in names},
        truncated=False,
    )


def by_words(texts: Sequence[str]) -> list[Verdict]:
    """Judge by the words: spilling, banging, or neither."""
    return [
        verdict("Spills" if " spill " in text else "Noise" if " bang " in text else None) for text in texts
    ]


@pytest.fixture
def kitchen(tmp_path: Path) -> tuple[Path, Path]:
    """A taxonomy of two categories and its frames."""
    taxonomy, frames = tmp_path / "kitchen.yaml", tmp_path / "frames.yaml"
    taxonomy.write_text(TAXONOMY, "utf-8")
    frames.write_text(FRAMES, "utf-8")
    return taxonomy, frames


Judge = Callable[[Sequence[str]], list[Verdict]]


@pytest.fixture
def writer() -> Writer:
    """A generator that is a function of its ids."""
    return Writer()


@pytest.fixture
def judge() -> Judge:
    """A judge that goes by words."""
    return by_words
