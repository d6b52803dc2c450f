"""Whom to trust, and with what: gold items, drift, speed, and what one annotator says against itself.

Judgements carry no time, so their order in the files is taken for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from equipoise.annotation.bradley_terry import Comparisons, in_cycles
from equipoise.annotation.coefficients import estimates, mean_of, plain
from equipoise.annotation.consensus import Judged, subjects_of
from equipoise.annotation.raters import PREFERENCES, VALUES, Panel, answer, answer_of_labels, cluster_of
from equipoise.annotation.settle import Question
from equipoise.data.check import CONTRADICTIONS, check
from equipoise.data.io import Placed
from equipoise.records import Exchange, Judgement, Labels, Pair, text_of
from equipoise.stats import NOTHING, Estimate, wilson

Truth = Mapping[tuple[str, str], object]
"""(Subject, question) -> the right answer."""

WORDS_PER_SECOND = 16.0
"""Four times the mean speed of silent reading, 238 words a minute (Brysbaert 2019): who is faster skimmed."""
LEAST_SECONDS = 1.0

LOW_GOLD, MANY_FAST, MANY_CONTRADICTIONS = 0.8, 0.1, 0.05
"""Where an annotator is flagged: gold accuracy surely below, shares surely above."""


class RaterReport(NamedTuple):
    """What is known of one annotator."""

    name: str
    kind: str
    subjects: int
    gold: dict[str, Estimate]
    """Question -> share of the gold items that were answered right."""
    drift: Estimate
    """Share of right answers in the later half less that in the earlier one."""
    median_seconds: float | None
    too_fast: Estimate
    """Share of the judgements that took less time than skimming the text."""
    contradictions: list[str]
    """`SUBJECT: what`, where its own labels do not fit together."""
    cycles: list[str]
    """Ids of pairs whose preference is part of a cycle: a over b, b over c, c over a."""
    changed: list[str]
    """`SUBJECT: field`, where it answered twice and not the same."""
    questions: dict[str, Any]
    """Question -> its part in the consensus: answers, agreement, confusion."""

    @property
    def flags(self) -> list[str]:
        """What to look into, in one word each."""
        wrong = self.contradictions + self.cycles
        share = wilson(min(len(wrong), self.subjects), self.subjects)
        signs = {
            "gold": any(e.high < LOW_GOLD for e in self.gold.values()),
            "drift": self.drift.high < 0,
            "fast": self.too_fast.low > MANY_FAST,
            "contradictions": share.low > MANY_CONTRADICTIONS,
        }
        return [name for name, is_raised in signs.items() if is_raised]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; NaN is None."""
        found = self._asdict() | {"flags": self.flags, "gold": {k: plain(e) for k, e in self.gold.items()}}
        return found | {"drift": plain(self.drift), "too_fast": plain(self.too_fast)}


def rater_reports(
    judgements: Sequence[Judgement],
    panel: Panel,
    records: Sequence[Judged],
    questions: Mapping[str, Question],
    *,
    gold: Iterable[Judged] = (),
) -> list[RaterReport]:
    """Return a report per annotator.

    Args:
        judgements: All judgements, in the order in which they were made.
        panel: The same, collected.
        records: What was judged.
        questions: The consensus; it is the truth that drift is measured by where there is no gold.
        gold: Records with the right labels.
    """
    right = truth_of(gold)
    words = {subject: count for record in records for subject, count in _words(record).items()}
    settled: Truth = {
        (subject, name): s.value
        for name, question in questions.items()
        if name in VALUES
        for subject, s in question.answers.items()
        if s.raters > 1 and s.value is not None
    }
    return [
        RaterReport(
            name,
            kind,
            sum(name in rows for rows in panel.answers.values()),
            gold_accuracy(panel, name, right),
            drift([j for j in judgements if j.annotator == name], right or settled),
            *speed([j for j in judgements if j.annotator == name], words, is_person=kind == "person"),
            contradictions(panel, name, records),
            cycles(panel, name, records),
            [f"{subject}: {field}" for who, subject, field in panel.changed if who == name],
            {key: q.rater(name) for key, q in questions.items() if name in q.votes.raters},
        )
        for name, kind in sorted(panel.kinds.items())
    ]


def truth_of(records: Iterable[Judged]) -> Truth:
    """Return the answers that labelled records give, by subject and question."""
    found: dict[tuple[str, str], object] = {}
    for record in records:
        responses = [record] if isinstance(record, Exchange) else [record.exchange(0), record.exchange(1)]
        for exchange in responses:
            found |= {(exchange.id, q): answer_of_labels(exchange, q) for q in VALUES if q not in PREFERENCES}
        if isinstance(record, Pair):
            found |= {(record.id, name): getattr(record, name) for name in PREFERENCES}
    return {key: value for key, value in found.items() if value is not None}


