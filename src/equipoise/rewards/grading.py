"""Graders that were trained: one linear head per proposition, on a frozen model's features and on words.

Some propositions are a matter of wording ("I'm sorry"), which a mean over tokens blurs; others of meaning,
which counts of words miss. So a head reads both: the pooled features of `models/features.py` and TF-IDF of
the answer's words and word pairs. What each counts for, how strongly a head is held back, and where its yes
begins, come from cross-validation in which the answers to one prompt stay together.

Shapes: N answers, P propositions, F features, W words.
"""

import math
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedGroupKFold

from equipoise.errors import DataError, ModelError
from equipoise.models.backbone import Backbone
from equipoise.models.checkpoints import load_tensors, require_all, save_tensors
from equipoise.models.features import PooledFeatures, TextPair, embed, encode_pair
from equipoise.records import Exchange, text_of
from equipoise.rewards.rules import Grades
from equipoise.stats import f1

Floats = NDArray[np.float64]

FEWEST = 8
"""Answers of which a proposition must be true, and false, for a head to be trained."""

_FOLDS = 4
_STRENGTHS = (3.0, 30.0)
"""Inverse weights of the squared weights."""
_SHARES = (0.0, 0.3, 1.0)
"""What the features count for beside the words."""
_NEARLY = 0.98
_FILE = "weights.safetensors"
_TENSORS = ("weight", "bias", "trained", "scale.mean", "scale.std", "words.idf", "words.terms")


class Inputs(NamedTuple):
    """What heads read of N answers."""

    features: Floats
    """[N, F]"""
    words: Floats
    """[N, W]"""

    def joined(self, share: float) -> Floats:
        """Both side by side, the features times `share`, [N, F + W]."""
        found: Floats = np.hstack([share * self.features, self.words])
        return found


class Heads(NamedTuple):
    """Linear heads; a head that was not trained says no."""

    weight: Floats
    """[P, F + W]"""
    bias: Floats
    """[P] at which a yes begins at log-odds of 0."""
    trained: NDArray[np.bool_]
    """[P]"""

    def __call__(self, inputs: Inputs) -> Grades:
        """Grades of N answers, [N, P]."""
        logits = inputs.joined(1.0) @ self.weight.T + self.bias
        found: Grades = np.where(self.trained, 1 / (1 + np.exp(-np.clip(logits, -50, 50))), 0.0)
        return found


def fit_heads(inputs: Inputs, labels: Floats, prompts: Sequence[Hashable]) -> tuple[Heads, list[float]]:
    """Train a head for every proposition that has labels enough.

    Args:
        inputs: Of N answers.
        labels: [N, P] 1 true, 0 false, NaN not labelled.
        prompts: Answers to the same one stay together.

    Returns:
        The heads, and the cross-validated F1 of each (NaN of those that were not trained).

    Raises:
        DataError: No proposition has labels enough.
    """
    number: dict[Hashable, int] = {}
    groups = np.array([number.setdefault(prompt, len(number)) for prompt in prompts])
    spans = [_span(inputs.joined(share)) for share in _SHARES]
    count, width = labels.shape[1], inputs.joined(1.0).shape[1]
    heads = Heads(np.zeros((count, width)), np.zeros(count), np.zeros(count, dtype=np.bool_))
    scores = [float("nan")] * count
    for place, column in enumerate(labels.T):
        rated = ~np.isnan(column)
        yes = column[rated] == 1
        if min(yes.sum(), (~yes).sum()) < FEWEST:
            continue
        tried = [
            _try_head(span.rows[rated], yes, groups[rated], strength)
            for span in spans
            for strength in _STRENGTHS
        ]
        best = max(range(len(tried)), key=lambda i: tried[i].ranking)
        which, strength = best // len(_STRENGTHS), _STRENGTHS[best % len(_STRENGTHS)]
        model = _logistic(strength).fit(spans[which].rows[rated], yes)
        weight = model.coef_[0] @ spans[which].back
        weight[: inputs.features.shape[1]] *= _SHARES[which]  # so that the inputs need no share
        heads.weight[place], heads.trained[place] = weight, True
        heads.bias[place] = float(model.intercept_[0]) - tried[best].threshold
        scores[place] = tried[best].f1
    if not heads.trained.any():
        raise DataError(
            f"exchanges: no proposition is true of {FEWEST} answers and false of {FEWEST}; expected one"
        )
    return heads, scores


