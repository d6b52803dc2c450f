"""Prompts as they should be: normalised, whole, one question each, and none of those that are of no use.

Every change is kept beside its original with the reason, so that whoever disagrees can put it back.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from equipoise.curation.dedup import Similarity, near_copies
from equipoise.curation.filters import BatchFilter, DoubleQuestion, Filter, first_reasons
from equipoise.records import Prompt
from equipoise.synthesis.texts import QUESTION, STANDARD, end_of

_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " "})
_LABEL = re.compile(
    r"^\s*(?:[-*\u2022]\s+|\(?\d{1,3}[.):]\s+|(?:question|prompt|user|q|human|query)\s*\d*\s*:\s*)+",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+[\"')]*|$)")
_QUOTED = re.compile(r"[\"\u201c\u201d()\[\]]")
_SECOND = re.compile(
    r",?\s+(?:and|or)\s+(?:also\s+)?(?=(?:what|why|how|when|where|who|which) "
    r"(?:is|are|was|were|do|does|did|can|could|should|would|will|to)\b)",
    re.IGNORECASE,
)
_ALSO = re.compile(r"^(?:and|or|also|then)\s+(?:also\s+)?", re.IGNORECASE)
_ENDS = (".", "!", "?", ":", '."', '!"', '?"', "?)", ".)", "\u3002", "\uff01", "\uff1f")


class Change(NamedTuple):
    """One change of one prompt."""

    id: str
    reason: str
    before: str
    after: str | None
    """None where it was dropped."""
    of: str | None = None
    """Id of the other prompt: that it is a near-copy of, was split from, or was linked to."""


class Refined(NamedTuple):
    """The prompts that are left, in order, and all that was changed."""

    prompts: list[Prompt]
    changes: list[Change]


def refine(
    prompts: Iterable[Prompt],
    filters: Sequence[Filter | BatchFilter] = STANDARD,
    similarity: Similarity | None = None,
) -> Refined:
    """Normalise, complete and split prompts, then drop those that a filter refuses and near-copies.

    A chat of several turns is left as it is. A prompt whose look-alike was dropped loses the link.

    Args:
        prompts: With different ids.
        filters: Say why a text is dropped.
        similarity: What counts as a near-copy; of a group the first prompt is kept.
    """
    changes: list[Change] = []
    rows = [row for prompt in prompts for row in _shaped(prompt, changes)]
    single = [row for row in rows if isinstance(row.prompt, str)]
    reasons = first_reasons([str(row.prompt) for row in single], filters)
    refused = {row.id: reason for row, reason in zip(single, reasons, strict=True) if reason is not None}
    changes += [Change(row.id, refused[row.id], str(row.prompt), None) for row in single if row.id in refused]
    left = [row for row in single if row.id not in refused]
    found = near_copies([str(row.prompt) for row in left], similarity or Similarity())
    for copy in found.copies:
        row = left[copy.row]
        refused[row.id] = "near_duplicate"
        changes.append(Change(row.id, "near_duplicate", str(row.prompt), None, left[copy.of].id))
    kept = [row for row in rows if row.id not in refused]
    return Refined(list(_with_links(kept, changes)), changes)


def normalise(text: str) -> str:
    """Return a text without list marks, labels, odd quotes and white space; its first letter is a capital.

    >>> normalise("  2. how   do I bake bread?")
    'How do I bake bread?'
    """
    text = unicodedata.normalize("NFC", text).translate(_QUOTES)
    text = "\n".join(" ".join(line.split()) for line in text.splitlines()).strip()
    text = re.sub(r"\n{2,}", "\n", _LABEL.sub("", text))
    if len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') == 2:
        text = text[1:-1].strip()
    return text[:1].upper() + text[1:]


def complete(text: str) -> str:
    """Return a text whose last sentence ends: with its mark, or cut where a new one only began.

    >>> complete("How do I bake bread"), complete("How do I bake bread? I have flour and")
    ('How do I bake bread?', 'How do I bake bread?')
    """
    if not text or text.endswith(_ENDS):
        return text
    sentences = [found[0] for found in _SENTENCE.finditer(text)]
    before, last = "".join(sentences[:-1]), sentences[-1] if sentences else text
    whole = end_of(last.strip())
    if before.strip() and whole.rstrip(".?") != last.strip():  # it broke off in the middle
        return before.strip()
    gap = " " if before and not before.endswith(("\n", " ")) else ""
    return f"{before}{gap}{whole}".strip()


def split(text: str) -> list[str]:
    """Return one text per question; what is said before the first stays with each.

    A text whose questions lie in a quotation or in brackets, or that goes on after them, stays whole.

    >>> split("I have flour. How do I bake bread? And where do I buy yeast?")
    ['I have flour. How do I bake bread?', 'I have flour. Where do I buy yeast?']
    >>> split("What is yeast and how does it work?")
    ['What is yeast?', 'How does it work?']
    """
    if DoubleQuestion()(text) is None or _QUOTED.search(text):
        return [text]
    sentences = [found[0].strip() for found in _SENTENCE.finditer(text) if found[0].strip()]
    questions: list[str] = []
    said: list[str] = []
    for sentence in sentences:
        if not sentence.endswith("?"):
            if questions:
                return [text]
            said.append(sentence)
            continue
        halves = _SECOND.split(sentence) if QUESTION.match(_ALSO.sub("", sentence)) else [sentence]
        questions += [end_of(_ALSO.sub("", half), "?") for half in halves]
    return [" ".join([*said, question]) for question in questions] or [text]


def _shaped(prompt: Prompt, changes: list[Change]) -> Iterator[Prompt]:
    """Yield a prompt, or the several that it asks, in their final form."""
    if not isinstance(prompt.prompt, str):
        yield prompt
        return
    text = prompt.prompt
    for reason, step in (("normalised", normalise), ("completed", complete)):
        after = step(text)
        if after != text:
            changes.append(Change(prompt.id, reason, text, after))
        text = after
    parts = split(text)
    for number, part in enumerate(parts, start=1):
        own = prompt.id if number == 1 else f"{prompt.id}/{number}"
        if len(parts) > 1:
            changes.append(Change(own, "split", text, part, prompt.id))
        links = {} if number == 1 else {"twin": None}
        yield prompt.model_copy(update={"id": own, "prompt": part, **links})


def _with_links(prompts: Sequence[Prompt], changes: list[Change]) -> Iterator[Prompt]:
    """Yield prompts whose look-alike is among them as they are, the others without the link."""
    ids = {prompt.id for prompt in prompts}
    for prompt in prompts:
        if prompt.twin is None or prompt.twin in ids:
            yield prompt
        else:
            text = str(prompt.prompt)
            changes.append(Change(prompt.id, "look_alike_dropped", text, text, prompt.twin))
            yield prompt.model_copy(update={"twin": None})
