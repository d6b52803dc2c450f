"""Graders that were trained: one head per proposition, on a frozen model's features and on words.

A head is the mean of three: on the answer's words alone, on words and features of the whole answer, and on
those of each of its sentences, whose odds are summed; see `answer_features` and `summed_odds`. What each of
the three counts for, and where a yes begins, come from cross-validation in which the answers to one prompt,
and equal answers, stay together. A yes begins half-way
between log-odds of 0, where it would if yes and no were as many, and what gave the best F1 there: that hangs
on few answers.

Shapes: N answers, P propositions, F features of a text, W words.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from equipoise.data.splits import normalise_prompt
from equipoise.errors import DataError, ModelError
from equipoise.models.backbone import Backbone
from equipoise.models.checkpoints import load_tensors, require_all, save_tensors
from equipoise.records import Exchange, text_of
from equipoise.rewards.answer_features import Features, Inputs, Reader, Scale, tfidf
from equipoise.rewards.rules import Grades
from equipoise.rewards.summed_odds import Bools, Floats, Head, Parts, Places, fit_head, span, sum_odds
from equipoise.stats import f1

FEWEST = 8
"""Answers of which a proposition must be true, and false, for a head to be trained."""

_FOLDS, _DRAWS = 4, 4
_CONSTANT = 1e-9
_STRENGTH = 10.0
"""Inverse weight of the squared weights."""
_NEARLY = 0.98
_NEAR_EQUAL = 0.01
"""Weight of the squared logarithm of a head's weight over an equal share."""
_FILE = "weights.safetensors"
_TENSORS = (
    *("weight", "sentence_weight", "sentence_share", "bias"),
    *("trained", "scale.answers", "scale.sentences", "words.idf", "words.terms"),
)
_AT_ONCE = 256
"""Answers whose sentences are in memory at once."""


class Heads(NamedTuple):
    """A head for each proposition; one that was not trained says no."""

    weight: Floats
    """[P, F + W] of whole answers."""
    sentence_weight: Floats
    """[P, F + W] of sentences."""
    sentence_share: Floats
    """[P] what the summed odds of the sentences count for."""
    bias: Floats
    """[P] at which a yes begins at log-odds of 0."""
    trained: Bools
    """[P]"""

    def __call__(self, inputs: Inputs) -> Grades:
        """Grades of N answers, [N, P]."""
        summed = sum_odds(inputs.sentences.rows @ self.sentence_weight.T, inputs.sentences.first)
        logits = inputs.joined @ self.weight.T + self.sentence_share * summed + self.bias
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
    together = np.asarray(groups)
    spans = [span(view.rows) for view in inputs.views]
    views = [view._replace(rows=found.rows) for view, found in zip(inputs.views, spans, strict=True)]
    count, width = labels.shape[1], inputs.joined.shape[1]
    heads = Heads(
        np.zeros((count, width)),
        np.zeros((count, width)),
        np.zeros(count),
        np.zeros(count),
        np.zeros(count, dtype=np.bool_),
    )
    scores = [float("nan")] * count
    for place, column in enumerate(labels.T):
        rated = np.flatnonzero(~np.isnan(column))
        yes = column[rated] == 1
        if min(yes.sum(), (~yes).sum()) < FEWEST or len(set(together[rated])) < 2:
            continue
        rows = [view.some(rated) for view in views]
        held_back, truth = _held_back_logits(rows, yes, together[rated])
        shares = _shares(held_back, truth)
        logits = shares @ held_back
        threshold = best_threshold(logits, truth)[0] / 2
        scores[place] = f1(logits > threshold, truth)
        three = _fit_three(rows, yes)
        words, answer, sentence = (head.weight @ s.back for head, s in zip(three, spans, strict=True))
        counts = shares * [head.scale for head in three]
        heads.weight[place] = counts[1] * answer
        heads.weight[place, width - len(words) :] += counts[0] * words
        heads.sentence_weight[place], heads.sentence_share[place] = sentence, counts[2]
        heads.bias[place] = counts @ [head.bias for head in three] - threshold
        heads.trained[place] = True
    if not heads.trained.any():
        raise DataError(
            f"exchanges: no proposition is true of {FEWEST} answers and false of {FEWEST}, to two prompts at"
            " least; expected one"
        )
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


