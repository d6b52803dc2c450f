"""Pairs that stand more than once, with opposite preferences: somebody's slip, or a matter of taste.

The same two answers to the same prompt are one pair in either order. Ties are no opposite of anything.
"""

from collections.abc import Iterator, Sequence

from equipoise.data.check import Finding
from equipoise.data.identity import text_key
from equipoise.data.io import Placed
from equipoise.records import Pair, text_of


def opposite_preferences(placed: Sequence[Placed[Pair]]) -> Iterator[Finding]:
    """Yield a finding for every pair that stands elsewhere too, with `better` or `safer` the other way."""
    places: dict[tuple[str, bytes], dict[bool, str]] = {}
    for one in placed:
        for field, key, prefers_first in _preferences(one.record):
            places.setdefault((field, key), {}).setdefault(prefers_first, f"{one.path}:{one.line}")
    for one in placed:
        for field, key, prefers_first in _preferences(one.record):
            other = places[field, key].get(not prefers_first)
            if other is not None:
                message = f"the same two answers are preferred the other way at {other}"
                yield Finding(one.path, one.line, one.record.id, field, "preference", message)


def _preferences(pair: Pair) -> Iterator[tuple[str, bytes, bool]]:
    """Field, key of the two answers in either order, and whether the first in that order is preferred."""
    texts = [answer.response for answer in pair.answers]
    if texts[0] == texts[1]:
        return
    key = text_key([text_of(pair.prompt), *sorted(texts)])
    for field in ("better", "safer"):
        choice = getattr(pair, field)
        if choice in (0, 1):
            yield field, key, texts[choice] == min(texts)
