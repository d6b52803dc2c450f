"""Texts that no one would have written: tokens out of order, or the same words over and over.

The filter for use is `Improbable`, with a language model of your own. `Jumbled` needs none: it asks how
often neighbours stand beside each other in the built-in corpus. It finds less, and like the built-in
model it knows English only. How much each finds is in benchmarks/results/gibberish.json.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from equipoise.data.corpus import corpus
from equipoise.data.identity import texts_of

Likelihood = Callable[[Sequence[str]], list[float]]
"""Mean log-likelihood per token, in nats, of each text."""

MIN_WORDS = 8
"""Words below which order says too little, and no text is left out."""
TOKENS = 48
"""Tokens that the thresholds of `THRESHOLDS` were set on; give the model as many (`max_tokens`)."""
THRESHOLDS = {"smollm2-135m": -6.8}
"""Mean log-likelihood in nats per token below which a text is gibberish, by model."""

_FREQUENT = 200
"""Words that stand for themselves in the table of neighbours; the others are known by their ending."""
_SMOOTHING = 100.0
"""How many times neighbours count as seen together by chance."""
_TOKEN = re.compile(r"(\s*)(\w+(?:['\u2019]\w+)*|[^\w\s])")
_ENDINGS: tuple[str, ...] = ("ing", "ed", "ly", "tion", "ions", "ers", "er", "es", "s", "al", "ous")
_ENDINGS += ("ive", "ity", "ment", "ies", "ent", "able", "ful", "y")


class Remembering:
    """A likelihood that reads a text once, although a filter and a ranking ask for it."""

    def __init__(self, likelihood: Likelihood) -> None:
        """Wrap `likelihood`; what it said is kept as long as this lives."""
        self._likelihood = likelihood
        self._known: dict[str, float] = {}

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Mean log-likelihood per token, in nats, of each text."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        if fresh:
            self._known |= zip(fresh, self._likelihood(fresh), strict=True)
        return [self._known[text] for text in texts]


@dataclass(frozen=True)
class Improbable:
    """A text that a language model finds too unlikely; texts of few words pass."""

    likelihood: Likelihood
    threshold: float = THRESHOLDS["smollm2-135m"]
    """In nats per token; `threshold_for` sets it for another model."""
    min_words: int = MIN_WORDS

    def __call__(self, text: str) -> str | None:
        """Return `gibberish` or None."""
        return self.reasons([text])[0]

    def reasons(self, texts: Sequence[str]) -> list[str | None]:
        """Return `gibberish` or None for each text; the model sees all of them at once."""
        long = [place for place, text in enumerate(texts) if len(text.split()) >= self.min_words]
        found: list[str | None] = [None] * len(texts)
        for place, value in zip(long, self.likelihood([texts[place] for place in long]), strict=True):
            found[place] = "gibberish" if value < self.threshold else None
        return found


@dataclass(frozen=True)
class Jumbled:
    """A text whose neighbours seldom stand beside each other; works without a model, in English.

    >>> Jumbled()("Mix the flour with warm water and wait until the dough has doubled.")
    >>> Jumbled()("dough flour the has with until wait Mix water doubled and warm. the")
    'gibberish'
    """

    threshold: float = -0.25
    """Mean association of neighbours in nats below which a text is left out."""
    min_words: int = MIN_WORDS

    def __call__(self, text: str) -> str | None:
        """Return `gibberish` or None."""
        if len(text.split()) < self.min_words:
            return None
        return "gibberish" if association(text) < self.threshold else None


@dataclass(frozen=True)
class Repetitive:
    """A text that goes round in circles, as small models do: most of its runs of three words stood before.

    >>> Repetitive()("and so it goes " * 10)
    'repetitive'
    """

    share: float = 0.5
    """Share of the runs that stood before from which on a text is left out."""
    min_words: int = 20

    def __call__(self, text: str) -> str | None:
        """Return `repetitive` or None."""
        words = text.casefold().split()
        if len(words) < self.min_words:
            return None
        runs = list(zip(words, words[1:], words[2:], strict=False))
        return "repetitive" if 1 - len(set(runs)) / len(runs) >= self.share else None


def threshold_for(values: Sequence[float], dropped: float = 0.02) -> float:
    """Return the threshold that leaves out this share of texts known to be real, by their values.

    >>> threshold_for([-3.0, -2.0, -1.0, -4.0, -5.0], 0.25)
    -4.0
    """
    return float(np.quantile(np.asarray(values), dropped))


def association(text: str) -> float:
    """Return how much more often its neighbours stand together than by chance, mean over them, in nats.

    The pointwise mutual information of neighbouring classes of words (Church and Hanks 1990), counted in
    the built-in corpus; a pair that is not there counts as chance.
    """
    table = _table()
    classes = [table.classify(space, word) for space, word in _TOKEN.findall(text)]
    values = [table.information(pair) for pair in pairwise(["", *classes])]
    return math.fsum(values) / len(values) if values else 0.0


class _Table:
    """Counts of classes of words and of neighbouring ones."""

    def __init__(self, texts: Iterable[str]) -> None:
        tokens = [_TOKEN.findall(text) for text in texts]
        words = Counter(word.lower() for row in tokens for _, word in row)
        self.frequent = {word for word, _ in words.most_common(_FREQUENT)}
        rows = [["", *(self.classify(space, word) for space, word in row)] for row in tokens]
        self.pairs = Counter(pair for row in rows for pair in pairwise(row))
        self.before = Counter(name for row in rows for name in row[:-1])
        self.after = Counter(name for row in rows for name in row[1:])
        self.total = self.after.total()

    def classify(self, space: str, word: str) -> str:
        """Return the class of a word: itself or its ending, with its case, and whether a space is lost."""
        lower = word.lower()
        if not word[0].isalnum():
            return word if lower in self.frequent else "?"
        glue = "" if space else "+"
        if lower.isdigit():
            return glue + "#"
        if lower not in self.frequent:
            ending = next((e for e in _ENDINGS if lower.endswith(e) and len(lower) > len(e) + 1), "")
            lower = "~" if len(lower) <= 2 else f"-{ending}"
        return glue + ("^" if word[0].isupper() else "") + lower

    def information(self, pair: tuple[str, str]) -> float:
        """Return log P(b | a) / P(b) in nats, drawn to chance where there is little to count."""
        first, second = pair
        chance = (self.after[second] + 0.5) / (self.total + 0.5 * len(self.after))
        together = (self.pairs[pair] + _SMOOTHING * chance) / (self.before[first] + _SMOOTHING)
        return math.log(together / chance)


@lru_cache(maxsize=1)
def _table() -> _Table:
    kinds = ("prompts", "exchanges", "pairs")
    return _Table(text for kind in kinds for record in corpus(kind) for text in texts_of(record))
