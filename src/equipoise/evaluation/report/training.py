"""What a report shows of online training under constraints: costs against budgets, and the run's health.

The numbers are those of the run's own log: training prompts, and the scorers that the policy learned from.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from equipoise.evaluation.report.headline import Headline
from equipoise.evaluation.report.training_charts import Chart, charts, number
from equipoise.evaluation.report.training_log import Group, Sample, TrainingRun, Update

_WINDOW = 5
"""Updates whose mean stands for the start and for the end."""


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
        charts(run.updates),
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
    return [*lines, "", *(f"- update {update}: {warning}" for update, warning in view.warnings)]


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
    if updates[-1].groups:
        found["groups"] = {
            name: _mean_group([u.groups[name] for u in updates]) for name in updates[-1].groups
        }
    shares = [each.harmful for each in updates if each.harmful is not None]
    return found | {"harmful": fmean(shares) if shares else None}


def _mean_group(group: Sequence[Group]) -> dict[str, float]:
    return {name: fmean(getattr(each, name) for each in group) for name in Group.model_fields}


def _sentence(updates: Sequence[Update]) -> str:
    first, last = _ends(updates)
    count = (
        f"over {len(updates)} update{'s' if len(updates) > 1 else ''} of {updates[-1].responses} responses"
    )
    parts = [f"the reward goes from {number(first['reward'])} to {number(last['reward'])}"]
    for name, budget in updates[-1].budgets.items():
        start, end = first["costs"][name], last["costs"][name]
        verdict, _ = _verdict(updates, name)
        parts.append(
            f"the cost '{name}' from {number(start)} to {number(end)}, {verdict} of {number(budget)}"
        )
    if groups := last.get("groups"):
        worst = min(groups, key=lambda name: groups[name]["compared"])
        start, end = first["groups"][worst]["reward"], groups[worst]["reward"]
        who = f"the group that is worst off at the end, '{worst}'"
        parts.append(f"the reward of {who}, from {number(start)} to {number(end)}")
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
        number(updates[-1].budgets[name]),
        number(first["costs"][name]),
        number(last["costs"][name]) + (f" ± {noise:.2g}" if noise else ""),
        verdict,
        mark,
        f"{within} of {len(updates)}",
        number(last["multipliers"][name]),
        updates[-1].states[name],
    )


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Return up to `count` samples, evenly from the first to the last."""
    if len(samples) <= count:
        return list(samples)
    if count < 2:
        return list(samples[-count:]) if count else []
    return [samples[round(i * (len(samples) - 1) / (count - 1))] for i in range(count)]
