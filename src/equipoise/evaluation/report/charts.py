"""The charts of a report: which numbers each one takes, in which order, with what words."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from equipoise.evaluation.metrics import (
    GROUPS,
    STATES,
    HeatMap,
    RunMetrics,
    Slice,
    proportion,
    select,
    state_of,
)
from equipoise.evaluation.report import plots
from equipoise.evaluation.report.examples import STATE_NAMES
from equipoise.evaluation.report.headline import percent
from equipoise.evaluation.rows import EvaluationRun
from equipoise.stats import Estimate

Runs = Sequence[EvaluationRun]
Metrics = Sequence[RunMetrics]


class Strip(NamedTuple):
    """One row of a plot: a label, the plot, and the numbers in words."""

    label: str
    note: str
    plot: Markup
    text: str
    faint: bool


class HeatCell(NamedTuple):
    """One cell of the matrix; `strength` 0..1 colours it, `kind` says with what."""

    text: str
    strength: float
    kind: str


def css_of(index: int) -> str:
    """Return the colour class of a run; the base is the first."""
    return f"run{min(index, 5)}"


def interval_text(e: Estimate, kind: str, sign: str = "") -> str:
    """Return an interval in brackets, in percent or points for shares; empty where it is unknown."""
    if math.isnan(e.low) or math.isnan(e.high):
        return ""
    if kind == "share":
        text = f"[{100 * e.low:{sign}.1f}, {100 * e.high:{sign}.1f}]"
    else:
        text = f"[{e.low:{sign}.2f}, {e.high:{sign}.2f}]"
    return text.replace("-", "\u2212")


def plane(runs: Runs, metrics: Metrics) -> tuple[Markup | None, str]:
    """Harmlessness against helpfulness; without a scorer, help is a truly safe answer to a benign prompt."""
    if not all({"harmful_rate", "over_refusal"} <= each.values.keys() for each in metrics):
        return None, ""
    scored = all("reward_benign" in each.values for each in metrics)
    points = []
    for index, (run, each) in enumerate(zip(runs, metrics, strict=True)):
        rate = each.values["harmful_rate"]
        harmless = Estimate(1 - rate.value, 1 - rate.high, 1 - rate.low, rate.n, rate.clusters)
        benign = select(run.rows, "benign")
        answered = [float(state_of(row, each.repetition_limit) == "truly_safe") for row in benign]
        helpful = each.values["reward_benign"] if scored else proportion(answered, [row.id for row in benign])
        refused = each.values["over_refusal"].value
        points.append(plots.Point(run.name, harmless, helpful, refused, css_of(index)))
    y_label = "helpful: mean reward" if scored else "helpful: truly safe"
    drawn = plots.plane(
        points, x_label="harmless responses", y_label=f"{y_label}, benign prompts", y_is_share=not scored
    )
    return drawn, "the mean reward on benign prompts" if scored else "the truly safe share on benign prompts"


def refusals(runs: Runs, metrics: Metrics) -> list[Strip]:
    """Return one bar per run: the share of benign prompts that it refuses."""
    return [
        Strip(run.name, "", plots.interval_bar(value, css_of(index)), rate_text(value), False)
        for index, (run, each) in enumerate(zip(runs, metrics, strict=True))
        if (value := each.values.get("over_refusal"))
    ]


def states(runs: Runs, metrics: Metrics) -> list[tuple[str, list[Strip]]]:
    """Return the stacked bars of the three states, per group of prompts."""
    found = []
    for group in GROUPS:
        if not metrics[0].prompts[group]:
            continue
        strips = []
        for run, each in zip(runs, metrics, strict=True):
            shares = each.states[group]
            parts = [plots.Part(STATE_NAMES[state], shares[state], state) for state in STATES]
            text = ", ".join(f"{part.label} {percent(part.share)}" for part in parts)
            strips.append(Strip(run.name, "", plots.stacked_bar(parts), text, False))
        found.append((f"{group} prompts ({metrics[0].prompts[group]})", strips))
    return found


def slices(metrics: Metrics, of: Callable[[RunMetrics], dict[str, Slice]]) -> list[Strip]:
    """One strip per part of the harmful prompts, with the rates of every run."""
    tables = [of(each) for each in metrics]
    strips = []
    for label, first in tables[0].items():
        series = [(table[label].harmful_rate, css_of(i)) for i, table in enumerate(tables) if label in table]
        text = " → ".join(percent(value.value) for value, _ in series)
        note = f"n {first.harmful_rate.clusters}"
        strips.append(Strip(label, note, plots.interval_strip(series), text, first.low_power))
    return strips


def rate_text(value: Estimate) -> str:
    """Return a share with its interval."""
    return f"{percent(value.value)} {interval_text(value, 'share')}"


def heat(heats: Sequence[HeatMap]) -> list[tuple[str, list[HeatCell]]]:
    """Rows of the matrix: the cells of every run, then those of every later run less the first."""
    top = max((cell for heat in heats for row in heat.cells for cell in row), default=0.0) or 1.0
    rows = []
    for name in heats[0].categories:
        tables = [dict(zip(heat.categories, heat.cells, strict=True)) for heat in heats]
        shares = [table.get(name, (0.0,) * len(heats[0].cells[0])) for table in tables]
        cells = [
            HeatCell(
                f"{100 * share:.0f}" if share >= 0.005 else ("" if share == 0 else "<1"), share / top, "harm"
            )
            for each in shares
            for share in each
        ]
        for each in shares[1:]:
            for after, before in zip(each, shares[0], strict=True):
                d = after - before
                kind = "worse" if d > 0 else "better"
                cells.append(
                    HeatCell(
                        f"{100 * d:+.0f}".replace("-", "\u2212") if abs(d) >= 0.005 else "",
                        min(1.0, abs(d) / top),
                        kind,
                    )
                )
        rows.append((name, cells))
    return rows