class _Span(NamedTuple):
    """Coordinates of rows within their span, where L2-regularised weights lie: N of them, not F + W."""

    rows: Floats
    """[N, N or less]"""
    back: Floats
    """[N or less, F + W] turns weights of coordinates into weights of inputs."""


def _span(x: Floats) -> _Span:
    sizes, left = np.linalg.eigh(x @ x.T)
    kept = sizes > 1e-9 * sizes.max()
    return _Span(left[:, kept] * np.sqrt(sizes[kept]), (left[:, kept] / np.sqrt(sizes[kept])).T @ x)


class _Tried(NamedTuple):
    """What cross-validation says of a kind of head."""

    ranking: float
    """Average precision, by which heads are chosen: it depends on no threshold."""
    threshold: float
    f1: float


def _try_head(rows: Floats, yes: NDArray[np.bool_], groups: NDArray[np.intp], strength: float) -> _Tried:
    logits = np.zeros(len(rows))
    for train, test in StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0).split(rows, yes, groups):
        if yes[train].any() and not yes[train].all():
            logits[test] = _logistic(strength).fit(rows[train], yes[train]).decision_function(rows[test])
    return _Tried(float(average_precision_score(yes, logits)), *best_threshold(logits, yes))


def _logistic(strength: float) -> Any:
    return LogisticRegression(C=strength, max_iter=2000, class_weight="balanced")


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


class Scale(NamedTuple):
    """What features are measured by: a scaled row has a length of about 1, as one of words has."""

    mean: Floats
    """[F]"""
    std: Floats
    """[F]"""

    def __call__(self, features: torch.Tensor) -> Floats:
        """Scaled features of answers, [N, F]."""
        found: Floats = (features.double().numpy() - self.mean) / (self.std * math.sqrt(len(self.std)))
        return found


def scale_of(features: torch.Tensor) -> Scale:
    """Return the scale of training features [N, F]; one that is the same everywhere counts for nothing."""
    plain = features.double().numpy()
    std = plain.std(axis=0)
    return Scale(plain.mean(axis=0), np.where(std > 0, std, np.inf))


class Reader(NamedTuple):
    """What the heads read of an answer: scaled features of a frozen model, then TF-IDF of words."""

    scale: Scale
    words: TfidfVectorizer

    def __call__(self, features: torch.Tensor, answers: Sequence[str]) -> Inputs:
        """Scale the features [N, F] of answers, and weigh their words."""
        return Inputs(self.scale(features), self.words.transform(answers).toarray())


def fit_reader(features: torch.Tensor, answers: Sequence[str]) -> Reader:
    """Take scale and word weights from training answers; no word in two of them raises DataError."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_features=20_000)
    try:
        words.fit(answers)
    except ValueError as exc:
        raise DataError("exchanges: no word stands in two answers; expected more of them") from exc
    return Reader(scale_of(features), words)


class Features:
    """Pooled features of answers by a frozen model, each read in its context.

    Of prompts there is none: they differ from one use to the next far more than answers do, and heads that
    were trained on one kind of prompt grade answers to another kind worse.
    """

    def __init__(self, backbone: Backbone, layers: int) -> None:
        """Pool `layers` layers of the model, as `models.features` does."""
        self.trunk = PooledFeatures(backbone.model, layers).eval()
        self.tokenizer: Any = backbone.tokenizer
        self.width = self.trunk.width // 2
        """Number of features F."""

    def __call__(self, exchanges: Sequence[Exchange]) -> torch.Tensor:
        """Return the features of each answer, [N, F]."""
        pairs = [encode_pair(self.tokenizer, TextPair(text_of(e.prompt), e.response)) for e in exchanges]
        return embed(self.trunk, pairs, label="grading")[:, self.width :]


class TrainedGrader:
    """A `rules.Grader` of trained heads."""

    def __init__(self, features: Features, reader: Reader, heads: Heads) -> None:
        """Put the heads behind what they read."""
        self.features, self.reader, self.heads = features, reader, heads

    def __call__(self, exchanges: Sequence[Exchange]) -> Grades:
        """Return the grades of each answer, [N, P]; 0 of a proposition without a trained head."""
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
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, vocabulary=terms)
    features = Features(backbone, layers)
    expected = [propositions, features.width + len(terms)]
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
