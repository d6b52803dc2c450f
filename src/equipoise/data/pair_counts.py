"""Pairs in numbers: how safe the two answers are, and where help and harm rank them differently."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from equipoise.data.check import is_safe
from equipoise.records import Choice, Pair
from equipoise.stats import wilson

STATES = ("both_safe", "mixed", "both_unsafe", "unlabelled")
"""Safety of the two answers."""

_PREFERENCES = ("better", "safer", "overall")


class Kind(NamedTuple):
    """What is counted of a pair."""

    state: str
    gap: int | None
    """Difference of the two severities; None where one is missing."""
    better: Choice | None
    safer: Choice | None
    overall: Choice | None


def kind_of(pair: Pair) -> Kind:
    """Return what is counted of a pair."""
    first, second = (answer.severity for answer in pair.answers)
    gap = None if first is None or second is None else abs(first - second)
    return Kind(_state(pair), gap, pair.better, pair.safer, pair.overall)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Conflict(_Frozen):
    """How often the more helpful answer is not the safer one, over pairs with both and without a tie."""

    n: int
    better_not_safer: int
    share: float | None
    low: float | None
    """Ends of Wilson's interval at 95 %, each pair taken as independent; None without pairs."""
    high: float | None


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
    conflict_by_state: dict[str, Conflict]
    """Safety of the two answers (`both_safe`, `mixed`, `both_unsafe`, `unlabelled`) -> conflict."""
    conflict_by_gap: dict[str, Conflict]
    """Difference of the two severities, 0 to 3, or `unlabelled` -> conflict."""


def pair_counts(counts: Mapping[Kind, int]) -> PairCounts | None:
    """Sum up kinds of pairs; None where there is nothing."""
    if not counts:
        return None
    states: Counter[str] = Counter()
    labelled, ties = Counter[str](), Counter[str]()
    by_state, by_gap = Counter[tuple[str, bool]](), Counter[tuple[str, bool]]()
    for kind, count in counts.items():
        states[kind.state] += count
        for name in _PREFERENCES:
            labelled[name] += count if getattr(kind, name) is not None else 0
            ties[name] += count if getattr(kind, name) == "tie" else 0
        if kind.better in {0, 1} and kind.safer in {0, 1}:
            against = kind.better != kind.safer
            by_state[kind.state, against] += count
            by_gap["unlabelled" if kind.gap is None else str(kind.gap), against] += count
    whole = _conflict(by_state.total(), sum(n for (_, against), n in by_state.items() if against))
    gaps = [*map(str, range(4)), "unlabelled"]
    return PairCounts(
        n=sum(counts.values()),
        both_safe=states["both_safe"],
        mixed=states["mixed"],
        both_unsafe=states["both_unsafe"],
        unlabelled=states["unlabelled"],
        labelled={name: labelled[name] for name in _PREFERENCES},
        ties={name: ties[name] for name in _PREFERENCES},
        both_dimensions=whole.n,
        better_not_safer=whole.better_not_safer,
        better_not_safer_share=whole.share,
        conflict_by_state={name: _stratum(by_state, name) for name in STATES},
        conflict_by_gap={name: _stratum(by_gap, name) for name in gaps},
    )


def _stratum(counts: Counter[tuple[str, bool]], name: str) -> Conflict:
    return _conflict(counts[name, True] + counts[name, False], counts[name, True])


def _conflict(n: int, against: int) -> Conflict:
    if not n:
        return Conflict(n=0, better_not_safer=0, share=None, low=None, high=None)
    share = wilson(against, n)
    return Conflict(n=n, better_not_safer=against, share=share.value, low=share.low, high=share.high)


def _state(pair: Pair) -> str:
    signs = {is_safe(answer) for answer in pair.answers}
    if None in signs:
        return "unlabelled"
    if len(signs) == 2:
        return "mixed"
    return "both_safe" if True in signs else "both_unsafe"
