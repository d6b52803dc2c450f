"""Records that contradict each other: the same text, labelled in different ways.

Texts are the same when they differ only in case, white space and Unicode form. `data check` compares
texts as they stand and safety alone; this looks at every label, and makes a queue for people.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from equipoise.curation.minhash import normalise
from equipoise.data.identity import AnyRecord, text_key
from equipoise.records import Answer, Exchange, Pair, Prompt, text_of

PROMPT_FIELDS = ("is_harmful", "categories", "severity")
RESPONSE_FIELDS = ("is_safe", "severity", "categories", "refusal")
PAIR_FIELDS = ("better", "safer", "overall")


class Conflict(NamedTuple):
    """One text with more than one answer to the same question."""

    field: str
    """The label, or `provenance.NAME`; `prompt.`, `response.` or `pair.` says what it is a label of."""
    values: dict[str, tuple[str, ...]]
    """Label as a text -> ids of the records that carry it, in order."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all records that take part."""
        return tuple(id_ for ids in self.values.values() for id_ in ids)


def find_conflicts(records: Iterable[AnyRecord], columns: Sequence[str] = ()) -> list[Conflict]:
    """Return all conflicts between records, in the order of their first records.

    Args:
        records: Records of any kinds.
        columns: Names of columns in `provenance` that are labels too, for sources that have others.
    """
    seen: dict[tuple[str, bytes], dict[Hashable, list[str]]] = {}
    for record in records:
        for field, key, value in _labels(record, columns):
            seen.setdefault((field, key), {}).setdefault(value, []).append(record.id)
    return [
        Conflict(field, {_shown(value): tuple(dict.fromkeys(ids)) for value, ids in values.items()})
        for (field, _), values in seen.items()
        if len(values) > 1
    ]


def conflict_queue(records: Iterable[AnyRecord], conflicts: Sequence[Conflict]) -> list[AnyRecord]:
    """Return the records that take part in conflicts, those of one text together, for people to decide."""
    known = {record.id: record for record in records}
    ordered = dict.fromkeys(id_ for conflict in conflicts for id_ in conflict.ids)
    return [known[id_] for id_ in ordered]


def _labels(record: AnyRecord, columns: Sequence[str]) -> list[tuple[str, bytes, Hashable]]:
    """Return the labels of a record: name, key of the text that is labelled, and value."""
    prompt = normalise(text_of(record.prompt))
    found: list[tuple[str, bytes, Hashable]] = []

    def add(kind: str, texts: Sequence[str], labels: Iterable[tuple[str, Hashable | None]]) -> None:
        key = text_key(texts)
        found.extend((f"{kind}.{name}", key, value) for name, value in labels if value is not None)

    def add_answer(answer: Answer | Exchange) -> None:
        fields = [name for name in RESPONSE_FIELDS if name != "categories" or answer.rated is None]
        texts = (record.taxonomy, prompt, normalise(answer.response))
        add("response", texts, ((name, getattr(answer, name)) for name in fields))

    texts = [record.taxonomy, prompt]
    match record:
        case Prompt():
            kind = "prompt"
            add(kind, texts, ((name, getattr(record, name)) for name in PROMPT_FIELDS))
        case Exchange():
            kind = "response"
            add("prompt", texts, [("is_harmful", record.prompt_is_harmful)])
            add_answer(record)
            texts.append(normalise(record.response))
        case Pair():
            kind = "pair"
            for answer in record.answers:
                add_answer(answer)
            responses = [normalise(answer.response) for answer in record.answers]
            turned = responses[0] > responses[1]  # a pair the other way round is the same pair
            texts += sorted(responses)
            if responses[0] != responses[1]:
                add(kind, texts, ((name, _turn(getattr(record, name), turned)) for name in PAIR_FIELDS))
    add(kind, texts, ((f"provenance.{name}", _plain(record.provenance.get(name))) for name in columns))
    return found


def _turn(choice: Hashable | None, turned: bool) -> Hashable | None:
    return 1 - choice if turned and isinstance(choice, int) else choice


def _plain(value: object) -> Hashable | None:
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _shown(value: Hashable) -> str:
    return ", ".join(sorted(value)) or "none" if isinstance(value, frozenset) else str(value)
