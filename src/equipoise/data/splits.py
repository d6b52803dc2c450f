"""Parts of a data set that share no prompt.

Rows are never split one by one: all rows whose prompts are equal after normalisation go to one side.
The sides do not depend on the order of the rows, only on their content and the seed.
"""

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from equipoise.data.check import is_safe
from equipoise.data.identity import AnyRecord
from equipoise.errors import ConfigError
from equipoise.records import Exchange, Labels, Pair, text_of


class _Stratum(NamedTuple):
    """What a group of rows is like; groups that are alike are spread evenly over the parts."""

    safety: str
    category: str
    severity: int
    sources: tuple[str, ...]


class _Group:
    """What is held of the rows that share a prompt, whatever their order."""

    __slots__ = ("categories", "order", "part", "severity", "signs", "size", "sources")

    def __init__(self) -> None:
        self.size = 0
        self.signs: set[bool | None] = set()
        self.categories: Counter[str] | None = None
        self.severity = 0
        self.sources: set[str] = set()
        self.order = b""
        self.part = ""

    def add(self, row: AnyRecord) -> None:
        self.size += 1
        self.sources.add(row.source)
        for labels in _labels(row):
            self.signs.add(is_safe(labels))
            self.severity = max(self.severity, labels.severity or 0)
            if labels.categories:
                self.categories = self.categories or Counter()
                self.categories.update(labels.categories)

    def stratum(self) -> _Stratum:
        safe = ["safe" if sign else "unsafe" for sign in self.signs if sign is not None]
        safety = "mixed" if len(safe) == 2 else next(iter(safe), "unlabelled")
        counts = self.categories or Counter()
        category = min(counts, key=lambda name: (-counts[name], name), default="")
        return _Stratum(safety, category, self.severity, tuple(sorted(self.sources)))


def normalise_prompt(text: str) -> str:
    """Return a text as it is compared: NFKC, case folded, single spaces, no punctuation at the edges.

    >>> normalise_prompt("  \\u201cHow do I  bake BREAD?!\\u201d ")
    'how do i bake bread'
    """
    if text.isascii():  # the same in one round, and several times as fast
        words = " ".join(text.lower().split())
        return words.strip(_ASCII_EDGES) or words
    for _ in range(4):  # folding may undo the normal form; it settles after one or two rounds
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        words = " ".join(folded.split())
        result = _trimmed(words) or words  # a prompt of punctuation alone stays what it is
        if result == text:
            break
        text = result
    return text


def split(
    records: Iterable[AnyRecord], fractions: Mapping[str, float], *, seed: int = 0, stratify: bool = True
) -> list[str]:
    """Return the name of a part for every record, in order; the records are gone through once.

    Groups are sorted by stratum (safe, unsafe, mixed or unlabelled; most frequent category; highest
    severity; sources) and within it by a hash of seed and prompt; each goes to the part that is
    furthest behind its share of rows. Both the whole and every stratum come as close as whole groups allow.

    Args:
        records: Of any kinds, so that several files are split together.
        fractions: Part -> its share of the rows; they add up to 1.
        seed: Another seed gives another split.
        stratify: Whether groups that are alike are spread over the parts.
    """
    check_fractions(fractions)
    groups: dict[bytes, _Group] = {}
    group_of: list[_Group] = []
    for record in records:
        key = _hash(seed, normalise_prompt(text_of(record.prompt)))
        group = groups.setdefault(key, _Group())
        group.add(record)
        group_of.append(group)
    hashes: dict[_Stratum, bytes] = {}
    for group in groups.values() if stratify else ():
        stratum = group.stratum()
        group.order = hashes.setdefault(stratum, _hash(seed, repr(stratum)))
    total, filled = 0, dict.fromkeys(fractions, 0)
    for _, group in sorted(groups.items(), key=lambda item: (item[1].order, item[0])):
        total += group.size
        part = max(fractions, key=lambda name: fractions[name] * total - filled[name])
        filled[part] += group.size
        group.part = part
    return [group.part for group in group_of]


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Refuse shares that are not positive or do not add up to 1, and names that are no file names."""
    given = ", ".join(f"{name}={share:g}" for name, share in fractions.items())
    if len(fractions) < 2:
        raise ConfigError(f"fractions: expected two parts or more, got {given or 'none'}")
    if not all(share > 0 for share in fractions.values()) or not math.isclose(sum(fractions.values()), 1):
        raise ConfigError(f"fractions: expected positive shares that add up to 1, got {given}")
    for name in fractions:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"fractions: expected letters, digits, - and _ in a part's name, got '{name}'")


def _trimmed(text: str) -> str:
    start, stop = 0, len(text)
    while start < stop and _is_edge(text[start]):
        start += 1
    while stop > start and _is_edge(text[stop - 1]):
        stop -= 1
    return text[start:stop]


def _is_edge(character: str) -> bool:
    return character.isspace() or unicodedata.category(character).startswith("P")


_ASCII_EDGES = "".join(character for character in map(chr, range(128)) if _is_edge(character))


def _hash(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


def _labels(record: AnyRecord) -> Sequence[Labels]:
    if isinstance(record, Pair):
        return record.answers
    if isinstance(record, Exchange):
        return (record,)
    safe = None if record.is_harmful is None else not record.is_harmful
    return (Labels(is_safe=safe, severity=record.severity, categories=record.categories),)
