"""Filters of texts: the reason to leave one out, or None.

A filter is a frozen dataclass that is called with a text, so it can be pickled, printed and compared.
One that is cheaper over many texts, such as a language model's, has a method `reasons` too.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

Filter = Callable[[str], str | None]
"""Says why a text is left out, or None."""

_LEAD = (
    r"^\W*((sorry|unfortunately|apologies|thanks?|thank you|i['\u2019]m|i am)\b"
    r"[^.?!\n]{0,40}[.!,]?\s*(but )?)?"
)
_DECLINES = re.compile(
    _LEAD + r"\b((i|we) (can['\u2019]?t|cannot|can not|won['\u2019]?t|will not|(am|are) (unable|not able) to)"
    r"|(i['\u2019]m|we['\u2019]re) (unable|not able) to)"
    r" (help|assist|provide|fulfil+|comply|engage|support|continue|create|generate|share|answer th|do th)"
    r"|" + _LEAD + r"\bi must decline\b"
    r"|^\W*as an? (ai|artificial intelligence|(large )?language model)\b[^.?!\n]{0,30}?,? i "
    r"(am|can|do|don|have|must|would|will)",
    re.IGNORECASE,
)
"""How an assistant's refusal opens; "I can't sleep" and "I can't help laughing at it" are a person's."""

_INNER_LIFE = re.compile(r"\bhelp (but|it|\w+ing)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"[^.!?\u3002\uff01\uff1f\n]+[.!?\u3002\uff01\uff1f]*")
_MARKS = ("?", "\uff1f")
_SECOND = re.compile(
    r"^\W*(what|why|how|when|where|who|which)\b.*\b(and|or) (also )?(what|why|how|when|where|who|which) "
    r"(is|are|was|were|do|does|did|can|could|should|would|will|to)\b",
    re.IGNORECASE,
)


@runtime_checkable
class BatchFilter(Protocol):
    """A filter that looks at many texts at once."""

    def reasons(self, texts: Sequence[str]) -> list[str | None]:
        """Return one reason or None per text, in order."""
        ...


@dataclass(frozen=True)
class TooShort:
    """Fewer than `min_chars` characters, outer white space aside."""

    min_chars: int = 8

    def __call__(self, text: str) -> str | None:
        """Return `too_short` or None."""
        return "too_short" if len(text.strip()) < self.min_chars else None


@dataclass(frozen=True)
class RefusalLike:
    """A would-be prompt that is an assistant's refusal, as models write them when asked for prompts.

    >>> RefusalLike()("I'm sorry, but I can't help with that."), RefusalLike()("I can't sleep. What helps?")
    ('refusal', None)
    """

    def __call__(self, text: str) -> str | None:
        """Return `refusal` or None."""
        found = _DECLINES.search(text)
        return "refusal" if found and not _INNER_LIFE.match(text, found.end() - len("help")) else None


@dataclass(frozen=True)
class DoubleQuestion:
    """A prompt that asks two things; it is split elsewhere.

    >>> DoubleQuestion()("What is yeast? And how does it work?"), DoubleQuestion()("What is yeast?")
    ('double_question', None)
    """

    def __call__(self, text: str) -> str | None:
        """Return `double_question` or None."""
        asked = [s.strip() for s in _SENTENCE.findall(text) if s.rstrip().endswith(_MARKS)]
        is_double = len(asked) > 1 or any(_SECOND.search(question) for question in asked)
        return "double_question" if is_double else None


def first_reasons(texts: Sequence[str], filters: Sequence[Filter | BatchFilter]) -> list[str | None]:
    """Return for each text the reason of the first filter that has one; later filters do not see it.

    >>> first_reasons(["hi", "How do tides work?"], [TooShort(), RefusalLike()])
    ['too_short', None]
    """
    reasons: list[str | None] = [None] * len(texts)
    for check in filters:
        left = [place for place, reason in enumerate(reasons) if reason is None]
        some = [texts[place] for place in left]
        found = check.reasons(some) if isinstance(check, BatchFilter) else [check(text) for text in some]
        for place, reason in zip(left, found, strict=True):
            reasons[place] = reason
    return reasons
