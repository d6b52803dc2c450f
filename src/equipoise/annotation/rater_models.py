"""Forms of a rater's confusion matrix, for `latent.fit`.

    FullConfusion   any matrix                              V (V - 1) numbers a rater
    Spammer         knows the truth, or answers by habit    V numbers
    Thresholds      sees the truth with noise, on a scale   V numbers, for ordered values

Shapes: R raters, K true values, V values that are answered (as many).
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from equipoise.annotation.coefficients import Floats
from equipoise.annotation.latent import FLOOR, Raters


@dataclass(frozen=True)
class FullConfusion:
    """Any confusion matrix, with a Dirichlet prior on its rows. Dawid and Skene 1979.

    The prior adds `prior_count` answers to each row, of which the share `prior_accuracy` is right; with
    0 it is the maximum likelihood of the paper.
    """

    prior_count: float = 2.0
    prior_accuracy: float = 0.75

    def __call__(self, counts: Floats, before: Raters | None) -> Raters:
        """Return the matrices of highest posterior for the expected counts."""
        size = counts.shape[1]
        wrong = (1 - self.prior_accuracy) / max(size - 1, 1)
        added = self.prior_count * (np.eye(size) * (self.prior_accuracy - wrong) + wrong)
        totals = counts + added
        rows = totals.sum(axis=2, keepdims=True)
        confusion = np.divide(totals, rows, out=np.full_like(totals, 1 / size), where=rows > 0)
        log_prior = float((added * np.log(np.maximum(confusion, FLOOR))).sum())
        return Raters(confusion, log_prior, {})


@dataclass(frozen=True)
class Spammer:
    """With probability `competence` the rater gives the truth, else an answer from `habit`, [V].

    Hovy et al. 2013, "Learning whom to trust with MACE"; here the highest posterior with a beta prior
    on competence and a Dirichlet prior on habits, and votes as the start in place of restarts.
    """

    right_count: float = 1.0
    """Known and spammed answers that are added to each rater's."""
    habit_count: float = 0.5
    """Answers of each value that are added to each rater's habit."""

    def __call__(self, counts: Floats, before: Raters | None) -> Raters:
        """Return raters that fit the expected counts better than those before."""
        raters, size = len(counts), counts.shape[1]
        if before is None:
            competence, habit = np.full(raters, 0.5), np.full((raters, size), 1 / size)
        else:
            competence, habit = before.parameters["competence"], before.parameters["habit"]
        right = np.diagonal(counts, axis1=1, axis2=2)  # [R, V]
        guessed = (1 - competence)[:, None] * habit
        known = right * competence[:, None] / np.maximum(competence[:, None] + guessed, FLOOR)
        spam = counts.sum(axis=1) - known
        totals = spam + self.habit_count
        habit = totals / totals.sum(axis=1, keepdims=True)
        total = counts.sum(axis=(1, 2))
        competence = (known.sum(axis=1) + self.right_count) / (total + 2 * self.right_count)
        confusion = competence[:, None, None] * np.eye(size) + ((1 - competence)[:, None] * habit)[:, None]
        log_prior = self.right_count * np.log(competence * (1 - competence)).sum()
        log_prior += self.habit_count * np.log(habit).sum()
        return Raters(confusion, float(log_prior), {"competence": competence, "habit": habit})


@dataclass(frozen=True)
class Thresholds:
    """P(answer > v | truth k) = logistic(sharpness (k - threshold_v)), thresholds in rising order.

    The proportional-odds form (McCullagh 1980) as the confusion matrix of Dawid and Skene's model, with
    thresholds of each rater's own as in Johnson 1996. A strict rater has low thresholds, a careless one
    low sharpness. The prior is normal: thresholds around k + 1/2, the logarithms of sharpness and of the
    gaps between thresholds around those of `prior_sharpness` and 1, with deviations `spread` each.
    """

    prior_sharpness: float = 3.0
    spread: float = 0.4

    def __call__(self, counts: Floats, before: Raters | None) -> Raters:
        """Return raters that fit the expected counts better than those before."""
        raters, size = len(counts), counts.shape[1]
        centre = np.array([np.log(self.prior_sharpness), 0.5, *[0.0] * (size - 2)])
        start = np.tile(centre, (raters, 1)) if before is None else before.parameters["raw"]

        def loss(flat: Floats) -> tuple[float, Floats]:
            raw = flat.reshape(raters, size)
            likelihood, gradient = _likelihood(raw, counts)
            off = (raw - centre) / self.spread
            return 0.5 * float((off**2).sum()) - likelihood, (off / self.spread - gradient).ravel()

        options = {"maxiter": 20}  # not to the end: EM needs no more than an improvement
        bounds = [(-5.0, 5.0)] * start.size
        found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        raw = found.x.reshape(raters, size)
        log_prior = -0.5 * (((raw - centre) / self.spread) ** 2).sum()
        parameters = {"sharpness": np.exp(raw[:, 0]), "thresholds": _thresholds(raw), "raw": raw}
        return Raters(_proportional_odds(raw), float(log_prior), parameters)


def _thresholds(raw: Floats) -> Floats:
    """First threshold, then the logarithms of the gaps, [R, V] -> thresholds [R, V - 1]."""
    return np.cumsum(np.concatenate([raw[:, 1:2], np.exp(raw[:, 2:])], axis=1), axis=1)


def _above(raw: Floats) -> Floats:
    """P(answer > v | truth k), [R, V] -> [R, K, V - 1]."""
    truth = np.arange(raw.shape[1])[:, None]
    sharpness = np.exp(raw[:, 0])[:, None, None]
    return np.asarray(expit(sharpness * (truth - _thresholds(raw)[:, None])))


def _proportional_odds(raw: Floats) -> Floats:
    """Log sharpness and thresholds [R, V] -> confusion matrices [R, K, V]."""
    return np.asarray(-np.diff(_above(raw), axis=2, prepend=1.0, append=0.0))


def _likelihood(raw: Floats, counts: Floats) -> tuple[float, Floats]:
    """Log likelihood of expected counts [R, K, V], and its gradient, [R, V]."""
    confusion = np.maximum(_proportional_odds(raw), FLOOR)
    above, pull = _above(raw), counts / confusion
    by_odds = (pull[..., 1:] - pull[..., :-1]) * above * (1 - above)  # [R, K, V - 1], along sharpness (k - t)
    sharpness = np.exp(raw[:, 0])
    truth = np.arange(raw.shape[1])[:, None]
    by_log_sharpness = sharpness * (by_odds * (truth - _thresholds(raw)[:, None])).sum((1, 2))
    by_threshold = -sharpness[:, None] * by_odds.sum(1)  # [R, V - 1]
    later = np.cumsum(by_threshold[:, ::-1], axis=1)[:, ::-1]  # a gap moves all thresholds behind it
    gaps = np.concatenate([later[:, :1], later[:, 1:] * np.exp(raw[:, 2:])], axis=1)
    gradient = np.concatenate([by_log_sharpness[:, None], gaps], axis=1)
    return float((counts * np.log(confusion)).sum()), gradient
