"""What the template shows, as texts and plots: numbers become words here and nowhere else."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from equipoise.evaluation.compare import Comparison, Difference
from equipoise.evaluation.metrics import LOW_POWER, METRICS
from equipoise.evaluation.report import charts
from equipoise.evaluation.report.charts import HeatCell, Metrics, Runs, Strip, interval_text
from equipoise.evaluation.report.headline import percent
from equipoise.rewards.rules import CLASSES

SECTIONS: dict[str, tuple[str, ...]] = {
    "Harm": (
        "harmful_rate",
        "moderate_or_worse",
        "mean_severity",
        "flagged_benign",
        "cost",
        "cost_harmful",
        "unsafe_by_cost",
    ),
    "Refusal": ("over_refusal", "over_refusal_full", "over_refusal_opening", "refusal_harmful"),
    "Balance": ("truly_safe", "under_safe", "over_safe"),
    "Help": ("reward", "reward_benign"),
    "Text": ("repetition", "words"),
    "Rules": (
        "rules",
        "reward_and_rules",
        *(f"rules_{name}_{over}" for over in ("harmful", "benign") for name in CLASSES),
    ),
}

WIN_RATES = {
    "helpful": "Wins by reward, all prompts",
    "helpful_benign": "Wins by reward, benign prompts",
    "harmless": "Wins by lower cost, all prompts",
}


class Cell(NamedTuple):
    """One value of the summary table; `mark` is better, worse, changed, or empty."""

    value: str
    interval: str = ""
    mark: str = ""


class Line(NamedTuple):
    """One metric of the summary table."""

    title: str
    cells: list[Cell]


class Section(NamedTuple):
    """Metrics of one kind."""

    title: str
    lines: list[Line]


class Tile(NamedTuple):
    """One number of the headline."""

    title: str
    before: str
    after: str
    change: str
    mark: str


class View(NamedTuple):
    """All of the page that is made from numbers."""

    columns: list[str]
    sections: list[Section]
    tiles: list[Tile]
    plane: Markup | None
    plane_y: str
    refusals: list[Strip]
    states: list[tuple[str, list[Strip]]]
    by_severity: list[Strip]
    by_category: list[Strip]
    heat_columns: list[str]
    heat: list[tuple[str, list[HeatCell]]]
    low_power: int


def view(runs: Runs, metrics: Metrics, comparisons: Sequence[Comparison]) -> View:
    """Turn the numbers of a report into what the page shows."""
    names = [run.name for run in runs]
    plane, plane_y = charts.plane(runs, metrics)
    columns = names[:1]
    for name in names[1:]:
        columns += [name, f"change from {names[0]}"]
    heat_columns = names + [f"{name} less {names[0]}" for name in names[1:]]
    return View(
        columns=columns,
        sections=_sections(metrics, comparisons),
        tiles=_tiles(comparisons[-1]) if comparisons else [],
        plane=plane,
        plane_y=plane_y,
        refusals=charts.refusals(runs, metrics),
        states=charts.states(runs, metrics),
        by_severity=charts.slices(metrics, lambda m: {f"severity {k}": v for k, v in m.by_severity.items()}),
        by_category=charts.slices(metrics, lambda m: m.by_category),
        heat_columns=heat_columns,
        heat=charts.heat([each.heat for each in metrics]),
        low_power=LOW_POWER,
    )


def _number(value: float, kind: str) -> str:
    if math.isnan(value):
        return "n/a"
    if kind == "share":
        return percent(value)
    return (f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}").replace("-", "\u2212")


def _change(name: str, difference: Difference) -> Cell:
    """The paired difference in words: points for shares."""
    metric, d = METRICS[name], difference.difference
    value = f"{100 * d.value:+.1f} pts" if metric.kind == "share" else f"{d.value:+.2f}"
    value = value.replace("-", "\u2212")
    mark = ""
    if d.excludes_zero:
        rose = d.value > 0
        mark = (
            "changed"
            if metric.good == "neither"
            else "better"
            if rose == (metric.good == "higher")
            else "worse"
        )
    return Cell(value, interval_text(d, metric.kind, "+"), mark)


def _sections(metrics: Metrics, comparisons: Sequence[Comparison]) -> list[Section]:
    sections = []
    for title, names in SECTIONS.items():
        lines = []
        for name in names:
            if name not in metrics[0].values:
                continue
            kind = METRICS[name].kind
            cells: list[Cell] = []
            for index, each in enumerate(metrics):
                value = each.values.get(name)
                cells.append(
                    Cell(_number(value.value, kind), interval_text(value, kind)) if value else Cell("n/a")
                )
                if index:
                    found = comparisons[index - 1].metrics.get(name)
                    cells.append(_change(name, found) if found else Cell("n/a"))
            lines.append(Line(METRICS[name].title, cells))
        if title == "Help":
            lines += _win_lines(comparisons)
        if lines:
            sections.append(Section(title, lines))
    return sections


def _win_lines(comparisons: Sequence[Comparison]) -> list[Line]:
    lines = []
    for name, title in WIN_RATES.items():
        rates = [comparison.win_rates.get(name) for comparison in comparisons]
        if not any(rates):
            continue
        cells = [Cell("50.0%", "by definition")]
        for rate in rates:
            if rate is None:
                cells += [Cell("n/a"), Cell("n/a")]
                continue
            mark = "better" if rate.low > 0.5 else "worse" if rate.high < 0.5 else ""
            cells += [Cell(percent(rate.value), interval_text(rate, "share"), mark), Cell("")]
        lines.append(Line(title, cells))
    return lines


def _tiles(comparison: Comparison) -> list[Tile]:
    wanted = {
        "harmful_rate": "Harmful responses",
        "truly_safe": "Truly safe responses",
        "over_refusal": "Benign prompts refused",
        "reward_benign": "Reward, benign prompts",
    }
    tiles = []
    for name, title in wanted.items():
        found = comparison.metrics.get(name)
        if found is None:
            continue
        kind, cell = METRICS[name].kind, _change(name, found)
        before, after = (
            percent(e.value) if kind == "share" else _number(e.value, kind)
            for e in (found.before, found.after)
        )
        tiles.append(Tile(title, before, after, f"{cell.value} {cell.interval}", cell.mark))
    return tiles
