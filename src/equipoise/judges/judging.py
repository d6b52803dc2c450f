"""What a judge is: records in, judgements out, a list of them per record.

An exchange gets one judgement. A pair may get three: the labels of its answers, whose subjects are `ID#0`
and `ID#1` as in `Pair.exchange`, and its preferences, whose subject is the pair itself. What a judge did not
or could not answer is None, with the reason in `provenance["missing"]`; the answers as they came are in
`provenance["raw"]`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pydantic import JsonValue

from equipoise.judges.questions import Preference
from equipoise.records import Choice, Exchange, Judgement, Labels, Pair

Judged = Exchange | Pair

RecordJudge = Callable[[Sequence[Judged]], list[list[Judgement]]]
"""Judges records; the judgements of each, in order."""


class Opinion(NamedTuple):
    """What a judge says of one subject, before it is a record."""

    labels: Labels | None = None
    preferences: Mapping[Preference, Choice | None] = {}
    confidence: float | None = None
    """Probability 0..1 of the answer that was given: safe or unsafe, or the least sure preference."""
    details: Mapping[str, JsonValue] = {}
    """Goes to `provenance`; empty values are left out."""


def judgement(annotator: str, record: Judged, opinion: Opinion) -> Judgement:
    """Return an opinion as a record, which keeps the source and the licence of what was judged."""
    return Judgement(
        id=f"{record.id}@{annotator}",
        source=record.source,
        licence=record.licence,
        label_origin=f"model:{annotator}",
        annotators=(annotator,),
        provenance={name: value for name, value in opinion.details.items() if value not in ({}, [], None)},
        subject=record.id,
        annotator=annotator,
        labels=opinion.labels,
        confidence=None if opinion.confidence is None else round(opinion.confidence, 6),
        better=opinion.preferences.get("better"),
        safer=opinion.preferences.get("safer"),
        overall=opinion.preferences.get("overall"),
    )


def answers_of(records: Sequence[Judged]) -> list[Exchange]:
    """Return the answers of records as exchanges, those of a pair one after the other."""
    return [
        exchange
        for record in records
        for exchange in (
            [record] if isinstance(record, Exchange) else [record.exchange(0), record.exchange(1)]
        )
    ]


def arrange(
    records: Sequence[Judged], labels: Mapping[str, Judgement], preferences: Mapping[str, Judgement]
) -> list[list[Judgement]]:
    """Return the judgements of each record: of its answers, then of the pair. Keys are subjects."""
    found = []
    for record in records:
        subjects = [record.id] if isinstance(record, Exchange) else [f"{record.id}#0", f"{record.id}#1"]
        rows = [labels[subject] for subject in subjects if subject in labels]
        found.append(rows + ([preferences[record.id]] if record.id in preferences else []))
    return found
