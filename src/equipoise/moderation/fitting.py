"""Fit a guard's calibration to labelled texts that it has not been trained on.

Each head has a line through its log-odds, found by maximum likelihood with the targets of Platt 1999:
(n + 1) / (n + 2) for the n rows where it is so and 1 / (m + 2) for the m others, so that a head that
tells them apart without a mistake gets a steep line and not an infinite one.

Shapes: N texts, K severity thresholds (levels above 0), C categories.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax

from equipoise.errors import DataError
from equipoise.models.guard import Target
from equipoise.models.heads import GuardLogits
from equipoise.moderation.calibration import Calibration, Line
from equipoise.stats import Floats, Indices

Labels = NDArray[np.int_]
"""1 where it is so, 0 where it is not, -1 where nobody said."""

LEAST_SLOPE = 0.01
"""Calibrated log-odds for one standard deviation of a head's own, at least: a head that knows nothing of
its labels, or has them upside down, keeps its order, and its probabilities say that it knows nothing."""

_TARGETS: tuple[Target, ...] = ("prompt", "response")


class Truth(NamedTuple):
    """What people said of N texts."""

    is_prompt: NDArray[np.bool_]
    """[N] a prompt by itself, or a response in its context."""
    above: Labels
    """[N, K] whether the severity is above j, asked where it is j at least; the first is unsafe."""
    categories: Labels
    """[N, C] 0 for every category of a safe text."""
    refusal: Labels
    """[N] index into `records.REFUSALS`, or -1."""
    prompt: Indices
    """[N] number of the prompt; rows that share one are one cluster."""

    @property
    def unsafe(self) -> Labels:
        """[N] whether the text is unsafe."""
        return self.above[:, 0]

    @property
    def at_least(self) -> Labels:
        """[N, K] whether the severity is k at least, k from 1."""
        passed = np.logical_and.accumulate(self.above == 1, axis=1)
        failed = np.logical_or.accumulate(self.above == 0, axis=1)
        found: Labels = np.where(failed, 0, np.where(passed, 1, -1))
        return found

    def pick(self, rows: Indices) -> "Truth":
        """Return what is known of some texts."""
        return Truth(
            self.is_prompt[rows],
            self.above[rows],
            self.categories[rows],
            self.refusal[rows],
            self.prompt[rows],
        )


def fit_calibration(
    logits: GuardLogits, truth: Truth, names: Sequence[str], *, weights: str, least: int = 25
) -> Calibration:
    """Fit every head that has the rows for it.

    Args:
        logits: Of the texts, not calibrated.
        truth: What is known of them.
        names: The guard's categories, in head order.
        weights: Sha256 of the guard's weights.
        least: Rows of either kind that a head needs for a line of its own.

    Raises:
        DataError: Neither prompts nor responses have that many safe and unsafe rows.
    """
    severity, categories, refusal = (part.double().numpy() for part in logits)
    of_kind = {target: truth.is_prompt == (target == "prompt") for target in _TARGETS}
    unsafe = {
        target: line
        for target, rows in of_kind.items()
        if (line := _line(severity[rows, 0], truth.unsafe[rows], least))
    }
    if not unsafe:
        counts = ", ".join(f"{target}s {_counts(truth.unsafe[rows])}" for target, rows in of_kind.items())
        raise DataError(
            f"calibration: too few labelled rows, got {counts};"
            f" expected {least} safe and {least} unsafe ones of either kind"
        )
    levels = {}
    for j in range(1, severity.shape[1]):
        asked = np.where(truth.at_least[:, j - 1] == 1, truth.above[:, j], -1)
        if line := _line(severity[:, j], asked, least):
            levels[j + 1] = line
    given_unsafe = np.where(truth.unsafe[:, None] == 1, truth.categories, -1)
    shared = _line(categories.ravel(), given_unsafe.ravel(), least)
    own = {name: _line(categories[:, i], given_unsafe[:, i], least) for i, name in enumerate(names)}
    return Calibration(
        weights=weights,
        unsafe=unsafe,
        severity=levels,
        categories={name: line for name in names if (line := own[name] or shared)},
        shared=tuple(name for name in names if shared and not own[name]),
        refusal_temperature=_temperature(refusal, truth.refusal, least),
    )


def fit_line(logits: Floats, happened: NDArray[np.bool_]) -> Line:
    """Fit the line for log-odds [N] of something that happened or not [N]; it rises, if by little."""
    yes = int(happened.sum())
    aim = np.where(happened, (yes + 1) / (yes + 2), 1 / (len(happened) - yes + 2))
    scale = float(logits.std()) or 1.0
    x = logits / scale

    def loss(line: Floats) -> tuple[float, Floats]:
        z = line[0] * x + line[1]
        error = (expit(z) - aim) / len(x)
        return float(np.mean(np.logaddexp(0, z) - aim * z)), np.array([error @ x, error.sum()])

    found = minimize(
        loss,
        np.array([scale, 0.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(LEAST_SLOPE, None), (None, None)],
        options={"ftol": 1e-15, "gtol": 1e-10},
    )
    return Line(slope=float(found.x[0] / scale), intercept=float(found.x[1]))


def fit_temperature(logits: Floats, label: Indices) -> float:
    """Fit what logits [N, classes] are divided by, so that their softmax predicts the labels [N]."""
    rows = np.arange(len(label))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[rows, label].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-8}).x))


def _line(logits: Floats, label: Labels, least: int) -> Line | None:
    known = label >= 0
    happened = label[known] == 1
    enough = min(happened.sum(), (~happened).sum()) >= least
    return fit_line(logits[known], happened) if enough else None


def _temperature(logits: Floats, label: Labels, least: int) -> float | None:
    known = label >= 0
    declines = label[known] > 0
    enough = min(declines.sum(), (~declines).sum()) >= least
    return fit_temperature(logits[known], label[known]) if enough else None


def _counts(unsafe: Labels) -> str:
    return f"{(unsafe == 0).sum()} safe and {(unsafe == 1).sum()} unsafe"
