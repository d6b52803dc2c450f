"""What makes two records the same: their texts, as they stand."""

import hashlib
from collections.abc import Sequence

from equipoise.records import Exchange, Pair, Prompt, text_of

AnyRecord = Prompt | Exchange | Pair
"""The kinds of record that a data file holds."""


def texts_of(record: AnyRecord) -> tuple[str, ...]:
    """Return the prompt, and the response or responses, of a record."""
    prompt = text_of(record.prompt)
    if isinstance(record, Exchange):
        return prompt, record.response
    if isinstance(record, Pair):
        return (prompt, *(answer.response for answer in record.answers))
    return (prompt,)


def text_key(texts: Sequence[str]) -> bytes:
    """Return 16 bytes that stand for the texts, so that many can be held in memory."""
    return hashlib.sha256("\0".join(texts).encode("utf-8")).digest()[:16]


def content_id(prefix: str, record: AnyRecord) -> str:
    """Return an id made from the texts of a record.

    >>> content_id("demo", Prompt(id="", prompt="Hello"))
    'demo-185f8db32271fe25'
    """
    return f"{prefix}-{text_key(texts_of(record)).hex()[:16]}"
