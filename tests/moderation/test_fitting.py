"""Fits of calibration: scikit-learn as reference, and planted distortions that are found again."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_softmax
from sklearn.linear_model import LogisticRegression

from equipoise.errors import DataError
from equipoise.models.heads import GuardLogits
from equipoise.moderation.calibration import Line
from equipoise.moderation.fitting import LEAST_SLOPE, Truth, fit_calibration, fit_line, fit_temperature

Floats = NDArray[np.float64]
NAMES = ("often", "seldom", "never")
SHIFTS = {"often": (0.5, 0.3), "seldom": (2.0, -1.0), "never": (2.0, -1.0)}
"""Slope and intercept that undo what was done to the log-odds of each category."""


def undone(true: Floats, line: tuple[float, float]) -> Floats:
    """Log-odds of which the line makes the true ones."""
    return (true - line[1]) / line[0]


def planted(n: int = 30_000, seed: int = 0) -> tuple[GuardLogits, Truth]:
    """Distorted logits, and labels that were drawn from the true ones; some labels are missing."""
    rng = np.random.default_rng(seed)
    is_prompt = rng.random(n) < 0.5
    severity = rng.normal(0, 1.5, (n, 3))
    above = (rng.random((n, 3)) < expit(severity)).astype(int)
    above[:, 1][above[:, 0] == 0] = -1  # not asked where the step before was not reached
    above[:, 2][above[:, 1] != 1] = -1
    given = np.where(is_prompt, undone(severity[:, 0], (0.5, 1.0)), undone(severity[:, 0], (2.0, -0.5)))
    steps = np.stack([given, undone(severity[:, 1], (0.7, 0.2)), undone(severity[:, 2], (1.5, -0.4))], 1)
    true = rng.normal((0.0, -2.0, -2.0), 1.0, (n, 3))
    categories = (rng.random((n, 3)) < expit(true)).astype(int)
    categories[:, 1][rng.random(n) < 0.999] = -1  # rated seldom
    categories[:, 2] = -1
    categories[above[:, 0] == 0] = 0
    logits = np.stack([undone(true[:, i], SHIFTS[name]) for i, name in enumerate(NAMES)], 1)
    refusal = log_softmax(rng.normal(0, 2, (n, 3)), axis=1)
    chosen = (refusal + rng.gumbel(size=(n, 3))).argmax(1)
    chosen[rng.random(n) < 0.5] = -1
    parts = (steps, logits, 3.0 * refusal)
    truth = Truth(is_prompt, above, categories, chosen, np.arange(n))
    return GuardLogits(*(torch.tensor(part) for part in parts)), truth


def close(line: Line, expected: tuple[float, float], within: float = 0.06) -> bool:
    return (line.slope, line.intercept) == pytest.approx(expected, abs=within * max(1, expected[0]))


@pytest.mark.parametrize(("slope", "shift", "n"), [(1.0, 0.0, 60), (7.0, -3.0, 400), (0.02, 1.0, 400)])
def test_a_line_is_that_of_logistic_regression_on_platts_targets(slope: float, shift: float, n: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.normal(0, 2, n)
    y = rng.random(n) < expit(x)
    x = slope * x + shift
    yes, no = y.sum(), (~y).sum()
    aim = np.where(y, (yes + 1) / (yes + 2), 1 / (no + 2))
    # a soft target is a row of either label, weighted
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(
        np.tile(x, 2)[:, None], np.repeat([1, 0], n), sample_weight=np.concatenate([aim, 1 - aim])
    )
    line = fit_line(x, y)
    assert line.slope == pytest.approx(reference.coef_[0, 0], rel=1e-4)
    assert line.intercept == pytest.approx(reference.intercept_[0], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("scale", [0.001, 1.0, 1000.0])
def test_a_planted_scale_and_shift_is_found_again(scale: float) -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(0, 2, 40_000)
    line = fit_line(undone(true, (2 / scale, -1.0)), rng.random(40_000) < expit(true))
    assert line.slope * scale == pytest.approx(2.0, abs=0.06)
    assert line.intercept == pytest.approx(-1.0, abs=0.05)


def test_a_head_without_mistakes_gets_a_steep_line_and_not_an_infinite_one() -> None:
    x = np.linspace(-1, 1, 40)
    line = fit_line(x, x > 0)
    assert 3 < line.slope < 1000
    assert expit(line.slope * 1 + line.intercept) < 1


def test_a_head_that_is_upside_down_keeps_its_order_and_says_that_it_knows_nothing() -> None:
    x = np.linspace(-3, 3, 400)
    line = fit_line(x, x < 1)
    assert line.slope * x.std() == pytest.approx(LEAST_SLOPE)
    shown = expit(line.slope * x + line.intercept)
    assert (np.diff(shown) > 0).all()
    assert shown == pytest.approx(np.full(400, (x < 1).mean()), abs=0.02)


def test_a_temperature_is_the_likeliest() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 1.5, (8000, 3))
    label = (true + rng.gumbel(size=true.shape)).argmax(1)
    found = fit_temperature(2.5 * true, label)
    assert found == pytest.approx(2.5, abs=0.12)

    def loss(t: float) -> float:
        return -sum(
            row[k] / t - math.log(sum(math.exp(v / t) for v in row))
            for row, k in zip((2.5 * true[:500]).tolist(), label[:500].tolist(), strict=True)
        )

    few = fit_temperature(2.5 * true[:500], label[:500])
    assert loss(few) == pytest.approx(min(loss(t) for t in np.linspace(few - 0.2, few + 0.2, 81)), rel=1e-6)


def test_every_head_is_found_again_and_what_has_few_rows_shares() -> None:
    logits, truth = planted()
    found = fit_calibration(logits, truth, NAMES, weights="w")
    assert close(found.unsafe["prompt"], (0.5, 1.0))
    assert close(found.unsafe["response"], (2.0, -0.5))
    assert close(found.severity[2], (0.7, 0.2))
    assert close(found.severity[3], (1.5, -0.4))
    assert close(found.categories["often"], SHIFTS["often"])
    assert found.refusal_temperature == pytest.approx(3.0, abs=0.1)
    assert found.shared == ("seldom", "never")
    assert found.categories["seldom"] == found.categories["never"]
    assert close(found.categories["never"], SHIFTS["often"], 0.1)  # nearly all of the rows are its


def test_a_category_with_the_rows_for_it_gets_its_own_line() -> None:
    logits, truth = planted()
    rng = np.random.default_rng(2)
    drawn = rng.random(len(truth.prompt)) < expit(2.0 * logits.categories[:, 2].numpy() - 1.0)
    truth.categories[:, 2] = np.where(truth.unsafe == 1, drawn, 0)
    found = fit_calibration(logits, truth, NAMES, weights="w")
    assert close(found.categories["never"], SHIFTS["never"], 0.1)
    assert found.shared == ("seldom",)


def test_what_nobody_labelled_has_no_say() -> None:
    logits, truth = planted(4000)
    once = fit_calibration(logits, truth, NAMES, weights="w")
    noise = GuardLogits(*(torch.cat([part, 50 * torch.randn(500, 3)]) for part in logits))
    unknown = Truth(
        np.arange(500) % 2 == 0,
        np.full((500, 3), -1),
        np.full((500, 3), -1),
        np.full(500, -1),
        np.arange(500),
    )
    both = Truth(*(np.concatenate(parts) for parts in zip(truth, unknown, strict=True)))
    assert fit_calibration(noise, both, NAMES, weights="w") == once


def test_too_few_rows_are_counted() -> None:
    logits, truth = planted(60)
    few = truth._replace(above=np.where(truth.is_prompt[:, None], -1, truth.above))
    safe, unsafe = int((few.unsafe == 0).sum()), int((few.unsafe == 1).sum())
    with pytest.raises(DataError) as caught:
        fit_calibration(logits, few, NAMES, weights="w", least=25)
    assert str(caught.value) == (
        f"calibration: too few labelled rows, got prompts 0 safe and 0 unsafe, responses {safe} safe and"
        f" {unsafe} unsafe; expected 25 safe and 25 unsafe ones of either kind"
    )
    assert set(fit_calibration(logits, few, NAMES, weights="w", least=5).unsafe) == {"response"}


def test_a_severity_is_known_as_far_as_its_steps_are() -> None:
    steps = [[0, -1, -1], [1, 0, -1], [1, 1, 0], [1, 1, 1], [1, -1, -1], [-1, -1, -1], [1, 1, -1]]
    expected = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, -1, -1], [-1, -1, -1], [1, 1, -1]]
    none = np.zeros(7, dtype=int)
    truth = Truth(none == 1, np.array(steps), none[:, None], none, none)
    assert truth.at_least.tolist() == expected
    assert truth.pick(np.array([2, 4])).unsafe.tolist() == [1, 1]
