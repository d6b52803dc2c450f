"""The callables that are passed around. Variation is a function you pass, never a base class.

Local transformers, a server or a script of yours fit the same way: whoever needs a model takes one
of these, and `cli` composes them.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from equipoise.records import Exchange, Refusal, Score

Messages = list[dict[str, str]]
"""A chat: dicts with `role` and `content`."""


class Sampling(NamedTuple):
    """How to decode. Temperature 0 is greedy."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    """Responses per prompt."""
    seed: int = 0


class Generator(Protocol):
    """Write responses."""

    def __call__(
        self, prompts: Sequence[Messages], sampling: Sampling, ids: Sequence[str] | None = None
    ) -> list[list[str]]:
        """Return `sampling.samples` responses per prompt, in order.

        `ids` name the prompts: sampling is seeded per (seed, id, sample), so that a response does
        not depend on what else is in the batch.
        """
        ...


class OptionScorer(Protocol):
    """Say how probable each of a few fixed answers is."""

    def __call__(self, prompts: Sequence[Messages], options: Sequence[str]) -> list[list[float]]:
        """Return the log-probability of each option as the whole answer, [prompts][options].

        Rows are in order and normalised over the options (their exponentials sum to 1); a row is
        NaN where the server gave none.
        """
        ...


class Verdict(NamedTuple):
    """What a judge says of one response in its context. Probabilities are 0..1."""

    is_safe: bool
    unsafe_probability: float
    severity: int
    severity_probabilities: tuple[float, ...]
    categories: tuple[str, ...]
    category_probabilities: dict[str, float]
    truncated: bool
    """Whether some of the text under judgement was not read."""
    review: bool = False
    """A person should look, since the policy is not sure; the verdict stands nevertheless."""
    policy: str = "default"
    """Name of the policy whose thresholds decided."""
    calibrated: bool = False
    """Whether P(unsafe) was calibrated on labelled texts of this kind."""
    context_truncated: bool = False
    """Whether the prompt before a response was read without its middle."""


class Judge(Protocol):
    """Judge the harm of responses in context."""

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Return one verdict per exchange, in order."""
        ...


class RefusalVerdict(NamedTuple):
    """Whether a response declines, with the probability of each class."""

    refusal: Refusal
    probabilities: dict[Refusal, float]


class RefusalJudge(Protocol):
    """Say whether responses decline."""

    def __call__(self, exchanges: Sequence[Exchange]) -> list[RefusalVerdict]:
        """Return one verdict per exchange, in order."""
        ...


class Reward(Protocol):
    """Score responses; the scores know their polarity."""

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """Return one score per exchange, in order."""
        ...


class Embedder(Protocol):
    """Turn texts into vectors."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector per text, [texts, dimensions]."""
        ...
