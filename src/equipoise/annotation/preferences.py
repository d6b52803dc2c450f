"""From two preferences to one, and how the two conflict.

A policy takes a pair to an overall preference; where it needs a label that is missing it says None.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from equipoise.annotation.coefficients import plain
from equipoise.data.check import is_safe
from equipoise.records import Choice, Pair, text_of
from equipoise.stats import Estimate, bootstrap_mean

Policy = Callable[[Pair], Choice | None]
Stratum = Literal["both_safe", "mixed", "both_unsafe", "unlabelled"]


def helpful(pair: Pair) -> Choice | None:
    """The more helpful answer, whatever its harm."""
    return pair.better


def harmless(pair: Pair) -> Choice | None:
    """The less harmful answer, whatever its help."""
    return pair.safer


def lexicographic(pair: Pair) -> Choice | None:
    """The less harmful answer; the more helpful one where both are equally harmful."""
    return pair.better if pair.safer == "tie" else pair.safer


def severity_weighted(pair: Pair, *, weight: float = 0.75) -> Choice | None:
    """The sign of help + weight x severity gap: help is 1, 0 or -1 for the first answer, the gap in levels.

    At the default a gap of one level does not outweigh help, and one of two levels does. Where both
    are equally severe, help alone decides.
    """
    levels = [0 if a.severity is None and a.is_safe else a.severity for a in pair.answers]
    if pair.better is None or levels[0] is None or levels[1] is None:
        return None
    help_of_first = {0: 1.0, 1: -1.0, "tie": 0.0}[pair.better]
    total = help_of_first + weight * (levels[1] - levels[0])
    return "tie" if total == 0 else 0 if total > 0 else 1


POLICIES: dict[str, Policy] = {
    "helpful": helpful,
    "harmless": harmless,
    "lexicographic": lexicographic,
    "severity_weighted": severity_weighted,
}


class Side(NamedTuple):
    """How the preferences relate in some pairs; shares with intervals, resampled by prompt."""

    pairs: int
    conflict: Estimate
    """Share with `better` other than `safer`, of the pairs with both and without a tie."""
    overall_is_better: Estimate
    """Share with `overall` equal to `better`, of those with both and without a tie."""
    overall_is_safer: Estimate
    follows_safer: Estimate
    """Share of the conflicts in which `overall` is `safer`."""


class ConflictReport(NamedTuple):
    """Conflicts between help and harmlessness, in all pairs, by safety and by severity gap."""

    all: Side
    strata: dict[Stratum, Side]
    severity_gap: dict[int, Side]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; NaN is None."""
        return {
            "all": _side_json(self.all),
            "strata": {name: _side_json(side) for name, side in self.strata.items()},
            "severity_gap": {str(gap): _side_json(side) for gap, side in self.severity_gap.items()},
        }


def stratum(pair: Pair) -> Stratum:
    """Whether both answers are safe, one, or none."""
    first, second = (is_safe(answer) for answer in pair.answers)
    if first is None or second is None:
        return "unlabelled"
    return "mixed" if first != second else "both_safe" if first else "both_unsafe"


def conflict_report(pairs: Iterable[Pair], *, draws: int = 2000, seed: int = 0) -> ConflictReport:
    """Count where the more helpful answer is not the less harmful one, and what `overall` follows then."""
    pairs = list(pairs)
    strata: dict[Stratum, list[Pair]] = {}
    gaps: dict[int, list[Pair]] = {}
    for pair in pairs:
        strata.setdefault(stratum(pair), []).append(pair)
        first, second = (answer.severity for answer in pair.answers)
        if first is not None and second is not None:
            gaps.setdefault(abs(first - second), []).append(pair)
    return ConflictReport(
        _side(pairs, draws, seed),
        {name: _side(rows, draws, seed) for name, rows in sorted(strata.items())},
        {gap: _side(rows, draws, seed) for gap, rows in sorted(gaps.items())},
    )


def _side(pairs: Sequence[Pair], draws: int, seed: int) -> Side:
    def share(rows: Sequence[Pair], first: str, second: str, *, equal: bool) -> Estimate:
        strict = [p for p in rows if {getattr(p, first), getattr(p, second)} <= {0, 1}]
        hits = [(getattr(p, first) == getattr(p, second)) == equal for p in strict]
        return bootstrap_mean(hits, [text_of(p.prompt) for p in strict], draws=draws, seed=seed)

    against = [p for p in pairs if {p.better, p.safer} == {0, 1}]
    return Side(
        len(pairs),
        share(pairs, "better", "safer", equal=False),
        share(pairs, "overall", "better", equal=True),
        share(pairs, "overall", "safer", equal=True),
        share(against, "overall", "safer", equal=True),
    )


def _side_json(side: Side) -> dict[str, Any]:
    return {
        name: plain(value) if isinstance(value, Estimate) else value for name, value in side._asdict().items()
    }
