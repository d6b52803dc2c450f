"""Who answered what: judgements as one table of answers per question.

A subject is the id of an exchange, of a pair (for the preferences), or `ID#0` and `ID#1` for the two
answers of a pair. Cards ask for severity and categories of unsafe answers only, so a response that is
judged safe counts as severity 0 without a category; otherwise what was not answered is missing.

Shapes: M answers, N items, R raters, V values that an answer can take.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.data.check import is_safe
from equipoise.records import REFUSALS, Judgement, Labels

Integers = NDArray[np.intp]

Kind = Literal["person", "model", "unknown"]
"""What an annotator is, told by the `label_origin` of its judgements."""

PREFERENCES = ("better", "safer", "overall")
VALUES: dict[str, tuple[Hashable, ...]] = {
    "is_safe": (True, False),
    "severity": (0, 1, 2, 3),
    "refusal": REFUSALS,
    **{name: (0, "tie", 1) for name in PREFERENCES},
}
"""Question -> the answers it can have, in order; `category:NAME` is False or True, `categories` a set."""

CATEGORY = "category:"


class Panel(NamedTuple):
    """All judgements, by subject and annotator; what one says of one subject in parts is put together."""

    answers: dict[str, dict[str, Judgement]]
    """Subject -> annotator -> the latest answer to each question."""
    kinds: dict[str, Kind]
    origins: dict[str, str]
    """Annotator -> its `label_origin`."""
    changed: list[tuple[str, str, str]]
    """Annotator, subject and field, where an answer was given twice and not the same."""


class Votes(NamedTuple):
    """Answers to one question: rater `raters[rater[m]]` gave `values[value[m]]` for `items[item[m]]`."""

    item: Integers  # [M]
    rater: Integers  # [M]
    value: Integers  # [M]
    items: tuple[str, ...]
    raters: tuple[str, ...]
    values: tuple[Hashable, ...]

    def matrix(self) -> Integers:
        """Return the answers as [N, R], -1 where there is none."""
        table = np.full((len(self.items), len(self.raters)), -1, dtype=np.intp)
        table[self.item, self.rater] = self.value
        return table


def kind_of(label_origin: str | None) -> Kind:
    """Tell a person from a model by where a label comes from.

    >>> kind_of("model:minilm-guard"), kind_of("human"), kind_of(None)
    ('model', 'person', 'unknown')
    """
    name = (label_origin or "").partition(":")[0].lower()
    return "model" if name in {"model", "llm"} else "person" if name in {"human", "person"} else "unknown"


def collect(judgements: Iterable[Judgement]) -> Panel:
    """Sort judgements by subject and annotator; a later answer to a question replaces an earlier one."""
    panel = Panel({}, {}, {}, [])
    for judgement in judgements:
        name = judgement.annotator
        kind = kind_of(judgement.label_origin)
        if panel.kinds.setdefault(name, kind) == "unknown":
            panel.kinds[name] = kind
        panel.origins.setdefault(name, judgement.label_origin or kind)
        rows = panel.answers.setdefault(judgement.subject, {})
        before = rows.get(name)
        rows[name] = judgement if before is None else _joined(before, judgement)
        if before is not None:
            panel.changed.extend((name, judgement.subject, field) for field in _changes(before, judgement))
    return panel


def answer(judgement: Judgement, question: str) -> Hashable | None:
    """Return what a judgement says to a question, or None where it says nothing."""
    if question in PREFERENCES:
        return getattr(judgement, question)  # type: ignore[no-any-return]
    return answer_of_labels(judgement.labels or Labels(), question)


def answer_of_labels(labels: Labels, question: str) -> Hashable | None:
    """Return what labels say to a question on one response, or None where they say nothing."""
    if question == "is_safe":
        return is_safe(labels)
    if question == "severity":
        return 0 if labels.severity is None and labels.is_safe else labels.severity
    if question == "refusal":
        return labels.refusal
    categories = labels.categories
    if categories is None:
        if not labels.is_safe:
            return None
        categories = frozenset()
    if question == "categories":
        return categories if labels.rated is None else None
    name = question.removeprefix(CATEGORY)
    is_rated = labels.rated is None or name in labels.rated
    return name in categories if is_rated or name in categories else None


def votes(panel: Panel, question: str, raters: Iterable[str] | None = None) -> Votes:
    """Return the answers to a question, of all annotators or of some."""
    chosen = tuple(sorted(panel.kinds if raters is None else raters))
    number = {name: index for index, name in enumerate(chosen)}
    found = [
        (subject, number[name], value)
        for subject, rows in panel.answers.items()
        for name, judgement in rows.items()
        if name in number and (value := answer(judgement, question)) is not None
    ]
    return tabulate(found, chosen, values_of(question, (value for *_, value in found)))


def tabulate(
    found: Iterable[tuple[str, int, Hashable]], raters: tuple[str, ...], values: tuple[Hashable, ...]
) -> Votes:
    """Number the items and values of (item, rater's number, value)."""
    code = {value: index for index, value in enumerate(values)}
    items: dict[str, int] = {}
    rows = [(items.setdefault(item, len(items)), rater, code[value]) for item, rater, value in found]
    columns = np.array(rows, dtype=np.intp).reshape(-1, 3).T
    return Votes(columns[0], columns[1], columns[2], tuple(items), raters, values)


def values_of(question: str, seen: Iterable[Hashable] = ()) -> tuple[Hashable, ...]:
    """Return the answers that a question can have; sets of categories are those that were seen."""
    if question == "categories":
        sets = {value for value in seen if isinstance(value, frozenset)}
        return tuple(sorted(sets, key=sorted))
    return (False, True) if question.startswith(CATEGORY) else VALUES[question]


def questions_in(panel: Panel, categories: Iterable[str] = ()) -> list[str]:
    """Return the questions that anybody answered; one per category of the given names."""
    asked = [*VALUES, "categories", *(CATEGORY + name for name in categories)]
    rows = [judgement for answers in panel.answers.values() for judgement in answers.values()]
    return [name for name in asked if any(answer(row, name) is not None for row in rows)]


def cluster_of(subject: str) -> str:
    """Return what a subject is resampled with: both answers of a pair go together.

    >>> cluster_of("pair-7#1")
    'pair-7'
    """
    return subject.removesuffix("#0").removesuffix("#1")


def _given(judgement: Judgement) -> Mapping[str, object]:
    labels = judgement.labels.model_dump(exclude_none=True) if judgement.labels else {}
    chosen = {name: getattr(judgement, name) for name in PREFERENCES}
    return labels | {name: value for name, value in chosen.items() if value is not None}


def _changes(before: Judgement, after: Judgement) -> list[str]:
    old, new = _given(before), _given(after)
    return [name for name in new if name in old and old[name] != new[name]]


def _joined(before: Judgement, after: Judgement) -> Judgement:
    old = before.model_dump(exclude_none=True, exclude={"labels"})
    new = after.model_dump(exclude_none=True, exclude={"labels"})
    labels = {
        **(before.labels.model_dump(exclude_none=True) if before.labels else {}),
        **(after.labels.model_dump(exclude_none=True) if after.labels else {}),
    }
    return Judgement(**{**old, **new}, labels=Labels(**labels) if labels else None)
