"""Pairs that stand more than once, with opposite preferences: somebody's slip, or a matter of taste.

The same two answers to the same prompt are one pair in either order. Ties are no opposite of anything.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from equipoise.data.check import Finding
from equipoise.data.identity import AnyRecord, text_key
from equipoise.data.io import Placed
from equipoise.records import Pair, text_of


class _Place(NamedTuple):
    """One preference of one record."""

    number: int
    """Of the record, in order."""
    path: str
    line: int
    id: str
    field: str
    prefers_first: bool
    """Of the two answers in the order of the alphabet."""


class Opposites:
    """Looks at records as they pass, once; keeps hashes of texts and places alone."""

    def __init__(self) -> None:
        """Start with no record."""
        self._places: dict[tuple[str, bytes], list[_Place]] = {}

    def watch(self, placed: Iterable[Placed[AnyRecord]]) -> Iterator[Placed[AnyRecord]]:
        """Yield the records and take in the preferences of those that are pairs."""
        for number, one in enumerate(placed):
            if isinstance(one.record, Pair):
                for field, key, prefers_first in _preferences(one.record):
                    place = _Place(number, one.path, one.line, one.record.id, field, prefers_first)
                    self._places.setdefault((field, key), []).append(place)
            yield one

    def findings(self) -> list[Finding]:
        """Return a finding for every place of a pair that stands elsewhere with the other preference."""
        found = []
        for places in self._places.values():
            first: dict[bool, str] = {}
            for one in places:
                first.setdefault(one.prefers_first, f"{one.path}:{one.line}")
            if len(first) == 2:
                found += [(one, first[not one.prefers_first]) for one in places]
        return [
            Finding(
                *(one.path, one.line, one.id, one.field, "preference"),
                f"the same two answers are preferred the other way at {other}",
            )
            for one, other in sorted(found)
        ]


def opposite_preferences(placed: Iterable[Placed[Pair]]) -> list[Finding]:
    """Return a finding for every pair that stands elsewhere too, with `better` or `safer` the other way."""
    opposites = Opposites()
    for _ in opposites.watch(placed):
        pass
    return opposites.findings()


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
