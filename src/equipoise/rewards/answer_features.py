"""What trained graders read of an answer: features of a frozen model, and TF-IDF of its words.

Some propositions are a matter of wording ("I'm sorry"), which a mean over tokens blurs; others of meaning,
which counts of words miss; others of one sentence among many. So there are words and word pairs, the pooled
features of `models/features.py` of the whole answer, and the largest of each feature among its sentences.

Shapes: N answers, F features of a text, W words.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from equipoise.errors import DataError
from equipoise.models.backbone import Backbone
from equipoise.models.features import PooledFeatures, TextPair, embed, encode_pair
from equipoise.records import Exchange

Floats = NDArray[np.float64]

_ENDS = re.compile(r"(?<=[.!?])\s+(?=[^a-z\s])|\n+")


class Inputs(NamedTuple):
    """What heads read of N answers."""

    features: Floats
    """[N, 2 F] of whole answers, and the largest among their sentences."""
    words: Floats
    """[N, W]"""

    @property
    def joined(self) -> Floats:
        """All side by side, [N, 2 F + W]."""
        found: Floats = np.hstack([self.features, self.words])
        return found

    @property
    def views(self) -> list[NDArray[np.intp]]:
        """The columns of `joined` that each head of three reads."""
        width = self.features.shape[1]
        whole, largest, words = np.split(np.arange(width + self.words.shape[1]), [width // 2, width])
        return [words, np.concatenate([whole, words]), np.concatenate([largest, words])]


class Scale(NamedTuple):
    """What features are measured by: each half of a scaled row is about 1 long, as a row of words is."""

    mean: Floats
    """[2 F]"""
    std: Floats
    """[2 F]"""

    def __call__(self, features: torch.Tensor) -> Floats:
        """Scaled features of answers, [N, 2 F]."""
        found: Floats = (features.double().numpy() - self.mean) / (self.std * math.sqrt(len(self.std) / 2))
        return found


def scale_of(features: torch.Tensor) -> Scale:
    """Return the scale of training features [N, 2 F]; one that is the same everywhere counts for nothing."""
    plain = features.double().numpy()
    std = plain.std(axis=0)
    return Scale(plain.mean(axis=0), np.where(std > 0, std, np.inf))


class Reader(NamedTuple):
    """What the heads read of an answer: scaled features of a frozen model, then TF-IDF of words."""

    scale: Scale
    words: TfidfVectorizer

    def __call__(self, features: torch.Tensor, answers: Sequence[str]) -> Inputs:
        """Scale the features [N, 2 F] of answers, and weigh their words."""
        return Inputs(self.scale(features), self.words.transform(answers).toarray())


def tfidf(**settings: Any) -> TfidfVectorizer:
    """TF-IDF of words and word pairs."""
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, **settings)


def fit_reader(features: torch.Tensor, answers: Sequence[str]) -> Reader:
    """Take scale and word weights from training answers; no word in two of them raises DataError."""
    words = tfidf(min_df=2, max_features=20_000)
    try:
        words.fit(answers)
    except ValueError as exc:
        raise DataError("exchanges: no word stands in two answers; expected more of them") from exc
    return Reader(scale_of(features), words)


class Features:
    """Pooled features of answers by a frozen model: of each as a whole, and the largest among its sentences.

    Of a text the model reads the first `MAX_TOKENS` tokens. The prompt is not read: prompts differ from one
    use to the next far more than answers do, and a frozen encoder that reads an answer behind its prompt says
    more of what both are about than of how it is said.
    """

    def __init__(self, backbone: Backbone, layers: int) -> None:
        """Pool `layers` layers of the model, as `models.features` does."""
        self.trunk = PooledFeatures(backbone.model, layers).eval()
        self.tokenizer: Any = backbone.tokenizer
        self.width = self.trunk.width
        """Number of features 2 F."""

    def __call__(self, exchanges: Sequence[Exchange]) -> torch.Tensor:
        """Return the features of each answer, [N, 2 F]."""
        if not exchanges:
            return torch.zeros(0, self.width)
        parts = [[e.response, *sentences(e.response)] for e in exchanges]
        place: dict[str, int] = {}  # many sentences stand in several answers
        rows = [[place.setdefault(text, len(place)) for text in texts] for texts in parts]
        pairs = [encode_pair(self.tokenizer, TextPair("", text)) for text in place]
        found = embed(self.trunk, pairs, label="grading")[:, self.trunk.width // 2 :]
        return torch.stack([torch.cat([found[whole], found[rest].amax(0)]) for whole, *rest in rows])


def sentences(answer: str) -> list[str]:
    """Split an answer where a sentence or a line ends; single words are left out.

    >>> sentences("Sorry. I can't help with that, e.g. today!\\nAsk me another?")
    ["I can't help with that, e.g. today!", 'Ask me another?']
    """
    found = [part.strip() for part in _ENDS.split(answer)]
    return [part for part in found if len(part.split()) > 1] or [answer]