def _fit_three(rows: Sequence[Parts], yes: Bools) -> list[Head]:
    """A head on each view of the rows, scaled so that their log-odds vary alike."""
    heads = [fit_head(view, yes, _STRENGTH) for view in rows]
    spreads = np.array([head(view).std() for head, view in zip(heads, rows, strict=True)])
    usual = spreads.mean()
    says = spreads > _CONSTANT * usual  # a view that is the same everywhere has no say
    scales = np.divide(usual, spreads, out=np.zeros_like(spreads), where=says)
    return [head._replace(scale=scale) for head, scale in zip(heads, scales.tolist(), strict=True)]


def _held_back_logits(rows: Sequence[Parts], yes: Bools, groups: Places) -> tuple[Floats, Bools]:
    """Log-odds of each row by three heads that did not learn from its prompt, [3, draws * N]; and the truth.

    Folds are drawn several times: where a yes is rare, one draw says little of where it should begin.
    """
    logits = np.zeros((len(rows), _DRAWS, len(yes)))
    count = min(_FOLDS, len(set(groups)))
    for draw in range(_DRAWS):
        folds = StratifiedGroupKFold(count, shuffle=True, random_state=draw)
        for train, test in folds.split(yes, yes, groups):
            if yes[train].any() and not yes[train].all():
                three = _fit_three([view.some(train) for view in rows], yes[train])
                logits[:, draw, test] = [
                    head(view.some(test)) for head, view in zip(three, rows, strict=True)
                ]
    return logits.reshape(len(rows), -1), np.tile(yes, _DRAWS)


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


class TrainedGrader:
    """A `rules.Grader` of trained heads."""

    def __init__(self, features: Features, reader: Reader, heads: Heads) -> None:
        """Put the heads behind what they read."""
        self.features, self.reader, self.heads = features, reader, heads

    def __call__(self, exchanges: Sequence[Exchange]) -> Grades:
        """Return the grades of each answer, [N, P]; 0 of a proposition without a trained head."""
        found = [np.zeros((0, len(self.heads.trained)))]
        for start in range(0, len(exchanges), _AT_ONCE):
            some = exchanges[start : start + _AT_ONCE]
            found.append(self.heads(self.reader(self.features(some), [e.response for e in some])))
        return np.concatenate(found)

    def save(self, folder: Path) -> None:
        """Write heads and words; the model stands in the card."""
        heads, reader = self.heads, self.reader
        terms = "\n".join(reader.words.get_feature_names_out()).encode()
        tensors = {
            "weight": torch.tensor(heads.weight, dtype=torch.float32),
            "sentence_weight": torch.tensor(heads.sentence_weight, dtype=torch.float32),
            "sentence_share": torch.tensor(heads.sentence_share),
            "bias": torch.tensor(heads.bias),
            "trained": torch.tensor(heads.trained),
            "scale.answers": torch.tensor(np.stack(reader.answers)),
            "scale.sentences": torch.tensor(np.stack(reader.sentences)),
            "words.idf": torch.tensor(reader.words.idf_),
            "words.terms": torch.tensor(list(terms), dtype=torch.uint8),
        }
        save_tensors(folder / _FILE, tensors)


def load_grader(folder: Path, backbone: Backbone, layers: int, propositions: int) -> TrainedGrader:
    """Load what `TrainedGrader.save` wrote; what does not fit raises ModelError."""
    path = folder / _FILE
    tensors = load_tensors(path)
    if "scale.mean" in tensors:
        raise ModelError(f"{path}: graders of an earlier version; expected them to be trained again")
    require_all(tensors, _TENSORS, str(path))
    terms = bytes(tensors["words.terms"].tolist()).decode("utf-8", "replace").split("\n")
    words = tfidf(vocabulary=terms)
    features = Features(backbone, layers)
    expected = [propositions, features.width + len(terms)]
    for name in ("weight", "sentence_weight"):
        shape = list(tensors[name].shape)
        if shape != expected or tensors["words.idf"].numel() != len(terms):
            raise ModelError(f"{path}: tensor {name!r} has shape {shape}, expected {expected}")
    words.idf_ = tensors["words.idf"].double().numpy()
    answers, parts = (Scale(*tensors[name].numpy()) for name in ("scale.answers", "scale.sentences"))
    weight, sentence_weight, share, bias = (tensors[name].double().numpy() for name in _TENSORS[:4])
    heads = Heads(weight, sentence_weight, share, bias, tensors["trained"].numpy())
    return TrainedGrader(features, Reader(answers, parts, words), heads)
