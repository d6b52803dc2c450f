"""What a model's label settles and what a person sees.

First an audit sample is drawn, at random in strata that are known before any judge spoke, and set aside
without labels. Of the rest, a label is settled where its calibrated probability of being right reaches
a threshold; everything else is queued for people, the most instructive first.

Shapes: N labelled rows.
"""

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import JsonValue

from equipoise.annotation.calibration import Calibration, Calibrator, calibrate, calibration_error, held_out
from equipoise.annotation.coefficients import Floats, estimates, mean_of, plain
from equipoise.annotation.consensus import Judged
from equipoise.annotation.raters import Panel, answer
from equipoise.annotation.settle import Question
from equipoise.errors import DataError
from equipoise.records import Exchange, Labels, Pair
from equipoise.stats import Estimate, wilson

FOLDS = 5
LEAST_ROWS = 50
"""Labelled rows without which nothing is calibrated."""
_POINTS = 40


class Call(NamedTuple):
    """What the judges say of one subject."""

    value: Hashable
    confidence: float
    """Mean probability that the judges give to `value`, before calibration."""
    disagreement: float
    """Share of the judges that say something else."""


class Point(NamedTuple):
    """One threshold of the curve, on labelled rows that the calibrator had not seen."""

    threshold: float
    settled: Estimate
    """Share of the rows that a model's label settles; the others cost a person's time."""
    agreement: Estimate
    """Share of the settled rows whose label is the reference's."""
    lower: float
    """The lower end of `agreement`, or Wilson's where that is less."""
    overall: Estimate
    """Share of all rows with the right label, if people answer theirs as the reference does."""


class Waiting(NamedTuple):
    """A subject that a person is to see."""

    probability: float
    """Of the judges being right; 0 where they say nothing."""
    disagreement: float
    cells: Sequence[Hashable]
    """Cells that it would fill, if the judges are right."""


class Calibrated(NamedTuple):
    """A calibrator with its error and its curve, both held out."""

    calibrator: Calibrator
    rows: int
    error_before: Estimate
    """Expected calibration error of the confidence as the judges gave it."""
    error_after: Estimate
    curve: list[Point]

    def threshold(self, target: float) -> float:
        """Return the lowest threshold at which agreement is surely at least `target`; infinity if none is.

        Thresholds are tried from the highest down and the first that fails ends it, so that trying many
        does not find one by luck (fixed-sequence testing; Angelopoulos et al. 2021). It begins at a fifth
        of the rows, and where there are enough to pass at all.
        """
        best = math.inf
        for point in sorted(self.curve, reverse=True):
            n = point.agreement.n
            if n < self.rows / 5 or wilson(n, n).low < target:
                continue
            if point.lower < target:
                break
            best = point.threshold
        return best

    def to_json(self) -> dict[str, Any]:
        """Return plain values; NaN is None."""
        curve = [
            {k: plain(v) if isinstance(v, Estimate) else v for k, v in point._asdict().items()}
            for point in self.curve
        ]
        before, after = plain(self.error_before), plain(self.error_after)
        return {"rows": self.rows, "ece_before": before, "ece_after": after, "curve": curve}


def call(panel: Panel, question: Question, subject: str) -> Call | None:
    """Return what the judges say, or None where they are undecided, silent, or give no confidence."""
    settled = question.answers.get(subject)
    if settled is None or settled.value is None:
        return None
    others = max(len(question.votes.values) - 1, 1)
    said = [
        (answer(judgement, question.name), judgement.confidence)
        for judgement in panel.answers[subject].values()
        if answer(judgement, question.name) is not None
    ]
    sure = [c if value == settled.value else (1 - c) / others for value, c in said if c is not None]
    if not sure:
        return None
    differing = sum(value != settled.value for value, _ in said)
    return Call(settled.value, sum(sure) / len(sure), differing / len(said))


def calibrate_calls(rows: Sequence[tuple[Call, object, str]], method: Calibration) -> Calibrated:
    """Calibrate on calls with the reference's answer and the prompt; measure where it was not fitted.

    Raises:
        DataError: too few labelled rows.
    """
    clusters = [prompt for *_, prompt in rows]
    if len(rows) < LEAST_ROWS or len(set(clusters)) < FOLDS:
        raise DataError(
            f"labelled: {len(rows)} rows that were judged too, over {len(set(clusters))} prompts; expected"
            f" {LEAST_ROWS} over {FOLDS} at least"
        )
    confidence = np.array([found.confidence for found, *_ in rows])
    is_right = np.array([float(found.value == reference) for found, reference, _ in rows])
    probability = held_out(confidence, is_right, clusters, method, folds=FOLDS)
    return Calibrated(
        calibrate(confidence, is_right, method),
        len(rows),
        calibration_error(confidence, is_right, clusters),
        calibration_error(probability, is_right, clusters),
        curve(probability, is_right, clusters),
    )


