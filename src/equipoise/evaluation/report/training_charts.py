"""The plots of a report's section on online training: reward, costs, groups, and the run's health."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from equipoise.evaluation.report.curves import Band, Curve, curves, stacked
from equipoise.evaluation.report.headline import percent
from equipoise.evaluation.report.training_log import Update

VISIBLE = 1e-6
"""Two curves that differ by no more, relative to their values where these exceed 1, are one."""


class Chart(NamedTuple):
    """One plot with its title, its numbers in words, and the key of its colours."""

    title: str
    text: str
    plot: Markup
    key: list[tuple[str, str]]
    """Label and colour; empty where there is one curve."""


def charts(updates: Sequence[Update]) -> list[Chart]:
    """Return all plots of a run."""
    numbers = [each.update for each in updates]
    reward = [each.reward for each in updates]
    band = Band(
        [each.reward - each.reward_std for each in updates],
        [each.reward + each.reward_std for each in updates],
        "run1",
    )
    shown = [
        Chart(
            "Reward",
            f"{_way(reward)}; the band is one standard deviation of responses",
            curves(numbers, [Curve("reward", reward, "run1")], [band]),
            [],
        )
    ]
    shown += _group_charts(numbers, updates)
    names = list(updates[-1].costs)
    for place, name in enumerate(names):
        cost = [each.costs[name] for each in updates]
        limit = [each.budgets[name] for each in updates]
        lines = [Curve("cost", cost, _css(place)), Curve("budget", limit, "run0", is_limit=True)]
        text = f"{_way(cost)}, budget {number(limit[-1])}"
        seen = [
            each.budgets[name] + each.excess.get(name, each.costs[name] - each.budgets[name])
            for each in updates
        ]
        if any(abs(a - b) > VISIBLE * max(1.0, abs(a)) for a, b in zip(cost, seen, strict=True)):
            lines.append(Curve("as the multiplier sees it", seen, _css(place + 1)))
            text += f"; as the multiplier sees it {_way(seen)}"
        shown.append(Chart(f"Cost '{name}' against its budget", text, curves(numbers, lines), _key(lines)))
    if names:
        lines = [
            Curve(name, [each.multipliers[name] for each in updates], _css(place))
            for place, name in enumerate(names)
        ]
        text = ", ".join(f"{line.label}: {_way(line.values)}" for line in lines)
        drawn = curves(numbers, lines, from_zero=True)
        shown.append(Chart("Multiplier", text, drawn, _key(lines) if len(lines) > 1 else []))
    return shown + _harm_charts(numbers, updates) + _health_charts(numbers, updates)


def _group_charts(numbers: Sequence[int], updates: Sequence[Update]) -> list[Chart]:
    def one(title: str, field: str, *, is_share: bool = False) -> Chart:
        lines = [
            Curve(name, [getattr(each.groups[name], field) for each in updates], _css(place))
            for place, name in enumerate(updates[-1].groups)
        ]
        said = ", ".join(f"{line.label}: {_way(line.values, is_share=is_share)}" for line in lines)
        return Chart(title, said, curves(numbers, lines, is_share=is_share, from_zero=is_share), _key(lines))

    if not updates[-1].groups:
        return []
    return [
        one("Reward of each group, as it is compared with the others", "compared"),
        one("Weight of each group", "weight", is_share=True),
    ]


def _harm_charts(numbers: Sequence[int], updates: Sequence[Update]) -> list[Chart]:
    shown = []
    harmful = [each.harmful for each in updates]
    if any(share is not None for share in harmful):
        drawn = curves(numbers, [Curve("harmful", harmful, "under_safe")], is_share=True, from_zero=True)
        shown.append(Chart("Harmful responses", _way(harmful, is_share=True), drawn, []))
    levels = [each.severity for each in updates if each.severity is not None]
    if len(levels) == len(updates):
        above = range(1, min(map(len, levels)))
        shares = [(f"severity{level}", [each[level] for each in levels]) for level in above]
        drawn = stacked(numbers, shares[::-1])
        said = ", ".join(
            f"severity {level}: {_way(values, is_share=True)}"
            for level, (_, values) in zip(above, shares, strict=True)
        )
        key = [(f"severity {level}", f"severity{level}") for level in above]
        shown.append(Chart("Harmful responses by severity, as the guard sees it", said, drawn, key))
    return shown


def _health_charts(numbers: Sequence[int], updates: Sequence[Update]) -> list[Chart]:
    def one(title: str, name: str, *, is_share: bool = False) -> Chart:
        values = [getattr(each, name) for each in updates]
        drawn = curves(numbers, [Curve(name, values, "run1")], is_share=is_share, from_zero=True)
        return Chart(title, _way(values, is_share=is_share), drawn, [])

    lines = [
        Curve("cut off at the limit", [each.truncated for each in updates], "run2"),
        Curve("repeated word 3-grams", [each.repetition for each in updates], "run4"),
    ]
    said = "; ".join(f"{line.label}: {_way(line.values, is_share=True)}" for line in lines)
    return [
        one("Divergence from the reference, nats per response", "kl"),
        one("Length, tokens", "length"),
        Chart(
            "Cut off, and repeating", said, curves(numbers, lines, is_share=True, from_zero=True), _key(lines)
        ),
        one("Entropy, nats per token", "entropy"),
        one("Clipped tokens", "clip_fraction", is_share=True),
    ]


def _key(lines: Sequence[Curve]) -> list[tuple[str, str]]:
    return [(line.label, line.css) for line in lines]


def _css(place: int) -> str:
    return f"run{min(place, 4) + 1}"


def _way(values: Sequence[float | None], *, is_share: bool = False) -> str:
    """Say where a curve begins and where it ends."""
    known = [value for value in values if value is not None]
    say = percent if is_share else number
    return f"{say(known[0])} → {say(known[-1])}"


def number(value: float) -> str:
    """Write a number in three digits."""
    return f"{value:.3g}".replace("-", "\u2212")