def gold_accuracy(panel: Panel, name: str, truth: Truth) -> dict[str, Estimate]:
    """Return an annotator's share of right answers per question, with Wilson's interval."""
    result = {}
    for question in VALUES:
        hits = [
            given == truth[subject, question]
            for subject, rows in panel.answers.items()
            if name in rows and (subject, question) in truth
            if (given := answer(rows[name], question)) is not None
        ]
        if hits:
            result[question] = wilson(sum(hits), len(hits))
    return result


def drift(judgements: Sequence[Judgement], truth: Truth) -> Estimate:
    """Return how much better (or worse) the later half of one annotator's judgements is than the earlier."""
    shares: list[tuple[str, float]] = []
    for judgement in judgements:
        hits = [
            given == truth[judgement.subject, question]
            for question in VALUES
            if (judgement.subject, question) in truth
            if (given := answer(judgement, question)) is not None
        ]
        if hits:
            shares.append((cluster_of(judgement.subject), sum(hits) / len(hits)))
    if len(shares) < 2:
        return NOTHING
    values = np.array([share for _, share in shares])
    is_late = (np.arange(len(values)) >= len(values) // 2).astype(np.float64)
    late, early = mean_of(values, is_late), mean_of(values, 1 - is_late)
    gain = {"drift": lambda draws: late(draws) - early(draws)}
    return estimates(gain, [name for name, _ in shares])["drift"]


def speed(
    judgements: Sequence[Judgement], words: Mapping[str, int], *, is_person: bool
) -> tuple[float | None, Estimate]:
    """Return the median of the seconds, and the share of a person's judgements that are too fast."""
    timed = [(j.subject, j.seconds) for j in judgements if j.seconds is not None]
    if not timed or not is_person:
        return None, NOTHING
    fast = [
        seconds < max(LEAST_SECONDS, words.get(subject, 0) / WORDS_PER_SECOND) for subject, seconds in timed
    ]
    return median(seconds for _, seconds in timed), wilson(sum(fast), len(fast))


def contradictions(panel: Panel, name: str, records: Iterable[Judged]) -> list[str]:
    """Return where an annotator's own labels contradict each other: `data check` on a copy with only these.

    Safe with a severity or a category, unsafe with severity 0, `safer` on the unsafe answer of two, and
    the same text judged safe here and unsafe there.
    """
    copies = [
        Placed(name, number, _labelled_by(panel, name, record)) for number, record in enumerate(records)
    ]
    return [
        f"{finding.id}: {finding.field}: {finding.message}"
        if finding.kind != "conflict"
        else f"{finding.id}: {finding.field}: judged otherwise elsewhere, the text is the same"
        for finding in check(copies)
        if finding.kind in CONTRADICTIONS
    ]


def cycles(panel: Panel, name: str, records: Iterable[Judged]) -> list[str]:
    """Return the ids of pairs whose strict preference lies on a cycle of such among answers to one prompt."""
    found: dict[str, None] = {}
    pairs = [r for r in records if isinstance(r, Pair) and name in panel.answers.get(r.id, {})]
    for preference in PREFERENCES:
        number: dict[tuple[str, str], int] = {}
        rows: list[tuple[str, int, int, float]] = []
        for pair in pairs:
            choice = answer(panel.answers[pair.id][name], preference)
            if choice in {0, 1}:
                both = [
                    number.setdefault((text_of(pair.prompt), a.response), len(number)) for a in pair.answers
                ]
                rows.append((pair.id, both[0], both[1], float(choice == 0)))
        if rows:
            ids, first, second, result = zip(*rows, strict=True)
            data = Comparisons(np.array(first), np.array(second), np.array(result))
            is_bad = in_cycles(data, len(number))
            found |= {id_: None for id_, bad in zip(ids, is_bad, strict=True) if bad}
    return list(found)


def _labelled_by(panel: Panel, name: str, record: Judged) -> Judged:
    """Return a record with the labels of one annotator and no others."""
    blank = dict.fromkeys(Labels.model_fields)

    def labels(subject: str) -> dict[str, Any]:
        judgement = panel.answers.get(subject, {}).get(name)
        given = judgement.labels if judgement else None
        return blank if given is None else {key: getattr(given, key) for key in blank}

    if isinstance(record, Exchange):
        return record.model_copy(update=labels(record.id))
    mine = panel.answers.get(record.id, {}).get(name)
    answers = tuple(
        a.model_copy(update=labels(f"{record.id}#{index}")) for index, a in enumerate(record.answers)
    )
    chosen = {key: None if mine is None else getattr(mine, key) for key in PREFERENCES}
    return record.model_copy(update={"answers": answers, **chosen})


def _words(record: Judged) -> dict[str, int]:
    """Return how many words have to be read for each subject of a record."""
    prompt = len(text_of(record.prompt).split())
    if isinstance(record, Exchange):
        return {record.id: prompt + len(record.response.split())}
    sizes = [len(a.response.split()) for a in record.answers]
    return dict(zip(subjects_of(record), (prompt + sum(sizes), *(prompt + s for s in sizes)), strict=True))
