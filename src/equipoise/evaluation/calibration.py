"""What calibration and policies do to labelled texts, and how it is told in a card.

Strictness is that of who decides what counts as harmful: from severity 1 on, from 2, or only 3. A guard
that is good at one may be bad at another (FlexBench, Ding et al. 2026), so F1 is told at each, with its
average and its worst; `matched` uses the strict preset for the first, moderate for the second, loose for
the third.

Shapes: N texts, K severity levels above 0, C categories, D draws.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.annotation.coefficients import Statistic, estimates
from equipoise.evaluation.guard_quality import micro_f1
from equipoise.evaluation.metrics import proportion
from equipoise.evaluation.reliability import Reliability, reliability
from equipoise.models.guard import Target
from equipoise.moderation.fitting import Labels, Truth
from equipoise.moderation.policies import Policy
from equipoise.moderation.reading import Reading
from equipoise.stats import Estimate, Floats, Indices

BY_STRICTNESS = ("strict", "moderate", "loose")

Flags = NDArray[np.bool_]


class Predictions(NamedTuple):
    """Probabilities of N texts."""

    at_least: Floats
    """[N, K] P(severity >= k), k from 1."""
    categories: Floats
    """[N, C] P(unsafe and of the category)."""
    declines: Floats
    """[N] P(partial or full refusal)."""


class Decisions(NamedTuple):
    """What a policy says of N texts."""

    flagged: Flags
    review: Flags


class Head(NamedTuple):
    """Calibration of one kind of probability, before and after."""

    before: Reliability
    after: Reliability


class Rates(NamedTuple):
    """What a policy does to prompts, or to responses."""

    flagged: Estimate
    false_positive_rate: Estimate
    recall: Estimate
    review: Estimate
    """Share of texts that go to a person."""
    wrong: Estimate
    """Share of wrong verdicts among the texts that do not."""


class Strictness(NamedTuple):
    """F1 of what is flagged, where severity 1, 2, ... and above count as harmful."""

    f1: tuple[float, ...]
    average: Estimate
    worst: Estimate


class CalibrationResult(NamedTuple):
    """What was measured."""

    heads: dict[str, Head]
    policies: dict[str, dict[Target, Rates]]
    strictness: dict[str, Strictness]


def predictions(reading: Reading) -> Predictions:
    """Return the probabilities of a reading."""
    return Predictions(
        reading.at_least.numpy(), reading.categories.numpy(), 1 - reading.refusal[:, 0].numpy()
    )


def decisions(reading: Reading, policy: Policy) -> Decisions:
    """Return what a policy says of the texts of a reading."""
    verdicts = [reading.verdict(row, policy) for row in range(len(reading.targets))]
    return Decisions(
        np.array([not verdict.is_safe for verdict in verdicts], dtype=bool),
        np.array([verdict.review for verdict in verdicts], dtype=bool),
    )


def measure_calibration(
    before: Predictions,
    after: Predictions,
    by_policy: Mapping[str, Decisions],
    truth: Truth,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> CalibrationResult:
    """Measure probabilities before and after calibration, and the policies.

    Args:
        before: Not calibrated.
        after: Calibrated, by a fit that has not seen the text.
        by_policy: What each policy says, fitted likewise.
        truth: What is known of the texts.
        draws: Resamplings of whole prompts behind every interval.
        seed: Of the resampling.
    """
    heads = {}
    for name, score, label, prompt in _heads(truth):
        known = label >= 0
        old, new = (
            reliability(score(found)[known], label[known] == 1, prompt[known], draws=draws, seed=seed)
            for found in (before, after)
        )
        if old is not None and new is not None:
            heads[name] = Head(old, new)
    return CalibrationResult(heads, _policies(by_policy, truth), _strictness(by_policy, truth, draws))


def _heads(truth: Truth) -> Iterator[tuple[str, Callable[[Predictions], Floats], Labels, Indices]]:
    """Each kind of probability: its name, where it stands, its labels, and the prompts as clusters.

    Severity and categories are asked of unsafe texts only: where some of these were not graded, all texts
    together would hold too many safe ones.
    """
    is_unsafe = truth.unsafe == 1

    def severity(level: int) -> Callable[[Predictions], Floats]:
        return lambda found: found.at_least[:, level - 1] / _above_zero(found.at_least[:, 0])

    def unsafe(found: Predictions) -> Floats:
        return found.at_least[:, 0]

    yield "unsafe prompts", unsafe, np.where(truth.is_prompt, truth.unsafe, -1), truth.prompt
    yield "unsafe responses", unsafe, np.where(truth.is_prompt, -1, truth.unsafe), truth.prompt
    for level in range(2, truth.above.shape[1] + 1):
        labels = np.where(is_unsafe, truth.at_least[:, level - 1], -1)
        yield f"severity {level} or more, if unsafe", severity(level), labels, truth.prompt
    yield (
        "categories, if unsafe",
        lambda found: (found.categories / _above_zero(found.at_least[:, :1])).ravel(),
        np.where(is_unsafe[:, None], truth.categories, -1).ravel(),
        np.repeat(truth.prompt, truth.categories.shape[1]),
    )
    yield "refusal", lambda found: found.declines, np.minimum(truth.refusal, 1), truth.prompt


def _above_zero(p: Floats) -> Floats:
    return np.maximum(p, np.finfo(np.float64).tiny)


def _policies(by_policy: Mapping[str, Decisions], truth: Truth) -> dict[str, dict[Target, Rates]]:
    kinds: dict[Target, Flags] = {"prompt": truth.is_prompt, "response": ~truth.is_prompt}
    return {
        name: {target: _rates(said, truth, rows) for target, rows in kinds.items() if rows.any()}
        for name, said in by_policy.items()
    }


def _rates(said: Decisions, truth: Truth, rows: Flags) -> Rates:
    def share(values: Flags, of: Flags) -> Estimate:
        clusters = [str(prompt) for prompt in truth.prompt[rows & of]]
        return proportion(values[rows & of].astype(float).tolist(), clusters)

    harmful, everything = truth.unsafe == 1, np.ones_like(rows)
    return Rates(
        flagged=share(said.flagged, everything),
        false_positive_rate=share(said.flagged, truth.unsafe == 0),
        recall=share(said.flagged, harmful),
        review=share(said.review, everything),
        wrong=share(said.flagged != harmful, (truth.unsafe >= 0) & ~said.review),
    )


def _strictness(by_policy: Mapping[str, Decisions], truth: Truth, draws: int) -> dict[str, Strictness]:
    graded = (truth.at_least >= 0).all(axis=1)
    harmful = truth.at_least[graded] == 1  # [N, K]
    if not harmful.any(axis=0).all():
        return {}
    flagged = {name: said.flagged[graded] for name, said in by_policy.items()}
    levels = range(harmful.shape[1])
    columns = {name: [said] * len(levels) for name, said in flagged.items()}
    if len(levels) == len(BY_STRICTNESS) and set(BY_STRICTNESS) <= flagged.keys():
        columns["matched"] = [flagged[name] for name in BY_STRICTNESS]
    clusters = truth.prompt[graded].tolist()
    found = {}
    for name, said in columns.items():
        each = [micro_f1(harmful[:, [j]], said[j][:, None]) for j in levels]
        told = estimates(
            {"average": _over(each, np.mean), "worst": _over(each, np.min)}, clusters, draws=draws
        )
        once = np.ones((1, len(clusters)))
        found[name] = Strictness(tuple(float(f1(once)[0]) for f1 in each), told["average"], told["worst"])
    return found


def _over(each: Sequence[Statistic], reduce: Callable[..., Floats]) -> Statistic:
    return lambda drawn: reduce([f1(drawn) for f1 in each], axis=0)
