"""What trained graders read of an answer: features of a frozen model, and TF-IDF of its words.

Some propositions are a matter of wording ("I'm sorry"), which a mean over tokens blurs; others of meaning,
which counts of words miss; others of one sentence among many. So there are words and word pairs, the pooled
features of `models/features.py`, both of the whole answer and of each of its sentences.

Shapes: N answers, S sentences of them, F features of a text, of which a projection leaves K of an answer and
L of a sentence, W words.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer

from equipoise.errors import DataError
from equipoise.models.backbone import Backbone
from equipoise.models.features import PooledFeatures, TextPair, embed, encode_pair
from equipoise.records import Exchange
from equipoise.rewards.summed_odds import Columns, Parts, parts_of
from equipoise.stats import Floats, Indices

_COMPONENTS = 256
_ENDS = re.compile(r"(?<=[.!?])\s+(?=[^a-z\s])|\n+")


class AnswerFeatures(NamedTuple):
    """What a frozen model makes of N answers."""

    answers: torch.Tensor
    """[N, F]"""
    sentences: torch.Tensor
    """[S, F]"""
    of: torch.Tensor
    """[S] which answer each is a sentence of, ascending."""

    def some(self, answers: Sequence[int] | Indices) -> "AnswerFeatures":
        """Return those of the answers at these places."""
        rows, of = map(torch.from_numpy, parts_of(self.of.numpy(), answers))
        return AnswerFeatures(self.answers[torch.as_tensor(np.asarray(answers))], self.sentences[rows], of)


class Inputs(NamedTuple):
    """What heads read of N answers."""

    answers: Columns
    """Projected features and words of whole answers, [N, K + W]."""
    sentences: Parts
    """The same of each sentence, [S, L + W]."""

    @property
    def views(self) -> list[Parts]:
        """What each of three heads reads: words alone, all of the whole answer, all of each sentence."""
        each = np.arange(len(self.answers.dense))
        return [Parts(self.answers.words, each), Parts(self.answers, each), self.sentences]

    def some(self, answers: Sequence[int] | Indices) -> "Inputs":
        """Return what is read of the answers at these places."""
        return Inputs(self.answers.some(np.asarray(answers)), self.sentences.some(answers))


class Projection(NamedTuple):
    """The main directions of features; a projected row is about 1 long, as a row of words is."""

    mean: Floats
    """[F]"""
    directions: Floats
    """[F, K]"""

    def __call__(self, features: torch.Tensor) -> Floats:
        """Project features of texts, [N, F] in, [N, K] out."""
        found: Floats = (features.double().numpy() - self.mean) @ self.directions
        return found


def fit_projection(features: torch.Tensor) -> Projection:
    """Project on the principal components of standardised training features [N, F].

    They are 256 at most, and no more than there are rows. Along the others texts differ little.
    """
    rows = features.double().numpy()  # a copy, worked on in place: sentences are many
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    scale = np.where(std > 0, std, np.inf) * math.sqrt(rows.shape[1])
    if not std.any():
        return Projection(mean, np.zeros((rows.shape[1], 1)))
    rows -= mean
    rows /= scale
    count = min(_COMPONENTS, *rows.shape)
    components = PCA(count, copy=False, random_state=0).fit(rows).components_
    return Projection(mean, components.T / scale[:, None])


class Reader(NamedTuple):
    """What the heads read of an answer: projected features of a frozen model, then TF-IDF of words."""

    answers: Projection
    sentences: Projection
    words: TfidfVectorizer

    def __call__(self, features: AnswerFeatures, answers: Sequence[str]) -> Inputs:
        """Project the features of answers and sentences, and weigh their words."""
        parts = [text for answer in answers for text in sentences(answer)]
        of_answers, of_parts = (csr_array(self.words.transform(texts)) for texts in (answers, parts))
        rows = Columns(self.sentences(features.sentences), of_parts)
        return Inputs(Columns(self.answers(features.answers), of_answers), Parts(rows, features.of.numpy()))


def tfidf(**settings: Any) -> TfidfVectorizer:
    """TF-IDF of words and word pairs."""
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, **settings)


def fit_reader(features: AnswerFeatures, answers: Sequence[str]) -> Reader:
    """Take projections and word weights from training answers; no word in two of them raises DataError."""
    words = tfidf(min_df=2, max_features=20_000)
    try:
        words.fit(answers)
    except ValueError as exc:
        raise DataError("exchanges: no word stands in two answers; expected more of them") from exc
    return Reader(fit_projection(features.answers), fit_projection(features.sentences), words)


class Features:
    """Pooled features of answers and of their sentences, by a frozen model.

    Of a text the model reads the first `MAX_TOKENS` tokens. The prompt is not read: prompts differ from one
    use to the next far more than answers do, and a frozen encoder that reads an answer behind its prompt says
    more of what both are about than of how it is said.
    """

    def __init__(self, backbone: Backbone, layers: int) -> None:
        """Pool `layers` layers of the model, as `models.features` does."""
        self.trunk = PooledFeatures(backbone.model, layers).eval()
        self.tokenizer: Any = backbone.tokenizer
        self.width = self.trunk.width // 2
        """Number of features F."""

    def __call__(self, exchanges: Sequence[Exchange]) -> AnswerFeatures:
        """Return the features of answers, of one at least, and of each of their sentences."""
        parts = [[e.response, *sentences(e.response)] for e in exchanges]
        place: dict[str, int] = {}  # many sentences stand in several answers
        rows = [[place.setdefault(text, len(place)) for text in texts] for texts in parts]
        pairs = [encode_pair(self.tokenizer, TextPair("", text)) for text in place]
        found = embed(self.trunk, pairs, label="grading")[:, self.width :]
        of = torch.repeat_interleave(torch.tensor([len(row) - 1 for row in rows]))
        return AnswerFeatures(
            found[[row[0] for row in rows]], found[[k for row in rows for k in row[1:]]], of
        )


def sentences(answer: str) -> list[str]:
    """Split an answer where a sentence or a line ends; single words are left out.

    >>> sentences("Sorry. I can't help with that, e.g. today!\\nAsk me another?")
    ["I can't help with that, e.g. today!", 'Ask me another?']
    """
    found = [part.strip() for part in _ENDS.split(answer)]
    return [part for part in found if len(part.split()) > 1] or [answer]
