"""What a report shows of online training under constraints: costs against budgets, and the run's health.

The numbers are those of the run's own log: training prompts, and the scorers that the policy learned from.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from markupsafe import Markup

from equipoise.evaluation.report.curves import Band, Curve, curves, stacked
from equipoise.evaluation.report.headline import Headline, percent
from equipoise.evaluation.report.training_log import Sample, TrainingRun, Update

_WINDOW = 5
"""Updates whose mean stands for the start and for the end."""


class Chart(NamedTuple):
    """One plot with its title, its numbers in words, and the key of its colours."""

    title: str
    text: str
    plot: Markup
    key: list[tuple[str, str]]
    """Label and colour; empty where there is one curve."""


class Kept(NamedTuple):
    """One constraint over the run; numbers as texts."""

    name: str
    budget: str
    start: str
    end: str
    verdict: str
    """within, at or above the budget at the end."""
    mark: str
    """better, worse, or empty."""
    share: str
    """Updates within the budget."""
    multiplier: str
    state: str


class TrainingView(NamedTuple):
    """One run's section."""

    name: str
    is_finished: bool
    sentence: str
    window: int
    constraints: list[Kept]
    charts: list[Chart]
    warnings: list[tuple[int, str]]
    samples: list[Sample]


def training_view(run: TrainingRun, examples: int) -> TrainingView:
    """Turn a run's log into what the page shows, with up to `examples` responses spread over the run."""
    return TrainingView(
        run.name,
        run.manifest is not None,
        _sentence(run.updates),
        _window(run.updates),
        [_kept(run.updates, name) for name in run.updates[-1].costs],
        _charts(run.updates),
        [(each.update, warning) for each in run.updates for warning in each.warnings],
        _spread(run.samples, examples),
    )


def training_headline(run: TrainingRun) -> Headline:
    """Return the verdict on a run of training by its own log."""
    return Headline("single", f"{run.name}: {_sentence(run.updates)}")


def training_numbers(run: TrainingRun) -> dict[str, Any]:
    """Return what is said of a run as plain values, without any text of a prompt or response."""
    first, last = _ends(run.updates)
    return {
        "name": run.name,
        "key": None if run.manifest is None else run.manifest.key,
        "updates": len(run.updates),
        "start": first,
        "end": last,
        "budgets": run.updates[-1].budgets,
        "states": run.updates[-1].states,
        "warnings": [[each.update, warning] for each in run.updates for warning in each.warnings],
    }


def training_summary(run: TrainingRun) -> list[str]:
    """Return a run's section of the short report, as lines of Markdown."""
    view = training_view(run, 0)
    lines = ["", f"## Training: {view.name}", "", view.sentence, ""]
    lines += [
        "| constraint | budget | start | end | | updates within | multiplier |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {c.name} | {c.budget} | {c.start} | {c.end} | {c.verdict} | {c.share} | {c.multiplier} |"
        for c in view.constraints
    ]
    return [*lines, "", *(f"- update {number}: {warning}" for number, warning in view.warnings)]


def _window(updates: Sequence[Update]) -> int:
    return min(_WINDOW, (len(updates) + 1) // 2)


def _ends(updates: Sequence[Update]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the means of the first and of the last updates."""
    window = _window(updates)
    return _means(updates[:window]), _means(updates[-window:])


def _means(updates: Sequence[Update]) -> dict[str, Any]:
    names = ("reward", "kl", "length", "truncated", "repetition", "entropy", "clip_fraction")
    found: dict[str, Any] = {name: fmean(getattr(each, name) for each in updates) for name in names}
    for name in ("costs", "multipliers"):
        tables = [getattr(each, name) for each in updates]
        found[name] = {key: fmean(table[key] for table in tables) for key in tables[-1]}
    shares = [each.harmful for each in updates if each.harmful is not None]
    return found | {"harmful": fmean(shares) if shares else None}


def _sentence(updates: Sequence[Update]) -> str:
    first, last = _ends(updates)
    count = (
        f"over {len(updates)} update{'s' if len(updates) > 1 else ''} of {updates[-1].responses} responses"
    )
    parts = [f"the reward goes from {_number(first['reward'])} to {_number(last['reward'])}"]
    for name, budget in updates[-1].budgets.items():
        start, end = first["costs"][name], last["costs"][name]
        verdict, _ = _verdict(updates, name)
        parts.append(
            f"the cost '{name}' from {_number(start)} to {_number(end)}, {verdict} of {_number(budget)}"
        )
    return f"{count}, {'; '.join(parts)}"


def _noise(updates: Sequence[Update], name: str) -> float:
    """Return the standard error of a cost at the end, by how much updates differ; 0 of a single one."""
    costs = [each.costs[name] for each in updates[-_window(updates) :]]
    return stdev(costs) / math.sqrt(len(costs)) if len(costs) > 1 else 0.0


def _verdict(updates: Sequence[Update], name: str) -> tuple[str, str]:
    """Say how the cost at the end lies to its budget, and whether that is good; twice its error is noise."""
    budget = updates[-1].budgets[name]
    above = fmean(each.costs[name] for each in updates[-_window(updates) :]) - budget
    if above <= 0:
        return "within the budget", "better"
    if above <= 2 * _noise(updates, name):
        return "at the budget", ""
    return "above the budget", "worse"


def _kept(updates: Sequence[Update], name: str) -> Kept:
    first, last = _ends(updates)
    verdict, mark = _verdict(updates, name)
    within = sum(each.costs[name] <= each.budgets[name] for each in updates)
    noise = _noise(updates, name)
    return Kept(
        name,
        _number(updates[-1].budgets[name]),
        _number(first["costs"][name]),
        _number(last["costs"][name]) + (f" ± {noise:.2g}" if noise else ""),
        verdict,
        mark,
        f"{within} of {len(updates)}",
        _number(last["multipliers"][name]),
        updates[-1].states[name],
    )


def _charts(updates: Sequence[Update]) -> list[Chart]:
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
    names = list(updates[-1].costs)
    for place, name in enumerate(names):
        cost = [each.costs[name] for each in updates]
        limit = [each.budgets[name] for each in updates]
        lines = [Curve("cost", cost, _css(place)), Curve("budget", limit, "run0", is_limit=True)]
        text = f"{_way(cost)}, budget {_number(limit[-1])}"
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


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Return up to `count` samples, evenly from the first to the last."""
    if len(samples) <= count:
        return list(samples)
    if count < 2:
        return list(samples[-count:]) if count else []
    return [samples[round(i * (len(samples) - 1) / (count - 1))] for i in range(count)]


def _key(lines: Sequence[Curve]) -> list[tuple[str, str]]:
    return [(line.label, line.css) for line in lines]


def _css(place: int) -> str:
    return f"run{min(place, 4) + 1}"


def _way(values: Sequence[float | None], *, is_share: bool = False) -> str:
    """Say where a curve begins and where it ends."""
    known = [value for value in values if value is not None]
    say = percent if is_share else _number
    return f"{say(known[0])} → {say(known[-1])}"


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "\u2212")
