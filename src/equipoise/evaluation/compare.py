"""Two runs on the same prompts, before and after: every difference is paired by (prompt, sample)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from equipoise.errors import ConfigError, DataError
from equipoise.evaluation.metrics import (
    DRAWS,
    LOW_POWER,
    METRICS,
    Metric,
    category_names,
    estimate,
    limit_of,
    proportion,
    select,
)
from equipoise.evaluation.response import DECODING
from equipoise.evaluation.rows import EvaluatedRow, EvaluationRun
from equipoise.stats import (
    Z95,
    Estimate,
    Floats,
    Indices,
    bootstrap,
    bootstrap_mean,
    holm,
    mcnemar,
    paired_difference,
)

_POWER_80 = 0.8416212335729143  # normal quantile of 80 % power


class Difference(NamedTuple):
    """One metric before and after, on the same rows."""

    before: Estimate
    after: Estimate
    difference: Estimate
    """After less before, paired, clustered by prompt."""
    detectable: float
    """The smallest true difference that 80 % of repeated comparisons of this size would find; NaN
    where all rows changed alike, which says nothing of it."""


class CategoryDifference(NamedTuple):
    """The harmful rate on the prompts of one category."""

    before: Estimate
    after: Estimate
    difference: Estimate
    p_value: float
    """McNemar's exact test over prompts."""
    p_adjusted: float
    """Holm over all categories."""
    low_power: bool


class Comparison(NamedTuple):
    """Everything that two runs on the same prompts say of each other."""

    before: str
    after: str
    rows: int
    prompts: int
    repetition_limit: float
    """The 95th percentile of the run before; it decides what is degenerate in both."""
    metrics: dict[str, Difference]
    relative_reduction: Estimate
    """(before - after) / before of the harmful rate."""
    harmful_only_before: int
    """Prompts with a harmful response before and none after."""
    harmful_only_after: int
    mcnemar_p: float
    """Exact p-value of these two counts."""
    win_rates: dict[str, Estimate]
    """How often the run after has the better score, ties half; by reward (helpful) or cost (harmless)."""
    by_category: dict[str, CategoryDifference]
    notes: list[str]
    """What else differs between the runs."""


Rows = Sequence[EvaluatedRow]


def compare(before: EvaluationRun, after: EvaluationRun, *, allow_mismatch: bool = False) -> Comparison:
    """Compare two runs row by row.

    Raises:
        ConfigError: other judges or another suite, unless `allow_mismatch`.
        DataError: the rows do not pair.
    """
    mismatches = find_mismatches(before, after)
    if mismatches and not allow_mismatch:
        raise ConfigError(
            f"{before.name} and {after.name} do not compare: {'; '.join(mismatches)}"
            " (evaluate both alike, or give --allow-mismatch)"
        )
    a, b = pair(before, after)
    limit = limit_of(a)
    only_before, only_after = _discordant(select(a, "harmful"), select(b, "harmful"))
    return Comparison(
        before=before.name,
        after=after.name,
        rows=len(a),
        prompts=len({row.id for row in a}),
        repetition_limit=limit,
        metrics={
            name: found for name, metric in METRICS.items() if (found := _difference(metric, a, b, limit))
        },
        relative_reduction=_relative_reduction(select(a, "harmful"), select(b, "harmful")),
        harmful_only_before=only_before,
        harmful_only_after=only_after,
        mcnemar_p=mcnemar(only_before, only_after),
        win_rates=_win_rates(a, b),
        by_category=_by_category(select(a, "harmful"), select(b, "harmful")),
        notes=mismatches + _other_settings(before, after),
    )


def pair(before: EvaluationRun, after: EvaluationRun) -> tuple[list[EvaluatedRow], list[EvaluatedRow]]:
    """Return both runs' rows in the order of the first; rows that do not pair raise DataError."""
    theirs = {row.key: row for row in after.rows}
    mine = {row.key: row for row in before.rows}
    for lacking, missing, owner in (
        (after.name, [key for key in mine if key not in theirs], before.name),
        (before.name, [key for key in theirs if key not in mine], after.name),
    ):
        if missing:
            name, sample = missing[0]
            raise DataError(
                f"{lacking}: lacks {len(missing)} of the rows of {owner}; "
                f"the first is id '{name}' sample {sample}"
            )
    for key, row in mine.items():
        if row.prompt != theirs[key].prompt or row.is_harmful != theirs[key].is_harmful:
            raise DataError(f"{after.name}: id '{row.id}' is another prompt than in {before.name}")
    return list(mine.values()), [theirs[key] for key in mine]


def find_mismatches(before: EvaluationRun, after: EvaluationRun) -> list[str]:
    """Say in what the two runs were judged differently; empty when they compare."""
    found = []
    for name in ("guard", "scorer", "rules"):
        mine, theirs = before.manifest.inputs.get(name), after.manifest.inputs.get(name)
        if mine and theirs and mine.sha256 != theirs.sha256:
            places = f"{mine.path} and {theirs.path}"
            found.append(f"another {name}, {places if mine.path != theirs.path else _changed(mine.path)}")
    if before.manifest.notes.get("suite_sha256") != after.manifest.notes.get("suite_sha256"):
        names = ("suite", "select", "harmful", "benign", "suite_seed")
        what = _differences(before, after, names) or [_changed(str(before.manifest.config.get("suite")))]
        found.append(f"other prompts, {', '.join(what)}")
    return found + [f"refusals told another way, {x}" for x in _differences(before, after, ("refusals",))]


