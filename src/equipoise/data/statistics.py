"""What a data set holds, in numbers: counts only, no text.

A share is None where nothing is labelled, which is another thing than 0.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from equipoise.data.check import is_safe
from equipoise.data.identity import AnyRecord
from equipoise.data.splits import normalise_prompt
from equipoise.errors import TaxonomyError
from equipoise.records import REFUSALS, Exchange, Labels, Pair, Prompt, text_of
from equipoise.taxonomy import load_taxonomy

_LEVELS = 4


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Lengths(_Frozen):
    """Lengths of texts in words, as white space separates them."""

    median: float
    percentile_90: float


class Grid(_Frozen):
    """Categories and severity of the responses that have both labels."""

    n: int
    """Responses with categories and severity."""
    cells: dict[str, list[int]]
    """Category -> how many are flagged with it and have severity 0, 1, 2, 3."""

    def share(self, category: str, severity: int) -> float | None:
        """P(category flagged and severity equals it), 0..1."""
        return self.cells[category][severity] / self.n if self.n else None


class LabelCounts(_Frozen):
    """Labels of responses, or of prompts (where unsafe stands for harmful)."""

    n: int
    safe: int
    unsafe: int
    unlabelled: int
    safe_share: float | None
    """Of those that are labelled."""
    severity: list[int]
    """How many have severity 0, 1, 2, 3."""
    severity_unlabelled: int
    categories: dict[str, int]
    """Category -> how many are flagged, in the order of the taxonomy."""
    categories_labelled: int
    """How many have a category label at all, an empty one included."""
    grid: Grid


class PairCounts(_Frozen):
    """Safety of the two answers, and how the preferences go together."""

    n: int
    both_safe: int
    mixed: int
    both_unsafe: int
    unlabelled: int
    labelled: dict[str, int]
    """Preference (`better`, `safer`, `overall`) -> how many pairs have it, ties included."""
    ties: dict[str, int]
    both_dimensions: int
    """Pairs with `better` and `safer`, neither a tie."""
    better_not_safer: int
    better_not_safer_share: float | None
    """Of `both_dimensions`."""


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


def statistics(records: Iterable[AnyRecord]) -> Statistics:
    """Count what records hold; they may be of several kinds."""
    rows = list(records)
    prompts = [row for row in rows if isinstance(row, Prompt)]
    pairs = [row for row in rows if isinstance(row, Pair)]
    exchanges = [row for row in rows if isinstance(row, Exchange)]
    answers: list[tuple[Labels, str]] = [(row, row.response) for row in exchanges]
    answers += [(answer, answer.response) for row in pairs for answer in row.answers]
    taxonomies = _counted(row.taxonomy for row in rows)
    refusals: Counter[str] = Counter(labels.refusal or "unlabelled" for labels, _ in answers)
    return Statistics(
        prompts=len(prompts),
        exchanges=len(exchanges),
        pairs=len(pairs),
        distinct_prompts=len({normalise_prompt(text_of(row.prompt)) for row in rows}),
        taxonomies=taxonomies,
        licences=_counted(row.licence for row in rows),
        sources=_counted(row.source for row in rows),
        label_origins=_counted(row.label_origin or "unknown" for row in rows),
        prompt_labels=_label_counts([_prompt_labels(row) for row in prompts], taxonomies),
        response_labels=_label_counts([labels for labels, _ in answers], taxonomies),
        refusals={name: refusals[name] for name in (*REFUSALS, "unlabelled")} if answers else {},
        pair_counts=_pair_counts(pairs),
        prompt_words=_lengths([text_of(row.prompt) for row in rows]),
        response_words=_lengths([text for _, text in answers]),
    )


def _counted(values: Iterable[str]) -> dict[str, int]:
    """Count values, the most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _prompt_labels(row: Prompt) -> Labels:
    safe = None if row.is_harmful is None else not row.is_harmful
    return Labels(is_safe=safe, severity=row.severity, categories=row.categories)


def _label_counts(labels: Sequence[Labels], taxonomies: Mapping[str, int]) -> LabelCounts | None:
    if not labels:
        return None
    signs = Counter(is_safe(label) for label in labels)
    severity = Counter(label.severity for label in labels)
    flagged = Counter(name for label in labels for name in label.categories or ())
    names = _ordered(flagged, taxonomies)
    cells = {name: [0] * _LEVELS for name in names}
    both = [label for label in labels if label.categories is not None and label.severity is not None]
    for label in both:
        for name in label.categories or ():
            cells[name][label.severity or 0] += 1
    known = signs[True] + signs[False]
    return LabelCounts(
        n=len(labels),
        safe=signs[True],
        unsafe=signs[False],
        unlabelled=signs[None],
        safe_share=signs[True] / known if known else None,
        severity=[severity[level] for level in range(_LEVELS)],
        severity_unlabelled=severity[None],
        categories={name: flagged[name] for name in names},
        categories_labelled=sum(label.categories is not None for label in labels),
        grid=Grid(n=len(both), cells=cells),
    )


def _ordered(flagged: Mapping[str, int], taxonomies: Iterable[str]) -> list[str]:
    """Names of all categories in the order of their taxonomy; names that it lacks come last."""
    names: list[str] = []
    for taxonomy in taxonomies:
        try:
            names += load_taxonomy(taxonomy).names
        except TaxonomyError:  # `check` reports it; the numbers are still worth having
            continue
    return [*names, *sorted(set(flagged) - set(names))]


def _pair_counts(pairs: Sequence[Pair]) -> PairCounts | None:
    if not pairs:
        return None
    states = Counter(_state(pair) for pair in pairs)
    dimensions = ("better", "safer", "overall")
    chosen = {name: [getattr(pair, name) for pair in pairs] for name in dimensions}
    strict = [p for p in pairs if p.better in {0, 1} and p.safer in {0, 1}]
    against = sum(p.better != p.safer for p in strict)
    return PairCounts(
        n=len(pairs),
        both_safe=states["both_safe"],
        mixed=states["mixed"],
        both_unsafe=states["both_unsafe"],
        unlabelled=states["unlabelled"],
        labelled={name: sum(value is not None for value in values) for name, values in chosen.items()},
        ties={name: values.count("tie") for name, values in chosen.items()},
        both_dimensions=len(strict),
        better_not_safer=against,
        better_not_safer_share=against / len(strict) if strict else None,
    )


def _state(pair: Pair) -> str:
    signs = {is_safe(answer) for answer in pair.answers}
    if None in signs:
        return "unlabelled"
    if len(signs) == 2:
        return "mixed"
    return "both_safe" if True in signs else "both_unsafe"


def _lengths(texts: Sequence[str]) -> Lengths | None:
    if not texts:
        return None
    words = np.array([len(text.split()) for text in texts])
    return Lengths(median=float(np.median(words)), percentile_90=float(np.percentile(words, 90)))
