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

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from equipoise.data.check import CONTRADICTIONS, Finding, FoundError, judgements, ranked_safer
from equipoise.data.identity import AnyRecord
from equipoise.data.io import Placed
from equipoise.records import Pair

OnContradiction = Literal["error", "drop", "flip", "keep"]


class Resolved(NamedTuple):
    """What became of the records that take part in a contradiction: their places, as `path:line`."""

    dropped: list[str]
    flipped: list[str]
    kept: list[str]


def resolve(
    placed: Iterable[Placed[AnyRecord]], findings: Iterable[Finding], mode: OnContradiction, log: Resolved
) -> Iterator[AnyRecord]:
    """Yield what a choice leaves of checked records, and tell `log` of the others.

    Args:
        placed: The records; they are gone through twice.
        findings: Those of `check` over the same records.
        mode: The choice.
        log: Gets the places.

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
    both = _labelled_both_ways(placed) if any(found.kind == "conflict" for found in findings) else set()
    for path, line, record in placed:
        problems, where = kinds.get((path, line), set()), f"{path}:{line}"
        if both and any(key in both for _, key, _ in judgements(record)):
            problems.add("conflict")
        if not problems:
            yield record
        elif mode == "keep":
            log.kept.append(where)
            yield record
        elif mode == "flip" and problems == {"safer"} and isinstance(record, Pair):
            log.flipped.append(where)
            yield record.model_copy(update={"safer": ranked_safer(record)})
        else:
            log.dropped.append(where)


def _labelled_both_ways(placed: Iterable[Placed[AnyRecord]]) -> set[bytes]:
    """Return the keys of all texts that are labelled safe here and unsafe there."""
    labels: dict[bytes, bool] = {}
    found = set()
    for item in placed:
        for _, key, safe in judgements(item.record):
            if labels.setdefault(key, safe) != safe:
                found.add(key)
    return found
