"""Labelled records from judgements: what all annotators say together, and who they were.

The labels of one response are decided in order: safe or not; then the severity and the categories of
the unsafe ones, so that they cannot contradict each other. An unsafe response with no category over
one half gets the most probable one, as in moderation, and a safe answer ranks above an unsafe one in
`safer`. Where that changes what a question would have been by itself, it is counted. What nobody
answered stays missing.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from equipoise.annotation.bradley_terry import Comparisons, Ties, bradley_terry
from equipoise.annotation.raters import (
    CATEGORY,
    PREFERENCES,
    Panel,
    answer,
    questions_in,
)
from equipoise.annotation.settle import Method, Question, Settled, settle
from equipoise.data.check import ranked_safer
from equipoise.progress import track
from equipoise.records import Answer, Exchange, Pair, text_of
from equipoise.taxonomy import load_taxonomy

Judged = Exchange | Pair
Found = Mapping[str, Settled]
"""Question -> what was settled for one subject."""


class Consensus(NamedTuple):
    """Records with the labels that were settled, in order, and what there is to know of it."""

    records: list[Judged]
    questions: dict[str, Question]
    judged: int
    """Records with a judgement; the others are as they were."""
    single: int
    """Records that one annotator labelled alone."""
    undecided: int
    """Answers that stay missing because the votes are equal."""
    adjusted: dict[str, int]
    """Label -> how often it was made to fit the others."""
    strangers: list[str]
    """Subjects that were judged and are not among the records."""


def consensus(records: Iterable[Judged], panel: Panel, *, method: Method = "dawid-skene") -> Consensus:
    """Settle what was judged and label the records with it.

    A record's earlier harm labels are replaced together where any of them was judged; so is each preference.
    """
    records = list(records)
    names = dict.fromkeys(n for t in sorted({r.taxonomy for r in records}) for n in load_taxonomy(t).names)
    asked = [name for name in questions_in(panel, names) if name != "categories"]
    questions = {name: settle(panel, name, method) for name in track(asked, "settling")}
    adjusted: Counter[str] = Counter()
    labelled = [_label(record, panel, questions, adjusted) for record in records]
    known = {subject for record in records for subject in subjects_of(record)}
    strangers = [subject for subject in panel.answers if subject not in known]
    touched = [rows for record in records if (rows := _annotators(record, panel))]
    return Consensus(
        labelled,
        questions,
        judged=len(touched),
        single=sum(len(rows) == 1 for rows in touched),
        undecided=sum(s.value is None for q in questions.values() for s in q.answers.values()),
        adjusted=dict(adjusted),
        strangers=strangers,
    )


def subjects_of(record: Judged) -> tuple[str, ...]:
    """Return the subjects that judgements of a record can have."""
    return (record.id,) if isinstance(record, Exchange) else (record.id, f"{record.id}#0", f"{record.id}#1")


def origin(annotators: Sequence[str], panel: Panel) -> str:
    """Return the `label_origin` of labels by some annotators: that of one, or who the several are."""
    if len(annotators) == 1:
        return panel.origins[annotators[0]]
    kinds = Counter(panel.kinds[name] for name in annotators)
    return f"consensus of {len(annotators)}: " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))


def utilities(pairs: Sequence[Pair], panel: Panel, name: str, *, ties: Ties = "davidson") -> dict[str, Any]:
    """Return the utilities of both answers of each pair, by id, from all preferences called `name`.

    Answers that are compared in several pairs of one prompt share one utility; those of different
    prompts are never compared. Each is relative to the mean of its prompt's answers.
    """
    number: dict[tuple[str, str], int] = {}
    keys = {
        pair.id: [number.setdefault((text_of(pair.prompt), a.response), len(number)) for a in pair.answers]
        for pair in pairs
    }
    result = {0: 1.0, 1: 0.0, "tie": 0.5}
    rows = [
        (*keys[pair.id], result[choice])
        for pair in pairs
        for judgement in panel.answers.get(pair.id, {}).values()
        if (choice := getattr(judgement, name)) is not None and keys[pair.id][0] != keys[pair.id][1]
    ]
    if not rows:
        return {}
    first, second, results = np.array(rows).T
    data = Comparisons(first.astype(np.intp), second.astype(np.intp), results)
    values = bradley_terry(data, len(number), ties=ties).values
    answered = {index for row in rows for index in row[:2]}
    return {id_: [float(values[i]) for i in both] for id_, both in keys.items() if answered.issuperset(both)}


def _label(record: Judged, panel: Panel, questions: Mapping[str, Question], adjusted: Counter[str]) -> Judged:
    annotators = _annotators(record, panel)
    if not annotators:
        return record
    found = {s: _found(questions, s) for s in subjects_of(record)}
    taxonomy = load_taxonomy(record.taxonomy).names
    changes: dict[str, Any] = {"label_origin": origin(annotators, panel), "annotators": annotators}
    if isinstance(record, Exchange):
        changes |= _labels(found[record.id], taxonomy, adjusted)
        notes: dict[str, Any] = _notes(found[record.id])
    else:
        answers = [
            answer.model_copy(update=_labels(found[f"{record.id}#{i}"], taxonomy, adjusted))
            for i, answer in enumerate(record.answers)
        ]
        chosen = {name: found[record.id][name].value for name in PREFERENCES if name in found[record.id]}
        changes |= {"answers": tuple(answers), **chosen}
        if chosen.get("safer") is not None:
            changes["safer"] = _logical_order(record, answers, chosen["safer"], adjusted)
        notes = _notes(found[record.id])
        notes |= {f"answers.{i}": n for i in (0, 1) if (n := _notes(found[f"{record.id}#{i}"]))}
    if record.label_origin is not None:
        notes["label_origin_before"] = record.label_origin
    changes["provenance"] = {**record.provenance, "consensus": notes}
    return record.model_copy(update=changes)


def _annotators(record: Judged, panel: Panel) -> tuple[str, ...]:
    names = {
        name
        for subject in subjects_of(record)
        for name, judgement in panel.answers.get(subject, {}).items()
        if judgement.labels is not None or any(answer(judgement, p) is not None for p in PREFERENCES)
    }
    return tuple(sorted(names))


def _found(questions: Mapping[str, Question], subject: str) -> dict[str, Settled]:
    return {name: q.answers[subject] for name, q in questions.items() if subject in q.answers}


def _labels(found: Found, taxonomy: Sequence[str], adjusted: Counter[str]) -> dict[str, Any]:
    """Return the fields of `Labels` for one response, those that were judged and what goes with them."""
    changes: dict[str, Any] = {}
    if "refusal" in found:
        changes["refusal"] = found["refusal"].value
    harm = {
        name: s for name, s in found.items() if name in {"is_safe", "severity"} or name.startswith(CATEGORY)
    }
    if not harm:
        return changes
    safe = harm["is_safe"].value if "is_safe" in harm else None
    categories, rated = _categories(harm, safe, taxonomy, adjusted)
    changes |= {"is_safe": safe, "severity": _severity(harm, safe, adjusted), "category_severity": None}
    return changes | {"categories": categories, "rated": rated}


def _severity(found: Found, safe: Hashable | None, adjusted: Counter[str]) -> int | None:
    settled = found.get("severity")
    if settled is None or safe is None:
        return None
    if safe:
        adjusted["severity"] += settled.value not in {0, None}
        return 0
    if settled.seen == {0}:
        return None
    adjusted["severity"] += settled.value == 0
    return 1 + int(np.argmax(settled.posterior[1:]))


def _categories(
    found: Found, safe: Hashable | None, taxonomy: Sequence[str], adjusted: Counter[str]
) -> tuple[frozenset[str] | None, frozenset[str] | None]:
    """Return the categories and which were looked at (None for all)."""
    names = [name for name in taxonomy if CATEGORY + name in found]
    is_undecided = safe is None and "is_safe" in found
    if not names or is_undecided:
        return None, None
    rated = None if len(names) == len(taxonomy) else frozenset(names)
    flagged = {name for name in names if found[CATEGORY + name].value}
    if safe:
        adjusted["categories"] += bool(flagged)
        return frozenset(), rated
    if safe is False and not flagged:
        probable = {n: found[CATEGORY + n].posterior[1] for n in names if True in found[CATEGORY + n].seen}
        if not probable:
            return (frozenset(), rated) if rated else (None, None)
        adjusted["categories"] += 1
        flagged = {max(probable, key=lambda name: probable[name])}
    return frozenset(flagged), rated


def _logical_order(
    record: Pair, answers: Sequence[Answer], safer: Hashable, adjusted: Counter[str]
) -> Hashable:
    ranked = ranked_safer(record.model_copy(update={"answers": tuple(answers)}))
    if ranked is None or ranked == safer:
        return safer
    adjusted["safer"] += 1
    return ranked


def _notes(found: Found) -> dict[str, Any]:
    """Return who agreed on what; of the categories, those that somebody named."""
    return {
        name: {"p": round(s.probability, 4), "raters": s.raters, "agree": s.agreeing}
        for name, s in found.items()
        if not name.startswith(CATEGORY) or True in s.seen
    }
