"""Ask a language model a question: by the log-probabilities of the options, or in writing.

Log-probabilities let models answer that are too small to keep to a form. An answer that is not one of the
options is missing, never a guess, and above all never "safe".
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pydantic import JsonValue

from equipoise.errors import DataError, ModelError
from equipoise.judges.questions import PREFERENCES, Question, Questions
from equipoise.protocols import Generator, Messages, OptionScorer, Sampling

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Texts that say nothing, as in Zhao et al. 2021, section 5."""

_FLOOR = -100.0  # JSON cannot hold -inf

Priors = Mapping[str, Sequence[float]]
"""Question key -> probability of each option when there is nothing to judge."""


class Answer(NamedTuple):
    """What was answered to one question."""

    picked: tuple[int, ...] | None
    """Indices of the chosen options; None where the answer is missing."""
    logps: tuple[float, ...] | None
    """Log-probability of each option in nats, calibrated where there are priors; None if it was written."""
    raw: JsonValue
    """The written answer, or the log-probabilities as they came."""
    missing: str | None = None
    """Why there is no answer: `unparsable`, or `no_answer` where the prompt did not fit or nothing came."""


Asker = Callable[[Question, Sequence[Messages]], list[Answer]]
"""Asks one question about several things; one answer each, in order."""


@dataclass(frozen=True)
class OptionAsker:
    """The likeliest option is the answer."""

    scorer: OptionScorer
    priors: Priors | None = None
    """From `measure_priors`; None leaves the probabilities as they are."""

    def __call__(self, question: Question, prompts: Sequence[Messages]) -> list[Answer]:
        """Return one answer per prompt; a row of NaN is `no_answer`."""
        rows = self.scorer(prompts, question.options) if prompts else []
        return [self._answer(question, row) for row in rows]

    def _answer(self, question: Question, row: Sequence[float]) -> Answer:
        if any(math.isnan(value) for value in row):
            return Answer(None, None, None, "no_answer")
        logps = tuple(max(value, _FLOOR) for value in row)
        raw: JsonValue = [round(value, 6) for value in logps]
        if self.priors is not None:
            logps = contextual(logps, self.priors[question.key])
        return Answer((max(range(len(logps)), key=logps.__getitem__),), logps, raw)


@dataclass(frozen=True)
class TextAsker:
    """The answer is what the model writes, greedily, if it is an option and nothing else."""

    generator: Generator
    """An answer that it could not get is an empty text."""
    max_new_tokens: int = 32
    check: Callable[[Messages, Sampling], object] | None = None
    """Raises DataError for a prompt that the generator cannot take."""

    def __call__(self, question: Question, prompts: Sequence[Messages]) -> list[Answer]:
        """Return one answer per prompt; no text is `no_answer`, one that is no option is `unparsable`."""
        sampling = Sampling(self.max_new_tokens)
        fitting = [i for i, prompt in enumerate(prompts) if self._fits(prompt, sampling)]
        answers = [Answer(None, None, None, "no_answer")] * len(prompts)
        written = self.generator([prompts[i] for i in fitting], sampling) if fitting else []
        for i, (text,) in zip(fitting, written, strict=True):
            if text:
                picked = question.parse(text)
                answers[i] = Answer(picked, None, text, None if picked is not None else "unparsable")
        return answers

    def _fits(self, prompt: Messages, sampling: Sampling) -> bool:
        if self.check is not None:
            try:
                self.check(prompt, sampling)
            except DataError:
                return False
        return True


def contextual(logps: Sequence[float], prior: Sequence[float]) -> tuple[float, ...]:
    """log of (p / prior), normalised: what an option gains over saying nothing. Zhao et al. 2021, section 5.

    The paper multiplies by diag(prior)^-1 and takes a softmax; here the products are normalised as they are,
    which chooses the same option and leaves probabilities alone where the prior is flat.

    >>> [round(math.exp(x), 3) for x in contextual([math.log(0.8), math.log(0.2)], [0.8, 0.2])]
    [0.5, 0.5]
    """
    shifted = [value - math.log(max(p, math.exp(_FLOOR))) for value, p in zip(logps, prior, strict=True)]
    total = float(np.logaddexp.reduce(shifted))
    return tuple(value - total for value in shifted)


def measure_priors(scorer: OptionScorer, questions: Questions) -> dict[str, list[float]]:
    """Return the mean probability of each option of each question over texts that say nothing.

    Raises:
        ModelError: the scorer gave no log-probabilities for one of them.
    """
    priors: dict[str, list[float]] = {}
    for question in questions.all:
        answers = 2 if question.name in PREFERENCES else 1
        rows = scorer([question.messages(text, *[text] * answers) for text in CONTENT_FREE], question.options)
        if any(math.isnan(value) for row in rows for value in row):
            raise ModelError(f"calibration: the judge gave no log-probabilities for '{question.key}'")
        columns = zip(*rows, strict=True)
        priors[question.key] = [sum(math.exp(value) for value in column) / len(rows) for column in columns]
    return priors
