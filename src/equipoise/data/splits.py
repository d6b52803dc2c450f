"""Parts of a data set that share no prompt.

Rows are never split one by one: all rows whose prompts are equal after normalisation go to one side.
The sides do not depend on the order of the rows, only on their content and the seed.
"""

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
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


def normalise_prompt(text: str) -> str:
    """Return a text as it is compared: NFKC, case folded, single spaces, no punctuation at the edges.

    >>> normalise_prompt("  \\u201cHow do I  bake BREAD?!\\u201d ")
    'how do i bake bread'
    """
    for _ in range(4):  # folding may undo the normal form; it settles after one or two rounds
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        words = " ".join(folded.split())
        result = _trimmed(words) or words  # a prompt of punctuation alone stays what it is
        if result == text:
            break
        text = result
    return text


def split(
    records: Sequence[AnyRecord], fractions: Mapping[str, float], *, seed: int = 0, stratify: bool = True
) -> list[str]:
    """Return the name of a part for every record, in order.

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
    keys = [normalise_prompt(text_of(record.prompt)) for record in records]
    groups: dict[str, list[AnyRecord]] = {}
    for key, record in zip(keys, records, strict=True):
        groups.setdefault(key, []).append(record)
    strata = {key: _stratum(rows) if stratify else _Stratum("", "", 0, ()) for key, rows in groups.items()}
    ordered = sorted(groups, key=lambda key: (_hash(seed, repr(strata[key])), _hash(seed, key)))
    part_of: dict[str, str] = {}
    total, filled = 0, dict.fromkeys(fractions, 0)
    for key in ordered:
        size = len(groups[key])
        total += size
        part = max(fractions, key=lambda name: fractions[name] * total - filled[name])
        filled[part] += size
        part_of[key] = part
    return [part_of[key] for key in keys]


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


def _hash(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


def _stratum(rows: Sequence[AnyRecord]) -> _Stratum:
    """Describe a group by the labels of all its rows, whatever their order."""
    labels = [label for row in rows for label in _labels(row)]
    safe = {"safe" if sign else "unsafe" for label in labels if (sign := is_safe(label)) is not None}
    safety = "mixed" if len(safe) == 2 else next(iter(safe), "unlabelled")
    counts = Counter(name for label in labels for name in label.categories or ())
    category = min(counts, key=lambda name: (-counts[name], name), default="")
    severity = max((label.severity or 0 for label in labels), default=0)
    return _Stratum(safety, category, severity, tuple(sorted({row.source for row in rows})))


def _labels(record: AnyRecord) -> Sequence[Labels]:
    if isinstance(record, Pair):
        return record.answers
    if isinstance(record, Exchange):
        return (record,)
    safe = None if record.is_harmful is None else not record.is_harmful
    return (Labels(is_safe=safe, severity=record.severity, categories=record.categories),)