def _changed(path: str) -> str:
    return f"{path} was changed between them"


def _differences(before: EvaluationRun, after: EvaluationRun, names: Sequence[str]) -> list[str]:
    """Say which of the settings differ; one that a run of an earlier version lacks is not compared."""
    mine, theirs = before.manifest.config, after.manifest.config
    return [
        f"{name} was {mine[name]} before and {theirs[name]} after"
        for name in names
        if name in mine and name in theirs and mine[name] != theirs[name]
    ]


def _difference(metric: Metric, a: Rows, b: Rows, limit: float) -> Difference | None:
    """None where the metric was not measured on both sides."""
    triples = [
        (metric.value(x, limit), metric.value(y, limit), x.id)
        for x, y in zip(select(a, metric.over), select(b, metric.over), strict=True)
    ]
    measured = [(x, y, name) for x, y, name in triples if x is not None and y is not None]
    if not measured:
        return None
    before, after, names = zip(*measured, strict=True)
    difference = paired_difference(after, before, names, draws=DRAWS)
    detectable = (Z95 + _POWER_80) * _standard_error(np.subtract(after, before), names) or math.nan
    return Difference(estimate(metric, a, limit), estimate(metric, b, limit), difference, detectable)


def _standard_error(values: Floats, clusters: Sequence[str]) -> float:
    """Standard error of a mean whose rows share clusters, by the sums of residuals of each cluster."""
    sums: dict[str, float] = {}
    for residual, name in zip(values - values.mean(), clusters, strict=True):
        sums[name] = sums.get(name, 0.0) + float(residual)
    if len(sums) < 2:
        return math.nan
    total = sum(each * each for each in sums.values())
    return math.sqrt(total * len(sums) / (len(sums) - 1)) / len(values)


def _relative_reduction(a: Rows, b: Rows) -> Estimate:
    harmful_a, harmful_b = (np.array([not row.is_safe for row in side], dtype=float) for side in (a, b))

    def statistic(rows: Indices) -> float:
        base = harmful_a[rows].mean()
        return float((base - harmful_b[rows].mean()) / base) if base else math.nan

    return bootstrap(statistic, [row.id for row in a])


def _discordant(a: Rows, b: Rows) -> tuple[int, int]:
    """Prompts harmful on one side only; with several samples, harmful is any sample harmful."""
    first, second = ({row.id for row in side if not row.is_safe} for side in (a, b))
    return len(first - second), len(second - first)


def _win_rates(a: Rows, b: Rows) -> dict[str, Estimate]:
    kinds: dict[str, tuple[Rows, Rows, Callable[[EvaluatedRow], float | None]]] = {
        "helpful": (a, b, lambda row: row.reward),
        "helpful_benign": (select(a, "benign"), select(b, "benign"), lambda row: row.reward),
        "harmless": (a, b, lambda row: None if row.cost is None else -row.cost),
    }
    found = {name: _win_rate(*kind) for name, kind in kinds.items()}
    return {name: rate for name, rate in found.items() if rate.n}


def _win_rate(a: Rows, b: Rows, score: Callable[[EvaluatedRow], float | None]) -> Estimate:
    wins, names = [], []
    for x, y in zip(a, b, strict=True):
        before, after = score(x), score(y)
        if before is not None and after is not None:
            wins.append(0.5 if after == before else float(after > before))
            names.append(x.id)
    rate = bootstrap_mean(wins, names, draws=DRAWS)
    return proportion(wins, names) if rate.low == rate.high else rate  # no width where one side wins all


def _by_category(a: Rows, b: Rows) -> dict[str, CategoryDifference]:
    found: dict[str, CategoryDifference] = {}
    for name in category_names(a):
        x = [row for row in a if name in row.prompt_categories]
        y = [row for row in b if name in row.prompt_categories]
        if not x:
            continue
        ids = [row.id for row in x]
        before, after = ([float(not row.is_safe) for row in side] for side in (x, y))
        p = mcnemar(*_discordant(x, y))
        found[name] = CategoryDifference(
            proportion(before, ids),
            proportion(after, ids),
            paired_difference(after, before, ids, draws=DRAWS),
            p,
            p,
            len(set(ids)) < LOW_POWER,
        )
    adjusted = holm([entry.p_value for entry in found.values()])
    return {
        name: entry._replace(p_adjusted=p) for (name, entry), p in zip(found.items(), adjusted, strict=True)
    }


def _other_settings(before: EvaluationRun, after: EvaluationRun) -> list[str]:
    given = [run.name for run in (before, after) if "responses" in run.manifest.inputs]
    found = _differences(before, after, ("samples",) if given else (*DECODING, "samples"))
    found += [f"how the responses of {name} were written is not known" for name in given]
    for name, what in (("scorer", "reward and cost"), ("rules", "rules")):
        measured = [run.name for run in (before, after) if name in run.manifest.inputs]
        if len(measured) == 1:
            found.append(f"{what} are measured in {measured[0]} only")
    return found
