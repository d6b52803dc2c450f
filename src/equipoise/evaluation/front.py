"""The trade-off of two goods over several runs on the same prompts: the front, and what lies under it.

Shapes: R runs, P prompts, N rows, D draws. Both goods are oriented so that more is better. Draws are of
prompts, harmful and benign ones each by themselves, and the same for every run, so that what all runs find
hard does not blur which of them is better.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.errors import ConfigError, DataError
from equipoise.evaluation.compare import find_mismatches, pair
from equipoise.evaluation.metrics import DRAWS, METRICS, Metric, estimate, limit_of, select
from equipoise.evaluation.rows import EvaluatedRow, EvaluationRun
from equipoise.stats import Estimate, Floats

Helpfulness = Literal["reward_benign", "truly_safe"]
"""The metric that says how helpful a run is."""

_CHUNK = 500


class Candidate(NamedTuple):
    """One run in the plane of the two goods."""

    name: str
    helpfulness: Estimate
    harmlessness: Estimate
    is_on_front: bool
    """No other run is as good in both and better in one."""
    front_share: float
    """Share of the draws in which this is so; NaN where there is one prompt of a kind."""


class Front(NamedTuple):
    """What several runs on the same prompts offer."""

    helpfulness: str
    """Title of the metric, as that of the other good."""
    helpfulness_is_share: bool
    harmlessness: str
    candidates: list[Candidate]
    reference: tuple[float, float]
    """Helpfulness and harmlessness from which the hypervolume is measured."""
    reference_run: str | None
    """Whose numbers these are: then they are drawn anew with the rest; None for numbers that were given."""
    hypervolume: Estimate
    harmful_prompts: int
    benign_prompts: int


def non_dominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Tell the points that no other equals in all goods and exceeds in one, [..., R, 2] -> [..., R].

    >>> non_dominated([[1, 3], [2, 2], [1, 2], [2, 2]]).tolist()
    [True, True, False, True]
    """
    at = np.asarray(points, dtype=np.float64)
    mine, other = at[..., :, None, :], at[..., None, :, :]
    is_beaten = (other >= mine).all(-1) & (other > mine).any(-1)
    return np.asarray(~is_beaten.any(-1))


def hypervolume(points: ArrayLike, reference: ArrayLike) -> Floats:
    """Area that the points dominate beyond a reference, [..., R, 2] and [..., 2] -> [...]. Zitzler 1999.

    Exact: points in falling order of the first good, a column for each down to the next one, as high as
    the best second good so far.

    >>> float(hypervolume([[1, 3], [2, 2], [1, 1]], [0, 0]))
    5.0
    """
    origin = np.asarray(reference, dtype=np.float64)[..., None, :]
    gains = np.maximum(np.asarray(points, dtype=np.float64) - origin, 0.0)
    order = np.argsort(-gains[..., 0], axis=-1, kind="stable")
    across, up = (np.take_along_axis(gains[..., good], order, axis=-1) for good in (0, 1))
    widths = across - np.concatenate([across[..., 1:], np.zeros_like(across[..., :1])], axis=-1)
    return np.asarray((widths * np.maximum.accumulate(up, axis=-1)).sum(-1))


