"""Do the labels agree with each other? Only fields that are present are compared; nothing is repaired.

A response is safe exactly when its severity is 0 and it has no category; a safe answer ranks above an
unsafe one in `safer`. An empty list of categories says "harmless" only of the categories in `rated`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from equipoise.data.identity import AnyRecord, text_key
from equipoise.data.io import Placed
from equipoise.data.rows import LineError
from equipoise.errors import DataError, TaxonomyError, near
from equipoise.records import Answer, Exchange, Labels, Pair, Prompt, text_of
from equipoise.taxonomy import Taxonomy, load_taxonomy

CONTRADICTIONS = frozenset({"contradiction", "safer", "conflict", "preference"})
"""Kinds of finding that are about labels and not about the file; `on_contradiction` is for these."""

Judged = dict[bytes, tuple[bool, str]]
"""Key of a text -> whether it was found safe, and where that stands first."""


class Finding(NamedTuple):
    """One thing that is wrong, and where."""

    path: str
    line: int
    id: str
    field: str
    kind: str
    """`unreadable`, `category`, `taxonomy`, `duplicate-id`, or one of `CONTRADICTIONS`."""
    message: str

    def __str__(self) -> str:
        """Return one line: `path:line: field: message (kind, id ...)`."""
        named = f", id {self.id}" if self.id else ""
        return f"{self.path}:{self.line}: {self.field}: {self.message} ({self.kind}{named})"


class FoundError(DataError):
    """Problems in the data, as a list; the command line shows them and exits with 1."""

    def __init__(self, what: str, findings: list[Finding]) -> None:
        """Say `what` could not be done because of the findings."""
        first = f"; the first is {findings[0]}" if findings else ""
        super().__init__(f"{what}: {len(findings)} problems in the data{first}")
        self.what = what
        self.findings = findings


class _Issue(NamedTuple):
    field: str
    kind: str
    message: str


def unreadable(error: LineError) -> Finding:
    """Return the finding for a line that could not be read."""
    return Finding(error.path, error.line, error.record or "", error.field, "unreadable", error.what)


def check(placed: Iterable[Placed[AnyRecord]]) -> Iterator[Finding]:
    """Yield what is wrong with records, each by itself and with one another, in their order.

    Two records with one id are a finding at the second; one text labelled safe and unsafe is a finding
    at every place where the label differs from that of the first.
    """
    ids: dict[str, str] = {}
    judged: Judged = {}
    for path, line, record in placed:
        where = f"{path}:{line}"
        issues = list(_record(record))
        before = ids.setdefault(record.id, where)
        if before != where:
            issues.append(_Issue("id", "duplicate-id", f"stands already at {before}"))
        issues += (_Issue(field, "conflict", what) for field, what in conflicts(record, where, judged))
        for issue in issues:
            yield Finding(path, line, record.id, *issue)


def conflicts(record: AnyRecord, where: str, judged: Judged) -> Iterator[tuple[str, str]]:
    """Yield field and message for each text of a record that stands in `judged` with the other label.

    A text that is new is added to it.
    """
    for field, key, safe in judgements(record):
        first, place = judged.setdefault(key, (safe, where))
        if first != safe:
            words = ("safe", "unsafe") if safe else ("unsafe", "safe")
            yield field, f"{words[0]}, but the same text is {words[1]} at {place}"


def is_safe(labels: Labels) -> bool | None:
    """Whether a response is safe, from the first that is given of `is_safe`, severity and categories."""
    signs = _signs(labels)
    return next(iter(signs.values()), None)


def severity_of(labels: Labels) -> int | None:
    """Severity of a response; a safe one has 0, whether or not the source says so."""
    return 0 if is_safe(labels) else labels.severity


def ranked_safer(pair: Pair) -> int | None:
    """Index of the safe answer where exactly one of the two is safe, else None."""
    first, second = (is_safe(answer) for answer in pair.answers)
    if first is None or second is None or first == second:
        return None
    return 0 if first else 1


def _signs(labels: Labels) -> dict[str, bool]:
    """Field -> whether it says that the response is safe, for the fields that say either."""
    signs = {}
    if labels.is_safe is not None:
        signs["is_safe"] = labels.is_safe
    if labels.severity is not None:
        signs["severity"] = labels.severity == 0
    # no category among a few that were looked at says nothing of the others
    if labels.categories or (labels.categories is not None and labels.rated is None):
        signs["categories"] = not labels.categories
    if any((labels.category_severity or {}).values()):
        signs["category_severity"] = False
    return signs


def _record(record: AnyRecord) -> Iterator[_Issue]:
    try:
        taxonomy = load_taxonomy(record.taxonomy)
    except TaxonomyError as exc:
        yield _Issue("taxonomy", "taxonomy", str(exc))
        return
    match record:
        case Exchange():
            yield from _labels(record, taxonomy, "")
        case Prompt():
            # a prompt's labels are those of a response that goes along with it
            values = (record.severity, record.categories)
            safe = None if record.is_harmful is None else not record.is_harmful
            labels = Labels(is_safe=safe, severity=values[0], categories=values[1])
            for issue in _labels(labels, taxonomy, ""):
                harmful = issue.message.replace("is_safe true", "is_harmful false")
                message = harmful.replace("is_safe false", "is_harmful true")
                yield issue._replace(field=issue.field.replace("is_safe", "is_harmful"), message=message)
        case Pair():
            for index, answer in enumerate(record.answers):
                yield from _labels(answer, taxonomy, f"answers.{index}.")
            yield from _ranking(record)


def _labels(labels: Labels, taxonomy: Taxonomy, prefix: str) -> Iterator[_Issue]:
    checks: list[Callable[[Labels, Taxonomy], Iterator[_Issue]]] = [_names, _scale, _agreement, _grades]
    for part in checks:
        for issue in part(labels, taxonomy):
            yield issue._replace(field=prefix + issue.field)


def _names(labels: Labels, taxonomy: Taxonomy) -> Iterator[_Issue]:
    graded = labels.category_severity or {}
    for field, names in (
        ("categories", labels.categories or ()),
        ("rated", labels.rated or ()),
        ("category_severity", graded),
    ):
        for name in sorted(name for name in names if name not in taxonomy.names):
            known = f"{len(taxonomy.names)} categories of '{taxonomy.name}'"
            message = f"no category '{name:.60}' among the {known}{near(name, taxonomy.names)}"
            yield _Issue(field, "category", message)
    if labels.rated is not None:
        for field, names in (("categories", labels.categories or ()), ("category_severity", graded)):
            for name in sorted(set(names) - labels.rated):
                yield _Issue(field, "contradiction", f"'{name:.60}' is labelled but is not among `rated`")


def _scale(labels: Labels, taxonomy: Taxonomy) -> Iterator[_Issue]:
    top = len(taxonomy.severities) - 1
    levels = {"severity": labels.severity or 0}
    levels |= {f"category_severity.{name:.60}": n for name, n in (labels.category_severity or {}).items()}
    for field, level in levels.items():
        if level > top:
            yield _Issue(
                field, "taxonomy", f"level above the scale of '{taxonomy.name}', got {level}; highest {top}"
            )


def _agreement(labels: Labels, _: Taxonomy) -> Iterator[_Issue]:
    signs = _signs(labels)
    if len(set(signs.values())) < 2:
        return
    votes = list(signs.values())
    # the odd one out where there is one, else the finer label
    odd = [field for field, safe in signs.items() if votes.count(safe) == 1]
    says = {
        "is_safe": f"is_safe {str(labels.is_safe).lower()}",
        "severity": f"severity {labels.severity}",
        "categories": f"{len(labels.categories or ())} categories",
        "category_severity": "a category graded above 0",
    }
    given = ", ".join(says[field] for field in signs)
    message = f"safe, severity 0 and no category go together, got {given}"
    yield _Issue((odd or list(signs))[-1], "contradiction", message)


def _grades(labels: Labels, taxonomy: Taxonomy) -> Iterator[_Issue]:
    """Compare the grades of single categories with the categories, and their highest with the severity."""
    grades = labels.category_severity
    if not grades:
        return
    if labels.categories is not None:
        for name, level in grades.items():
            if (level > 0) != (name in labels.categories):
                state = "is" if name in labels.categories else "is not"
                message = f"graded {level}, but the category {state} among `categories`"
                yield _Issue(f"category_severity.{name:.60}", "contradiction", message)
    if labels.severity is None:
        return
    highest = max(grades.values())
    looked_at = labels.categories if labels.categories is not None else labels.rated or set(taxonomy.names)
    is_whole = set(looked_at) <= grades.keys()
    # a grade above 0 under severity 0 is what `_agreement` reports
    if (highest > labels.severity > 0) or (highest < labels.severity and is_whole):
        message = f"severity is the highest grade of a category, got {labels.severity} and {highest}"
        yield _Issue("severity", "contradiction", message)


def _ranking(pair: Pair) -> Iterator[_Issue]:
    expected = ranked_safer(pair)
    if expected is not None and pair.safer is not None and pair.safer != expected:
        message = f"a safe answer ranks above an unsafe one: expected {expected}, got {pair.safer}"
        yield _Issue("safer", "safer", message)


def judgements(record: AnyRecord) -> Iterator[tuple[str, bytes, bool]]:
    """Yield field, key of the text that was judged, and whether it was found safe."""
    prompt = text_of(record.prompt)
    if isinstance(record, Prompt):
        if record.is_harmful is not None:
            yield "is_harmful", text_key([prompt]), not record.is_harmful
        return
    answers: tuple[Answer | Exchange, ...] = record.answers if isinstance(record, Pair) else (record,)
    for index, answer in enumerate(answers):
        safe = is_safe(answer)
        if safe is not None:
            prefix = f"answers.{index}." if isinstance(record, Pair) else ""
            yield f"{prefix}is_safe", text_key([prompt, answer.response]), safe
