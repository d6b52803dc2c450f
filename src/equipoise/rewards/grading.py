"""Graders that were trained: one head per proposition, on a frozen model's features and on words.

A head is the mean of three: on the answer's words alone, on words and features of the whole answer, and on
those of each of its sentences, whose odds are summed; see `answer_features` and `summed_odds`. What each of
the three counts for, and where a yes begins, come from cross-validation in which the answers to one prompt,
and equal answers, stay together. A yes begins half-way between log-odds of 0, where it would if yes and no
were as many, and what gave the best F1 there: that hangs on few answers.

Shapes: N answers, P propositions, K projected features of an answer and L of a sentence, W words.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from equipoise.data.splits import normalise_prompt
from equipoise.errors import DataError
from equipoise.records import Exchange, text_of
from equipoise.rewards.answer_features import Inputs
from equipoise.rewards.rules import Grades
from equipoise.rewards.summed_odds import Bools, OddsHeads, Parts, fit_odds, sum_odds
from equipoise.stats import Floats, Indices, f1

FEWEST = 8
"""Answers of which a proposition must be true, and false, for a head to be trained."""

_FOLDS, _DRAWS = 4, 4
_CONSTANT = 1e-9
_STRENGTH = 10.0
"""Inverse weight of the squared weights."""
_NEARLY = 0.98
_NEAR_EQUAL = 0.01
"""Weight of the squared logarithm of a head's weight over an equal share."""


class Heads(NamedTuple):
    """A head for each proposition; one that was not trained says no."""

    weight: Floats
    """[P, K + W] of whole answers."""
    sentence_weight: Floats
    """[P, L + W] of sentences."""
    sentence_share: Floats
    """[P] what the summed odds of the sentences count for."""
    bias: Floats
    """[P] at which a yes begins at log-odds of 0."""
    trained: Bools
    """[P]"""

    def __call__(self, inputs: Inputs) -> Grades:
        """Grades of N answers, [N, P]."""
        summed = sum_odds(inputs.sentences.rows @ self.sentence_weight.T, inputs.sentences.first)
        logits = inputs.answers @ self.weight.T + self.sentence_share * summed + self.bias
        found: Grades = np.where(self.trained, 1 / (1 + np.exp(-np.clip(logits, -50, 50))), 0.0)
        return found


def fit_heads(inputs: Inputs, labels: Floats, groups: Sequence[int]) -> tuple[Heads, list[float]]:
    """Train a head for every proposition that has labels enough.

    Args:
        inputs: Of N answers.
        labels: [N, P] 1 true, 0 false, NaN not labelled.
        groups: Answers of one stay together in cross-validation; see `answer_groups`.

    Returns:
        The heads, and the cross-validated F1 of each (NaN of those that were not trained).

    Raises:
        DataError: No proposition has labels enough.
    """
    folds = _folds(labels, np.asarray(groups))
    places = np.flatnonzero((folds >= 0).any(axis=(0, 1)))
    if not len(places):
        raise DataError(
            f"exchanges: no proposition is true of {FEWEST} answers and false of {FEWEST}, to two prompts at"
            " least; expected one"
        )
    count, width = labels.shape[1], inputs.answers.width
    heads = Heads(
        np.zeros((count, width)),
        np.zeros((count, inputs.sentences.rows.width)),
        np.zeros(count),
        np.zeros(count),
        np.zeros(count, dtype=np.bool_),
    )
    scores = [float("nan")] * count
    labels, folds = labels[:, places], folds[..., places]
    three = _fit_three(inputs.views, labels)
    held_back = _held_back_logits(inputs.views, labels, folds)
    for column, place in enumerate(places):
        rated = ~np.isnan(labels[:, column])
        truth = np.tile(labels[rated, column] == 1, _DRAWS)
        each = held_back[:, :, rated, column].reshape(len(three), -1)
        shares = _shares(each, truth)
        logits = shares @ each
        threshold = best_threshold(logits, truth)[0] / 2
        scores[place] = f1(logits > threshold, truth)
        words, answer, sentence = (head.weight[column] for head, _ in three)
        counts = shares * [scale[column] for _, scale in three]
        heads.weight[place] = counts[1] * answer
        heads.weight[place, width - len(words) :] += counts[0] * words
        heads.sentence_weight[place], heads.sentence_share[place] = sentence, counts[2]
        heads.bias[place] = counts @ [head.bias[column] for head, _ in three] - threshold
        heads.trained[place] = True
    return heads, scores