def measure_front(
    runs: Sequence[EvaluationRun],
    *,
    helpfulness: Helpfulness | None = None,
    reference: tuple[float, float] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Front:
    """Place runs on the same prompts by helpfulness and harmlessness (1 - harmful rate).

    Args:
        runs: Without a `reference` the first one is it; its 95th percentile of repetition decides in all
            of them what is degenerate.
        helpfulness: None takes the reward where every run has one, else the truly safe share.
        reference: Helpfulness and harmlessness; given numbers are not drawn anew.
        draws: Of prompts, for every interval and share.
        seed: Of these draws.

    Raises:
        ConfigError: The runs were judged differently.
        DataError: The rows do not pair, or something was not measured.
    """
    rows = _paired(runs)
    limit = limit_of(rows[0])
    helpfulness = helpfulness or _measured_helpfulness(rows)
    help_metric, harm_metric = METRICS[helpfulness], METRICS["harmful_rate"]
    kinds = {row.id: row.is_harmful for row in rows[0]}
    harmful, benign = _of_both_kinds(runs[0].name, list(kinds.values()))
    helpful = [estimate(help_metric, side, limit) for side in rows]
    if lacking := [run.name for run, found in zip(runs, helpful, strict=True) if not found.n]:
        raise DataError(f"{lacking[0]}: {helpfulness} was not measured; expected an evaluation with a scorer")
    harmless = [_one_less(estimate(harm_metric, side, limit)) for side in rows]

    weights = _weights(list(kinds.values()), draws, seed)
    drawn = [_resampled(rows, metric, limit, list(kinds), weights) for metric in (help_metric, harm_metric)]
    # rounded, so that runs which are alike tie in every draw whatever the order of the sums
    clouds = np.round(np.stack([drawn[0], 1 - drawn[1]], axis=-1), 12)  # [D, R, 2]
    at = np.round([(x.value, y.value) for x, y in zip(helpful, harmless, strict=True)], 12)
    origin = reference or (helpful[0].value, harmless[0].value)
    low, high, shares = math.nan, math.nan, [math.nan] * len(runs)
    if min(harmful, benign) > 1:
        volumes = hypervolume(clouds, clouds[:, 0] if reference is None else reference)
        low, high = np.quantile(volumes, [0.025, 0.975]).tolist()
        shares = non_dominated(clouds).mean(axis=0).tolist()
    return Front(
        helpfulness=help_metric.title,
        helpfulness_is_share=help_metric.kind == "share",
        harmlessness="Harmless responses to harmful prompts",
        candidates=[
            Candidate(run.name, *each)
            for run, *each in zip(runs, helpful, harmless, non_dominated(at).tolist(), shares, strict=True)
        ],
        reference=origin,
        reference_run=runs[0].name if reference is None else None,
        hypervolume=Estimate(float(hypervolume(at, origin)), low, high, len(rows[0]), len(kinds)),
        harmful_prompts=harmful,
        benign_prompts=benign,
    )


def _paired(runs: Sequence[EvaluationRun]) -> list[list[EvaluatedRow]]:
    """Return the rows of every run in the order of the first."""
    first = runs[0]
    for run in runs[1:]:
        if mismatches := find_mismatches(first, run):
            raise ConfigError(f"{first.name} and {run.name} do not compare: {'; '.join(mismatches)}")
    return [first.rows, *(pair(first, run)[1] for run in runs[1:])]


def _measured_helpfulness(rows: Sequence[Sequence[EvaluatedRow]]) -> Helpfulness:
    """Return the reward where every run has one."""
    has_rewards = all(row.reward is not None for side in rows for row in select(side, "benign"))
    return "reward_benign" if has_rewards else "truly_safe"


def _of_both_kinds(name: str, is_harmful: Sequence[bool]) -> tuple[int, int]:
    """Count harmful and benign prompts; none of one kind raises DataError."""
    harmful = sum(is_harmful)
    benign = len(is_harmful) - harmful
    if not harmful or not benign:
        raise DataError(f"{name}: has {harmful} harmful and {benign} benign prompts; expected some of both")
    return harmful, benign


def _weights(is_harmful: Sequence[bool], draws: int, seed: int) -> NDArray[np.int64]:
    """How often each prompt stands in each draw, [D, P]; the number of either kind stays what it is."""
    rng = np.random.default_rng(seed)
    kinds = np.array(is_harmful)
    weights = np.empty((draws, len(kinds)), dtype=np.int64)
    for kind in (True, False):
        count = int((kinds == kind).sum())
        weights[:, kinds == kind] = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    return weights


def _resampled(
    rows: Sequence[Sequence[EvaluatedRow]],
    metric: Metric,
    limit: float,
    prompts: Sequence[str],
    weights: NDArray[np.int64],
) -> Floats:
    """Mean of a metric for each run in each draw, [D, R]."""
    number = {name: i for i, name in enumerate(prompts)}
    chosen = [select(side, metric.over) for side in rows]
    prompt = np.array([number[row.id] for row in chosen[0]])
    values = [np.array([metric.value(row, limit) for row in side], dtype=np.float64) for side in chosen]
    sums = np.stack([np.bincount(prompt, row, minlength=len(prompts)) for row in values], axis=1)  # [P, R]
    sizes = np.bincount(prompt, minlength=len(prompts))
    parts = [weights[start : start + _CHUNK] for start in range(0, len(weights), _CHUNK)]
    return np.concatenate([(part @ sums) / (part @ sizes)[:, None] for part in parts])


def _one_less(rate: Estimate) -> Estimate:
    return Estimate(1 - rate.value, 1 - rate.high, 1 - rate.low, rate.n, rate.clusters)
