"""The run that routes: what a model's label settles, what a person sees, and what is audited."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from equipoise.annotation.calibration import Calibration
from equipoise.annotation.conflicts import conflict_queue, find_conflicts
from equipoise.annotation.consensus import Judged, consensus
from equipoise.annotation.quality import truth_of
from equipoise.annotation.raters import PREFERENCES, Panel, collect
from equipoise.annotation.routing import (
    Calibrated,
    Waiting,
    as_subjects,
    audit_sample,
    calibrate_calls,
    call,
    cells,
    prioritise,
)
from equipoise.annotation.settle import Question, settle
from equipoise.annotation.steps import Files, read_judged, read_judgements
from equipoise.config import Config
from equipoise.data.io import write_records
from equipoise.errors import DataError
from equipoise.lineage import Run, Step, write_text
from equipoise.records import text_of


class RouteConfig(Config):
    """Settings of routing."""

    records: Files
    judgements: Files
    """Judgements by models, with confidence."""
    labelled: Files
    """Records that people have labelled, some of them judged by the models too; drawn at random."""
    question: Literal["is_safe", "better", "safer", "overall"] = "is_safe"
    target: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Agreement with people that settled labels must surely have."""
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Calibrated probability that settles; found from `target` where it is not given."""
    calibration: Calibration = "isotonic"
    audit: Annotated[int, Field(ge=0)] = 100
    """Records that are set aside for a blind audit."""
    seed: int = 0


def _route(config: RouteConfig, run: Run) -> None:
    is_preference = config.question in PREFERENCES
    judgements = read_judgements(config.judgements)
    panel = collect(judgements)
    if persons := [name for name, kind in panel.kinds.items() if kind == "person"]:
        raise DataError(f"judgements: '{persons[0]}' is a person; expected judgements of models only")
    known = as_subjects(read_judged(config.labelled), is_preference=is_preference)
    records = as_subjects(read_judged(config.records), is_preference=is_preference)
    if not records:
        raise DataError(f"records: nothing that '{config.question}' is asked of")
    done = {record.id for record in known}
    fresh = [record for record in records if record.id not in done]
    audit = audit_sample(fresh, config.audit, seed=config.seed)
    aside = {record.id for record in audit}
    rest = [record for record in fresh if record.id not in aside]

    question = settle(panel, config.question)
    truth = truth_of(known)
    both = [
        (found, truth[record.id, config.question], text_of(record.prompt))
        for record in known
        if (record.id, config.question) in truth and (found := call(panel, question, record.id)) is not None
    ]
    fitted = calibrate_calls(both, config.calibration)
    threshold = fitted.threshold(config.target) if config.threshold is None else config.threshold
    settled, queue = _split(rest, known, panel, question=question, fitted=fitted, threshold=threshold)
    counts = {
        "settled": write_records(run.out / "settled.jsonl", settled),
        "queue": write_records(run.out / "queue.jsonl", queue),
        "audit": write_records(run.out / "audit.jsonl", audit),
        "labelled": len(records) - len(fresh),
    }
    chosen = {"threshold": None if math.isinf(threshold) else threshold, "target": config.target}
    report = {"question": config.question, **chosen, **counts, **fitted.to_json()}
    write_text(run.out / "curve.json", json.dumps(report, indent=1))
    run.licences |= {record.licence for record in [*records, *judgements]}
    error = {"ece_before": fitted.error_before.value, "ece_after": fitted.error_after.value}
    run.notes |= {**chosen, **counts, **error, "calibrated_on": fitted.rows}


def _split(
    records: Sequence[Judged],
    known: Sequence[Judged],
    panel: Panel,
    *,
    question: Question,
    fitted: Calibrated,
    threshold: float,
) -> tuple[list[Judged], list[Judged]]:
    """Return what is settled, with the models' labels, and what people are to see, in order."""
    modelled = {r.id: r for r in consensus(records, panel).records}
    everything = [*modelled.values(), *known]
    conflicting = {record.id for record in conflict_queue(everything, find_conflicts(everything))}
    calls = {r.id: call(panel, question, r.id) for r in records}
    confidence = np.array([c.confidence if c else 0.0 for c in calls.values()])
    probabilities = fitted.calibrator(confidence) if len(confidence) else confidence
    settled: list[Judged] = []
    waiting: dict[str, Waiting] = {}
    notes: dict[str, dict[str, Any]] = {}
    for record, probability in zip(records, probabilities.tolist(), strict=True):
        found = calls[record.id]
        labelled = modelled[record.id]
        reason = "unjudged" if found is None else "conflict" if record.id in conflicting else "unsure"
        if found is None or reason == "conflict" or probability < threshold:
            waiting[record.id] = Waiting(
                probability if found else 0.0, found.disagreement if found else 0.0, cells(labelled)
            )
            notes[record.id] = {"reason": reason, "probability": round(waiting[record.id].probability, 4)}
        else:
            settled.append(_noted(labelled, {"by": question.name, "probability": round(probability, 4)}))
    covered = Counter(cell for record in known for cell in cells(record))
    by_id = {record.id: record for record in records}
    queue = [
        _noted(by_id[id_], {**notes[id_], "priority": round(priority, 6)})
        for id_, priority in prioritise(waiting, covered)
    ]
    return settled, queue


def _noted(record: Judged, note: dict[str, Any]) -> Judged:
    return record.model_copy(update={"provenance": {**record.provenance, "route": note}})


ROUTE = Step("annotate route", 1, _route, config=RouteConfig)
