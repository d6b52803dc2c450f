"""What to do with records whose labels contradict each other. Every choice is counted and listed.

    error   nothing is written where anything is found
    drop    records that take part in a contradiction are left out
    flip    a `safer` that contradicts the safety labels is turned to the safe answer; what cannot be
            mended so (safe with a severity, one text labelled both ways) is left out
    keep    all records are written as they are

Of one text that is labelled safe here and unsafe there, nobody knows which is right: drop and flip
leave out every record with that text. Other problems (an unreadable line, an unknown category or
taxonomy, an id twice) are errors under every choice.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from equipoise.data.check import CONTRADICTIONS, Finding, FoundError, judgements, ranked_safer
from equipoise.data.identity import AnyRecord
from equipoise.data.io import Placed
from equipoise.records import Pair

OnContradiction = Literal["error", "drop", "flip", "keep"]


class Resolved(NamedTuple):
    """The records that are left, and what became of the others."""

    records: list[AnyRecord]
    dropped: list[str]
    """Places, as `path:line`."""
    flipped: list[str]
    kept: list[str]
    """Places of records that contradict themselves or another and were kept as they are."""


def resolve(
    placed: Sequence[Placed[AnyRecord]], findings: Iterable[Finding], mode: OnContradiction
) -> Resolved:
    """Apply a choice to checked records; `findings` are those of `check` over the same records.

    Raises:
        FoundError: a finding that the choice does not cover.
    """
    findings = list(findings)
    others = [found for found in findings if mode == "error" or found.kind not in CONTRADICTIONS]
    if others:
        raise FoundError("nothing was written", others)
    kinds: dict[tuple[str, int], set[str]] = {}
    for found in findings:
        kinds.setdefault((found.path, found.line), set()).add(found.kind)
    for path, line in _in_conflict(placed):
        kinds.setdefault((path, line), set()).add("conflict")
    result = Resolved([], [], [], [])
    for path, line, record in placed:
        problems, where = kinds.get((path, line)), f"{path}:{line}"
        if not problems:
            result.records.append(record)
        elif mode == "keep":
            result.records.append(record)
            result.kept.append(where)
        elif mode == "flip" and problems == {"safer"} and isinstance(record, Pair):
            result.records.append(record.model_copy(update={"safer": ranked_safer(record)}))
            result.flipped.append(where)
        else:
            result.dropped.append(where)
    return result


def _in_conflict(placed: Sequence[Placed[AnyRecord]]) -> Iterator[tuple[str, int]]:
    """Yield the places of all records with a text that is labelled both ways."""
    labels: dict[bytes, set[bool]] = {}
    for item in placed:
        for _, key, safe in judgements(item.record):
            labels.setdefault(key, set()).add(safe)
    for path, line, record in placed:
        if any(len(labels[key]) > 1 for _, key, _ in judgements(record)):
            yield path, line