def curve(probability: Floats, is_right: Floats, clusters: Sequence[str]) -> list[Point]:
    """Return cost and agreement over thresholds, [N] in; intervals are resampled by cluster."""
    grid = np.unique(np.quantile(probability, np.linspace(0, 1, _POINTS), method="higher"))
    kept = {float(threshold): (probability >= threshold).astype(np.float64) for threshold in grid}
    everything = np.ones(len(probability))
    statistics = {}
    for threshold, settled in kept.items():
        statistics[f"settled {threshold}"] = mean_of(settled, everything)
        statistics[f"agreement {threshold}"] = mean_of(is_right, settled)
        statistics[f"overall {threshold}"] = mean_of(np.where(settled > 0, is_right, 1.0), everything)
    found = estimates(statistics, clusters)
    points = []
    for threshold, settled in kept.items():
        rows = np.flatnonzero(settled)
        groups = len({clusters[int(i)] for i in rows})
        agreement = found[f"agreement {threshold}"]._replace(n=len(rows), clusters=groups)
        low = wilson(int(is_right[rows].sum()), len(rows)).low
        lower = low if math.isnan(agreement.low) else min(low, agreement.low)
        settled_share, overall = found[f"settled {threshold}"], found[f"overall {threshold}"]
        points.append(Point(threshold, settled_share, agreement, lower, overall))
    return points


def draw(records: Sequence[Judged], size: int, *, seed: int = 0) -> list[Judged]:
    """Draw records at random, in proportion to their strata, in a random order.

    The strata are source and whether the prompt is known to be harmful; who is drawn depends on the seed
    and the id alone. `provenance["audit"]` holds the stratum and how many records a drawn one stands for.
    """
    strata: dict[str, list[Judged]] = {}
    for record in records:
        harmful = record.prompt_is_harmful if isinstance(record, Exchange) else None
        strata.setdefault(f"{record.source}, harmful prompt: {harmful}", []).append(record)
    drawn = []
    for name, count in _shares({name: len(rows) for name, rows in strata.items()}, size).items():
        note: dict[str, JsonValue] = {"stratum": name, "weight": len(strata[name]) / count}
        for row in sorted(strata[name], key=lambda r: _lot(r.id, seed))[:count]:
            drawn.append(row.model_copy(update={"provenance": {**row.provenance, "audit": note}}))
    return sorted(drawn, key=lambda r: _lot(r.id, seed))


def audit_sample(records: Sequence[Judged], size: int, *, seed: int = 0) -> list[Judged]:
    """Draw records as `draw` does and take off everything that tells a label."""
    return [_blind(record) for record in draw(records, size, seed=seed)]


def prioritise(waiting: Mapping[str, Waiting], covered: Mapping[Hashable, int]) -> list[tuple[str, float]]:
    """Order subjects by uncertainty x (1 + disagreement) x coverage, greedily; return (subject, priority).

    Args:
        waiting: Subject -> what is known of it.
        covered: Cell -> labelled rows in it. Coverage is the mean over cells of 1 / sqrt(1 + rows), and a
            row that is taken counts as one more.
    """
    count: Counter[Hashable] = Counter(covered)

    def priority(subject: str) -> float:
        row = waiting[subject]
        shares = [1 / math.sqrt(1 + count[cell]) for cell in row.cells] or [1.0]
        return (1 - row.probability) * (1 + row.disagreement) * sum(shares) / len(shares)

    heap = [(-priority(subject), number, subject) for number, subject in enumerate(waiting)]
    heapq.heapify(heap)
    ordered = []
    while heap:
        _, number, subject = heapq.heappop(heap)
        now = priority(subject)
        if heap and -now > heap[0][0]:  # it has fallen behind since it was put in; priorities only fall
            heapq.heappush(heap, (-now, number, subject))
            continue
        ordered.append((subject, now))
        count.update(waiting[subject].cells)
    return ordered


def cells(record: Judged) -> list[Hashable]:
    """Return the cells (category, severity) that a record's labels fill; a safe response fills `safe`."""
    found: list[Hashable] = []
    for labels in [record] if isinstance(record, Exchange) else record.answers:
        if labels.categories:
            found += [(name, labels.severity) for name in sorted(labels.categories)]
        elif labels.is_safe is not None:
            found.append("safe" if labels.is_safe else "unsafe")
    return found


def as_subjects(records: Iterable[Judged], *, is_preference: bool) -> list[Judged]:
    """Return what a question is about: pairs for a preference, else exchanges and the answers of pairs."""
    if is_preference:
        return [record for record in records if isinstance(record, Pair)]
    return [
        exchange
        for record in records
        for exchange in (
            [record] if isinstance(record, Exchange) else [record.exchange(0), record.exchange(1)]
        )
    ]


def _shares(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Split a total in proportion to sizes, by largest remainder; no share exceeds its size."""
    everything = sum(sizes.values())
    exact = {name: size * min(total, everything) / everything for name, size in sizes.items()}
    counts = {name: math.floor(share) for name, share in exact.items()}
    left = min(total, everything) - sum(counts.values())
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[:left]:
        counts[name] += 1
    return {name: count for name, count in counts.items() if count}


def _lot(id_: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{id_}".encode()).digest()


def _blind(record: Judged) -> Judged:
    """Return a record without labels, nor the columns of its source, which may tell them."""
    provenance = {"audit": record.provenance["audit"]}
    blank: dict[str, Any] = {"label_origin": None, "annotators": (), "provenance": provenance}
    labels = dict.fromkeys(Labels.model_fields)
    if isinstance(record, Exchange):
        return record.model_copy(update={**blank, **labels, "prompt_is_harmful": None})
    answers = tuple(a.model_copy(update=labels) for a in record.answers)
    return record.model_copy(
        update={**blank, "answers": answers, "better": None, "safer": None, "overall": None}
    )
