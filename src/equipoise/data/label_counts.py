"""Labels of responses in numbers, from how often each combination of labels occurs.

Data sets have millions of responses and a few thousand combinations, so only these are held.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from equipoise.data.check import is_safe
from equipoise.data.correlation import Correlation, LabelSet, correlate
from equipoise.errors import TaxonomyError
from equipoise.records import Labels
from equipoise.taxonomy import load_taxonomy

LEVELS = 4
"""Degrees of severity, 0 among them."""


class Combination(NamedTuple):
    """The labels of a response that are counted."""

    safe: bool | None
    severity: int | None
    categories: frozenset[str] | None
    rated: frozenset[str] | None


def combination(labels: Labels) -> Combination:
    """Return what is counted of some labels."""
    return Combination(is_safe(labels), labels.severity, labels.categories, labels.rated)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Grid(_Frozen):
    """Categories and severity of the responses that have both labels."""

    n: int
    """Responses with categories and severity."""
    cells: dict[str, list[int]]
    """Category -> how many are flagged with it and have severity 0, 1, 2, 3."""

    def share(self, category: str, severity: int) -> float | None:
        """P(category flagged and severity equals it), 0..1."""
        return self.cells[category][severity] / self.n if self.n else None

    def profile(self, category: str) -> list[float] | None:
        """P(severity equals 0, 1, 2, 3, given the category); None where the category has none."""
        total = sum(self.cells[category])
        return [count / total for count in self.cells[category]] if total else None


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
    category_share: dict[str, float | None]
    """Category -> share that is flagged, of those in which it was rated."""
    grid: Grid
    severity_profile: dict[str, list[float] | None]
    """Category -> shares of severity 0, 1, 2, 3 among those that are flagged with it."""
    correlation: Correlation | None
    """Of the unsafe ones; None where none of them has a category."""


def label_counts(counts: Mapping[Combination, int], taxonomies: Iterable[str]) -> LabelCounts | None:
    """Sum up combinations; None where there is nothing."""
    if not counts:
        return None
    signs: Counter[bool | None] = Counter()
    severity: Counter[int | None] = Counter()
    flagged: Counter[str] = Counter()
    rated_alone: Counter[str] = Counter()  # by responses of which not all categories were rated
    unsafe: Counter[LabelSet] = Counter()
    cells: dict[str, list[int]] = {}
    labelled = all_rated = graded = 0
    for (safe, level, categories, rated), count in counts.items():
        signs[safe] += count
        severity[level] += count
        if categories is None:
            continue
        labelled += count
        all_rated += count if rated is None else 0
        flagged.update(dict.fromkeys(categories, count))
        rated_alone.update(dict.fromkeys(() if rated is None else rated | categories, count))
        if safe is False:
            unsafe[LabelSet(categories, rated)] += count
        if level is not None:
            graded += count
            for name in categories:
                cells.setdefault(name, [0] * LEVELS)[level] += count
    names = _ordered(flagged, taxonomies)
    cells = {name: cells.get(name, [0] * LEVELS) for name in names}
    known, grid = signs[True] + signs[False], Grid(n=graded, cells=cells)
    return LabelCounts(
        n=sum(counts.values()),
        safe=signs[True],
        unsafe=signs[False],
        unlabelled=signs[None],
        safe_share=signs[True] / known if known else None,
        severity=[severity[level] for level in range(LEVELS)],
        severity_unlabelled=severity[None],
        categories={name: flagged[name] for name in names},
        categories_labelled=labelled,
        category_share={name: _share(flagged[name], all_rated + rated_alone[name]) for name in names},
        grid=grid,
        severity_profile={name: grid.profile(name) for name in names},
        correlation=correlate(unsafe, names) if any(labels.flagged for labels in unsafe) else None,
    )


def _ordered(flagged: Mapping[str, int], taxonomies: Iterable[str]) -> list[str]:
    """Names of all categories in the order of their taxonomy; names that it lacks come last."""
    names: list[str] = []
    for taxonomy in taxonomies:
        try:
            names += load_taxonomy(taxonomy).names
        except TaxonomyError:  # `check` reports it; the numbers are still worth having
            continue
    return [*dict.fromkeys([*names, *sorted(set(flagged) - set(names))])]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
