"""From a judge's confidence to the probability that it is right, and how good that probability is."""

from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from equipoise.annotation.coefficients import Floats
from equipoise.stats import Estimate, bootstrap

Calibration = Literal["isotonic", "platt"]

Calibrator = Callable[[Floats], Floats]
"""Confidences [N] -> probabilities of being right, [N]."""

_EDGE = 1e-6


def calibrate(confidence: Floats, is_right: Floats, method: Calibration) -> Calibrator:
    """Fit P(right | confidence) on labelled rows.

    isotonic: any rising step function (Zadrozny and Elkan 2002), with a wrong row added at confidence 1 and
    a right one at 0, so that few rows do not give certainty. platt: a logistic curve over the log odds of
    the confidence (Platt 1999), with a weak ridge so that rows that a threshold separates have one too.
    """
    if method == "platt" and len(set(is_right.tolist())) == 2:
        curve = LogisticRegression(C=100.0).fit(_log_odds(confidence), is_right)
        return lambda values: np.asarray(curve.predict_proba(_log_odds(values))[:, 1])
    if method == "platt":  # one kind of outcome has no curve, so its smoothed share
        share = (is_right.sum() + 1) / (len(is_right) + 2)
        return lambda values: np.full(len(values), share)
    x, y = np.append(confidence, [0.0, 1.0]), np.append(is_right, [1.0, 0.0])
    steps = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(x, y)
    return lambda values: np.asarray(steps.predict(values))


def held_out(
    confidence: Floats, is_right: Floats, clusters: Sequence[Hashable], method: Calibration, *, folds: int = 5
) -> Floats:
    """Return each row's probability of being right by a calibrator that saw no row of its cluster, [N]."""
    numbers = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    groups = np.array([numbers[name] for name in clusters])
    result = np.empty(len(confidence))
    splitter = GroupKFold(n_splits=folds)
    for train, test in splitter.split(confidence, groups=groups):
        result[test] = calibrate(confidence[train], is_right[train], method)(confidence[test])
    return result


def expected_calibration_error(probability: Floats, is_right: Floats, *, bins: int = 10) -> float:
    """Mean gap between probability and share of right rows, over bins of equally many rows.

    Naeini et al. 2015, with the bins of Nixon et al. 2019. Equal probabilities stay in one bin.
    """
    edges = np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1])
    place = np.searchsorted(edges, probability, side="left")
    gaps = np.bincount(place, probability - is_right, minlength=bins)
    return float(np.abs(gaps).sum() / len(probability))


def calibration_error(probability: Floats, is_right: Floats, clusters: Sequence[Hashable]) -> Estimate:
    """Return the expected calibration error with an interval, resampled by cluster."""
    return bootstrap(
        lambda rows: expected_calibration_error(probability[rows], is_right[rows]), clusters, draws=500
    )


def _log_odds(confidence: Floats) -> Floats:
    p = np.clip(confidence, _EDGE, 1 - _EDGE)
    return np.asarray(np.log(p / (1 - p))[:, None])
