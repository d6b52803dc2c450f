"""Graders that were trained: one linear head per proposition, on a frozen model's features and on words.

A head is the mean of three: on the answer's words alone, with features of the whole answer, and with those
of its sentences; see `answer_features`. What each of the three counts for, and where a yes begins, come from
cross-validation in which the answers to one prompt, and equal answers, stay together. A yes begins half-way
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
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from equipoise.data.splits import normalise_prompt
from equipoise.errors import DataError, ModelError
from equipoise.models.backbone import Backbone
from equipoise.models.checkpoints import load_tensors, require_all, save_tensors
from equipoise.records import Exchange, text_of
from equipoise.rewards.answer_features import Features, Floats, Inputs, Reader, Scale, tfidf
from equipoise.rewards.rules import Grades
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
_TENSORS = ("weight", "bias", "trained", "scale.mean", "scale.std", "words.idf", "words.terms")


class Heads(NamedTuple):
    """Linear heads; a head that was not trained says no."""

    weight: Floats
    """[P, 2 F + W]"""
    bias: Floats
    """[P] at which a yes begins at log-odds of 0."""
    trained: NDArray[np.bool_]
    """[P]"""

    def __call__(self, inputs: Inputs) -> Grades:
        """Grades of N answers, [N, P]."""
        logits = inputs.joined @ self.weight.T + self.bias
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
    joined, views = inputs.joined, inputs.views
    spans = [_span(joined[:, columns]) for columns in views]
    count = labels.shape[1]
    heads = Heads(np.zeros((count, joined.shape[1])), np.zeros(count), np.zeros(count, dtype=np.bool_))
    scores = [float("nan")] * count
    for place, column in enumerate(labels.T):
        rated = ~np.isnan(column)
        yes = column[rated] == 1
        rows = [span.rows[rated] for span in spans]
        if min(yes.sum(), (~yes).sum()) < FEWEST or len(set(together[rated])) < 2:
            continue
        held_back, truth = _held_back_logits(rows, yes, together[rated])
        shares = _shares(held_back, truth)
        logits = shares @ held_back
        threshold = best_threshold(logits, truth)[0] / 2
        scores[place] = f1(logits > threshold, truth)
        for share, head, span, columns in zip(shares, _fit_three(rows, yes), spans, views, strict=True):
            heads.weight[place, columns] += share * head.weight @ span.back
            heads.bias[place] += share * head.bias
        heads.bias[place] -= threshold
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


class _Span(NamedTuple):
    """Coordinates of rows within their span, where L2-regularised weights lie: N of them, not 2 F + W."""

    rows: Floats
    """[N, N or less]"""
    back: Floats
    """[N or less, columns] turns weights of coordinates into weights of inputs."""


def _span(x: Floats) -> _Span:
    sizes, left = np.linalg.eigh(x @ x.T)
    kept = sizes > 1e-9 * sizes.max()
    if not kept.any():  # nothing but zeros
        return _Span(np.zeros((len(x), 1)), np.zeros((1, x.shape[1])))
    return _Span(left[:, kept] * np.sqrt(sizes[kept]), (left[:, kept] / np.sqrt(sizes[kept])).T @ x)


class _Head(NamedTuple):
    weight: Floats
    bias: float

    def __call__(self, rows: Floats) -> Floats:
        found: Floats = rows @ self.weight + self.bias
        return found


def _fit_three(rows: Sequence[Floats], yes: NDArray[np.bool_]) -> list[_Head]:
    """A head on each view of the rows, scaled so that their log-odds vary alike."""
    heads = []
    for view in rows:
        model = LogisticRegression(C=_STRENGTH, max_iter=2000, class_weight="balanced").fit(view, yes)
        heads.append(_Head(model.coef_[0], float(model.intercept_[0])))
    spreads = np.array([head(view).std() for head, view in zip(heads, rows, strict=True)])
    usual = spreads.mean()
    says = spreads > _CONSTANT * usual  # a view that is the same everywhere has no say
    factors = np.divide(usual, spreads, out=np.zeros_like(spreads), where=says)
    return [_Head(h.weight * f, h.bias * f) for h, f in zip(heads, factors.tolist(), strict=True)]


def _held_back_logits(
    rows: Sequence[Floats], yes: NDArray[np.bool_], groups: NDArray[np.intp]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Log-odds of each row by three heads that did not learn from its prompt, [3, draws * N]; and the truth.

    Folds are drawn several times: where a yes is rare, one draw says little of where it should begin.
    """
    logits = np.zeros((len(rows), _DRAWS, len(yes)))
    count = min(_FOLDS, len(set(groups)))
    for draw in range(_DRAWS):
        folds = StratifiedGroupKFold(count, shuffle=True, random_state=draw)
        for train, test in folds.split(rows[0], yes, groups):
            if yes[train].any() and not yes[train].all():
                three = _fit_three([view[train] for view in rows], yes[train])
                logits[:, draw, test] = [head(view[test]) for head, view in zip(three, rows, strict=True)]
    return logits.reshape(len(rows), -1), np.tile(yes, _DRAWS)


def _shares(logits: Floats, yes: NDArray[np.bool_]) -> Floats:
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


def best_threshold(scores: Floats, yes: NDArray[np.bool_]) -> tuple[float, float]:
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
        if not exchanges:
            return np.zeros((0, len(self.heads.trained)))
        return self.heads(self.reader(self.features(exchanges), [e.response for e in exchanges]))

    def save(self, folder: Path) -> None:
        """Write heads and words; the model stands in the card."""
        terms = "\n".join(self.reader.words.get_feature_names_out()).encode()
        tensors = {
            "weight": torch.tensor(self.heads.weight, dtype=torch.float32),
            "bias": torch.tensor(self.heads.bias),
            "trained": torch.tensor(self.heads.trained),
            "scale.mean": torch.tensor(self.reader.scale.mean),
            "scale.std": torch.tensor(self.reader.scale.std),
            "words.idf": torch.tensor(self.reader.words.idf_),
            "words.terms": torch.tensor(list(terms), dtype=torch.uint8),
        }
        save_tensors(folder / _FILE, tensors)


def load_grader(folder: Path, backbone: Backbone, layers: int, propositions: int) -> TrainedGrader:
    """Load what `TrainedGrader.save` wrote; what does not fit raises ModelError."""
    path = folder / _FILE
    tensors = load_tensors(path)
    require_all(tensors, _TENSORS, str(path))
    terms = bytes(tensors["words.terms"].tolist()).decode("utf-8", "replace").split("\n")
    words = tfidf(vocabulary=terms)
    features = Features(backbone, layers)
    expected = [propositions, features.width + len(terms)]
    if list(tensors["weight"].shape) == [propositions, features.width // 2 + len(terms)]:
        raise ModelError(f"{path}: graders of an earlier version; expected them to be trained again")
    if list(tensors["weight"].shape) != expected or tensors["words.idf"].numel() != len(terms):
        raise ModelError(
            f"{path}: tensor 'weight' has shape {list(tensors['weight'].shape)}, expected {expected}"
        )
    words.idf_ = tensors["words.idf"].double().numpy()
    heads = Heads(*(tensors[name].numpy() for name in ("weight", "bias", "trained")))
    scale = Scale(tensors["scale.mean"].numpy(), tensors["scale.std"].numpy())
    return TrainedGrader(
        features, Reader(scale, words), heads._replace(weight=heads.weight.astype(np.float64))
    )
