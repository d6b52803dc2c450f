"""The run that draws records for people to label, and keeps what was said of them before.

The records stay as they are, with the labels that they have; a page of `annotate export` shows none.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from pydantic import Field

from equipoise.annotation.consensus import Judged
from equipoise.annotation.raters import PREFERENCES
from equipoise.annotation.routing import as_subjects, draw
from equipoise.annotation.steps import Files, read_judged
from equipoise.config import Config
from equipoise.data.io import write_records
from equipoise.errors import DataError
from equipoise.lineage import Run, Step
from equipoise.records import Judgement, Labels, Pair, Record


class SampleConfig(Config):
    """Settings of a sample: `count` records at random, in proportion to their strata."""

    records: Files
    """Exchanges or pairs, one kind."""
    count: Annotated[int, Field(ge=1)]
    seed: int = 0


def labels_as_judgements(records: Iterable[Judged]) -> Iterator[Judgement]:
    """Yield the labels that records have as judgements of who gave them; None where nobody is named.

    Labels of several annotators together are those of one, whose name is their `label_origin`.
    """
    for record in records:
        if record.label_origin is None:
            continue
        for exchange in as_subjects([record], is_preference=False):
            found = exchange.model_dump(include=set(Labels.model_fields), exclude_none=True)
            if found:
                yield _judgement(record, record.label_origin, exchange.id, labels=found)
        chosen = {name: getattr(record, name) for name in PREFERENCES if isinstance(record, Pair)}
        if any(choice is not None for choice in chosen.values()):
            yield _judgement(record, record.label_origin, record.id, **chosen)


def _judgement(record: Record, origin: str, subject: str, **said: Any) -> Judgement:
    annotator = record.annotators[0] if len(record.annotators) == 1 else origin
    shared = record.model_dump(include={"source", "licence", "label_origin", "annotators"})
    return Judgement(id=f"{subject}@{annotator}", subject=subject, annotator=annotator, **shared, **said)


def _sample(config: SampleConfig, run: Run) -> None:
    records = read_judged(config.records)
    if len(records) < config.count:
        raise DataError(f"records: {len(records)} to draw from; expected count={config.count} at least")
    drawn = draw(records, config.count, seed=config.seed)
    said = list(labels_as_judgements(drawn))
    run.licences |= {record.licence for record in drawn}
    run.notes |= {
        "records": len(records),
        "drawn": write_records(run.out / "records.jsonl", drawn),
        "labelled_before": write_records(run.out / "labels.jsonl", said),
    }


SAMPLE = Step("annotate sample", 1, _sample, config=SampleConfig)
