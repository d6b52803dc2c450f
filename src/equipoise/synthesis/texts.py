"""What comes out of a model as one clean prompt, or the reason why it is none."""

import re
from collections.abc import Sequence

from equipoise.curation.filters import BatchFilter, Filter, RefusalLike, TooShort
from equipoise.curation.gibberish import Jumbled, Repetitive
from equipoise.curation.language import OtherLanguage
from equipoise.synthesis.overlap import words_of

QUESTION = re.compile(
    r"^(how|what|why|where|when|who|whom|which|whose|can|could|should|shall|may|might|would|will|do|does|did"
    r"|is|are|am|was|were|has|have i)\b",
    re.IGNORECASE,
)
"""How a question begins."""
_END = re.compile(r"[?!.](?=[\"'\u201d\u2019)]?(\s|$))")
_ODD = re.compile(r"[^\w\s,.;:'\u2019\"?!()\-]|_|\.\.|\d{5}")
_OPEN = re.compile(
    r"((\s+(to|of|in|on|at|for|with|by|from))?\s+(a|an|the|my|your|their|our|its)|\s+(and|or|but|because))+$",
    re.IGNORECASE,
)
"""Words that no sentence ends with, and the preposition before them."""

STANDARD: tuple[Filter, ...] = (
    TooShort(),
    RefusalLike(),
    OtherLanguage(),
    Repetitive(),
    Jumbled(),
)
"""What keeps a text out of a set of prompts, cheapest first; without a language model."""


def first_sentence(start: str, rest: str) -> str | None:
    """Return the begun sentence with what a model made of it, up to its end; None where it has none.

    >>> first_sentence("How can I bake", " bread at home? I have flour.")
    'How can I bake bread at home?'
    """
    line = rest.split("\n", 1)[0]
    found = _END.search(line)
    if found is None or not words_of(line[: found.start()]):
        return None
    text = " ".join((start + line[: found.start()]).split()).rstrip(" ,;:\"'")
    return end_of(text, line[found.start()])


def end_of(text: str, mark: str = ".") -> str:
    """Return a sentence with its mark: a question mark where it begins as a question does.

    >>> end_of("how do I bake bread"), end_of("Tell me a story")
    ('How do I bake bread?', 'Tell me a story.')
    """
    text = _OPEN.sub("", text.rstrip(" .?!,;:-"))
    return text[:1].upper() + text[1:] + ("?" if QUESTION.match(text) else mark)


def odd(text: str, most_words: int = 45) -> str | None:
    """Return `odd_characters` or `too_long` for a text that is no single prompt, or None."""
    if _ODD.search(text) or text.count('"') % 2:
        return "odd_characters"
    return "too_long" if len(text.split()) > most_words else None


def holds(text: str, words: Sequence[str]) -> bool:
    """Say whether a text holds one of some words.

    >>> holds("The young guest", ["young"]), holds("Youngster", ["young"])
    (True, False)
    """
    return not set(words).isdisjoint(words_of(text))


def with_likelihood(improbable: BatchFilter | None) -> tuple[Filter | BatchFilter, ...]:
    """Return the standard filters, with a language model's in the place of the table of neighbours."""
    if improbable is None:
        return STANDARD
    return (*(check for check in STANDARD if not isinstance(check, Jumbled)), improbable)
