"""Several files of one kind of record as one, each text with the same labels once."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from equipoise.data.check import Finding, Judged, conflicts
from equipoise.data.identity import AnyRecord, text_key, texts_of
from equipoise.data.io import Placed
from equipoise.errors import DataError
from equipoise.records import Pair

_NOT_LABELS = {"id", "source", "licence", "label_origin", "annotators", "provenance", "twin"}
_SWAPPED = {0: 1, 1: 0}


class Merged(NamedTuple):
    """What a merge left out and changed, and what to look at."""

    duplicates: list[str]
    """Places, as `path:line`, of records that stood before with the same texts and labels."""
    renamed: dict[str, str]
    """Place -> the id it was given, because another record has its own."""
    conflicts: list[Finding]
    """Texts that are labelled safe here and unsafe there; both are kept."""


def merge(placed: Iterable[Placed[AnyRecord]], log: Merged) -> Iterator[AnyRecord]:
    """Yield records but those that repeat the texts and the labels of an earlier one; tell `log` the rest.

    A pair whose answers stand the other way round is the same pair. Where the texts are equal and the
    labels are not, all are kept. An id that is taken by another record gets a number behind it.

    Raises:
        DataError: records of more than one kind, or of more than one taxonomy.
    """
    seen: set[bytes] = set()
    ids: set[str] = set()
    judged: Judged = {}
    first: AnyRecord | None = None
    for path, line, record in placed:
        where = f"{path}:{line}"
        first = first or record
        _refuse_mixture(where, first, record)
        key = _identity(record)
        if key in seen:
            log.duplicates.append(where)
            continue
        seen.add(key)
        for field, message in conflicts(record, where, judged):
            log.conflicts.append(Finding(path, line, record.id, field, "conflict", message))
        fresh = _free_id(record.id, ids)
        ids.add(fresh)
        if fresh != record.id:
            log.renamed[where] = fresh
            record = record.model_copy(update={"id": fresh})  # noqa: PLW2901
        yield record


def _identity(record: AnyRecord) -> bytes:
    """Stand for texts and labels of a record; of a pair in the order in which its answers sort."""
    values: dict[str, Any] = record.model_dump(mode="json", exclude=_NOT_LABELS)
    texts = texts_of(record)
    if isinstance(record, Pair) and texts[1] > texts[2]:
        texts = (texts[0], texts[2], texts[1])
        values["answers"].reverse()
        for name in ("better", "safer", "overall"):
            values[name] = _SWAPPED.get(values[name], values[name])
    for part in (values, *values.get("answers", ())):
        part.pop("prompt", None)
        part.pop("response", None)
    return text_key([*texts, json.dumps(values, sort_keys=True)])


def _free_id(own: str, taken: set[str]) -> str:
    number, fresh = 1, own
    while fresh in taken:
        number += 1
        fresh = f"{own}-{number}"
    return fresh


def _refuse_mixture(where: str, first: AnyRecord, record: AnyRecord) -> None:
    if type(record) is not type(first):
        names = f"{type(record).__name__} after {type(first).__name__}"
        raise DataError(f"{where}: line: records of more than one kind, got {names}; expected one kind")
    if record.taxonomy != first.taxonomy:
        what = f"got '{record.taxonomy}' after '{first.taxonomy}'"
        raise DataError(f"{where}: taxonomy: records of more than one taxonomy, {what}; expected one")
