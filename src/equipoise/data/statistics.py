"""What a data set holds, in numbers: counts only, no text.

A share is None where nothing is labelled, which is another thing than 0. Records are counted as they go
by and not held: memory grows with the number of distinct prompts and label combinations only.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from equipoise.data.identity import AnyRecord, text_key
from equipoise.data.label_counts import Combination, LabelCounts, combination, label_counts
from equipoise.data.pair_counts import Kind, PairCounts, kind_of, pair_counts
from equipoise.data.splits import normalise_prompt
from equipoise.records import REFUSALS, Answer, Exchange, Labels, Pair, Prompt, text_of

R = TypeVar("R", bound=AnyRecord)

_SAFETY: dict[bool | None, str] = {True: "safe", False: "unsafe", None: "unlabelled"}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Lengths(_Frozen):
    """Lengths of texts in words, as white space separates them."""

    n: int
    """Texts."""
    percentile_10: float
    percentile_25: float
    median: float
    percentile_75: float
    percentile_90: float


class SourceCounts(_Frozen):
    """What one source gave."""

    records: int
    responses: int
    unsafe: int
    """Of the responses."""
    unsafe_share: float | None
    """Of the responses that are labelled."""
    prompt_words: Lengths | None
    response_words: Lengths | None


class Statistics(_Frozen):
    """Everything that is counted over some records."""

    prompts: int
    exchanges: int
    pairs: int
    distinct_prompts: int
    """After normalisation, over all kinds."""
    taxonomies: dict[str, int]
    licences: dict[str, int]
    sources: dict[str, int]
    label_origins: dict[str, int]
    prompt_labels: LabelCounts | None
    """Of records that are prompts alone."""
    response_labels: LabelCounts | None
    """Of exchanges and of both answers of pairs."""
    refusals: dict[str, int]
    pair_counts: PairCounts | None
    prompt_words: Lengths | None
    response_words: Lengths | None
    response_words_by_safety: dict[str, Lengths]
    """`safe`, `unsafe` and `unlabelled`, where there are any."""
    by_source: dict[str, SourceCounts]


class Counting:
    """Counts over records as they go by."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._kinds: Counter[type[AnyRecord]] = Counter()
        self._prompts: set[bytes] = set()
        self._taxonomies: Counter[str] = Counter()
        self._licences: Counter[str] = Counter()
        self._origins: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()
        self._prompt_labels: Counter[Combination] = Counter()
        self._labels: Counter[Combination] = Counter()
        self._refusals: Counter[str] = Counter()
        self._pairs: Counter[Kind] = Counter()
        # words of a text -> how many texts have so many
        self._prompt_words: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._words: defaultdict[tuple[str, bool | None], Counter[int]] = defaultdict(Counter)

    def watch(self, records: Iterable[R]) -> Iterator[R]:
        """Yield the records and count each."""
        for record in records:
            self.add(record)
            yield record

    def add(self, record: AnyRecord) -> None:
        """Count one record."""
        prompt = text_of(record.prompt)
        self._kinds[type(record)] += 1
        self._prompts.add(text_key([normalise_prompt(prompt)]))
        self._taxonomies[record.taxonomy] += 1
        self._licences[record.licence] += 1
        self._origins[record.label_origin or "unknown"] += 1
        self._sources[record.source] += 1
        self._prompt_words[record.source][len(prompt.split())] += 1
        match record:
            case Prompt():
                self._prompt_labels[combination(_labels_of(record))] += 1
            case Exchange():
                self._add_response(record, record.source)
            case Pair():
                self._pairs[kind_of(record)] += 1
                for answer in record.answers:
                    self._add_response(answer, record.source)

    def _add_response(self, answer: Answer | Exchange, source: str) -> None:
        labels = combination(answer)
        self._labels[labels] += 1
        self._refusals[answer.refusal or "unlabelled"] += 1
        self._words[source, labels.safe][len(answer.response.split())] += 1

    def result(self) -> Statistics:
        """Return the numbers so far."""
        taxonomies, sources = _frequent(self._taxonomies), _frequent(self._sources)
        by_safety = {word: _lengths(self._words_of(sources, [sign])) for sign, word in _SAFETY.items()}
        return Statistics(
            prompts=self._kinds[Prompt],
            exchanges=self._kinds[Exchange],
            pairs=self._kinds[Pair],
            distinct_prompts=len(self._prompts),
            taxonomies=taxonomies,
            licences=_frequent(self._licences),
            sources=sources,
            label_origins=_frequent(self._origins),
            prompt_labels=label_counts(self._prompt_labels, taxonomies),
            response_labels=label_counts(self._labels, taxonomies),
            refusals={name: self._refusals[name] for name in (*REFUSALS, "unlabelled") if self._refusals},
            pair_counts=pair_counts(self._pairs),
            prompt_words=_lengths(_sum(self._prompt_words.values())),
            response_words=_lengths(self._words_of(sources, _SAFETY)),
            response_words_by_safety={word: found for word, found in by_safety.items() if found},
            by_source={name: self._source(name) for name in sources},
        )

    def _source(self, name: str) -> SourceCounts:
        words = self._words_of([name], _SAFETY)
        safe, unsafe = (self._words_of([name], [sign]).total() for sign in (True, False))
        return SourceCounts(
            records=self._sources[name],
            responses=words.total(),
            unsafe=unsafe,
            unsafe_share=unsafe / (safe + unsafe) if safe + unsafe else None,
            prompt_words=_lengths(self._prompt_words[name]),
            response_words=_lengths(words),
        )

    def _words_of(self, sources: Iterable[str], signs: Iterable[bool | None]) -> Counter[int]:
        keys = itertools.product(sources, signs)
        return _sum(self._words[key] for key in keys if key in self._words)


def statistics(records: Iterable[AnyRecord]) -> Statistics:
    """Count what records hold; they may be of several kinds."""
    counting = Counting()
    for record in records:
        counting.add(record)
    return counting.result()


def _frequent(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts, the most frequent first."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _labels_of(row: Prompt) -> Labels:
    safe = None if row.is_harmful is None else not row.is_harmful
    return Labels(is_safe=safe, severity=row.severity, categories=row.categories)


def _sum(counters: Iterable[Counter[int]]) -> Counter[int]:
    total: Counter[int] = Counter()
    for each in counters:
        total.update(each)
    return total


def _lengths(counts: Counter[int]) -> Lengths | None:
    """Return percentiles of lengths that are given as how many texts have each."""
    if not counts:
        return None
    words = np.repeat(list(counts), list(counts.values()))
    points = [float(value) for value in np.percentile(words, [10, 25, 50, 75, 90])]
    names = ("percentile_10", "percentile_25", "median", "percentile_75", "percentile_90")
    return Lengths(n=len(words), **dict(zip(names, points, strict=True)))