def answer_groups(exchanges: Sequence[Exchange]) -> list[int]:
    """Number answers so that those to one prompt, and those of the same words, have one number, [N].

    The prompt is not read, so an answer that stands twice is one row, whatever it was an answer to.
    """
    rows = np.arange(len(exchanges))
    prompts = [normalise_prompt(text_of(e.prompt)) for e in exchanges]
    columns = [
        np.unique(names, return_inverse=True)[1] for names in (prompts, [e.response for e in exchanges])
    ]
    place = np.concatenate([len(rows) * (1 + kind) + column for kind, column in enumerate(columns)])
    links = coo_array((np.ones(2 * len(rows)), (np.tile(rows, 2), place)), shape=(3 * len(rows),) * 2)
    found: list[int] = connected_components(links, directed=False)[1][: len(rows)].tolist()
    return found


def _folds(labels: Floats, groups: Indices) -> Indices:
    """Draw what is held back together, [draws, N, P]; -1 of an answer that is not labelled.

    Folds are drawn several times: where a yes is rare, one draw says little of where it should begin. All are
    -1 of a proposition without labels enough.
    """
    found = np.full((_DRAWS, *labels.shape), -1)
    for column, truth in enumerate(labels.T):
        rated = np.flatnonzero(~np.isnan(truth))
        yes, count = truth[rated] == 1, len(set(groups[rated]))
        if min(yes.sum(), (~yes).sum()) < FEWEST or count < 2:
            continue
        for draw in range(_DRAWS):
            folds = StratifiedGroupKFold(min(_FOLDS, count), shuffle=True, random_state=draw)
            for fold, (_, held) in enumerate(folds.split(yes, yes, groups[rated])):
                found[draw, rated[held], column] = fold
    return found


def _fit_three(views: Sequence[Parts], truth: Floats) -> list[tuple[OddsHeads, Floats]]:
    """Heads on each view, and what to multiply theirs by [P] so that the log-odds of all views vary alike."""
    heads = [fit_odds(view, truth, _STRENGTH) for view in views]
    counts = ~np.isnan(truth)
    spreads = np.array(
        [head(view).std(axis=0, where=counts) for head, view in zip(heads, views, strict=True)]
    )
    usual = spreads.mean(axis=0)
    learned = np.array([(head.weight != 0).any(axis=1) for head in heads])
    says = learned & (spreads > _CONSTANT * usual)  # a view that is the same everywhere has no say
    scales = np.divide(usual, spreads, out=np.zeros_like(spreads), where=says)
    return list(zip(heads, scales, strict=True))


def _held_back_logits(views: Sequence[Parts], labels: Floats, folds: Indices) -> Floats:
    """Log-odds of each answer by three heads that did not learn from its prompt, [3, draws, N, P]."""
    logits = np.zeros((len(views), *folds.shape))
    for draw, drawn in enumerate(folds):
        for fold in range(drawn.max() + 1):
            held = drawn == fold
            three = _fit_three(views, np.where(held, np.nan, labels))
            for place, ((head, scale), view) in enumerate(zip(three, views, strict=True)):
                logits[place, draw][held] = (scale * head(view))[held]
    return logits


def _shares(logits: Floats, yes: Bools) -> Floats:
    """What each of three heads counts for, [3]; 1 in sum.

    They are the weights of a logistic model of the held-back log-odds [3, N], where yes and no count alike:
    each is above 0, and the logarithm of each over an equal share is held near 0. A head that says the same
    of all has none.
    """
    says = logits.std(axis=1) > 0
    if not says.any():
        return np.full(len(logits), 1 / len(logits))
    rows, sign = logits[says], np.where(yes, -1.0, 1.0)
    alike = np.where(yes, 0.5 / yes.mean(), 0.5 / (~yes).mean())
    equal = -math.log(len(rows))

    def loss(at: Floats) -> float:
        away, bias = at[:-1], at[-1]
        z = np.exp(equal + away) @ rows + bias
        fit = (alike * np.logaddexp(0, sign * z)).mean()
        return float(fit + _NEAR_EQUAL * (away**2).sum())

    away = minimize(loss, np.zeros(len(rows) + 1), method="L-BFGS-B").x[:-1]
    found = np.zeros(len(logits))
    found[says] = np.exp(away) / np.exp(away).sum()
    return found


def best_threshold(scores: Floats, yes: Bools) -> tuple[float, float]:
    """Return where a yes should begin for a good F1, and that F1.

    Of all places half-way between two scores whose F1 is within 2 % of the best, it is the middle one: the
    best itself hangs on single answers.

    >>> best_threshold(np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, False, True, True]))
    (1.5, 1.0)
    """
    order = np.unique(scores)
    cuts = np.concatenate([[order[0] - 1], (order[1:] + order[:-1]) / 2])
    values = np.array([f1(scores > cut, yes) for cut in cuts])
    good = np.flatnonzero(values >= _NEARLY * values.max())
    middle = good[(len(good) - 1) // 2]
    return float(cuts[middle]), float(values[middle])
