"""What trained graders read of an answer: features of a frozen model, and TF-IDF of its words.

Some propositions are a matter of wording ("I'm sorry"), which a mean over tokens blurs; others of meaning,
which counts of words miss; others of one sentence among many. So there are words and word pairs, the pooled
features of `models/features.py`, both of the whole answer and of each of its sentences.

Shapes: N answers, S sentences of them, F features of a text, W words.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from equipoise.errors import DataError
from equipoise.models.backbone import Backbone
from equipoise.models.features import PooledFeatures, TextPair, embed, encode_pair
from equipoise.records import Exchange
from equipoise.rewards.summed_odds import Floats, Parts, Places, whole

_ENDS = re.compile(r"(?<=[.!?])\s+(?=[^a-z\s])|\n+")


class AnswerFeatures(NamedTuple):
    """What a frozen model makes of N answers."""

    answers: torch.Tensor
    """[N, F]"""
    sentences: torch.Tensor
    """[S, F]"""
    of: torch.Tensor
    """[S] which answer each is a sentence of, ascending."""

    def some(self, answers: Sequence[int] | Places) -> "AnswerFeatures":
        """Return those of the answers at these places."""
        parts = Parts(self.sentences.numpy(), self.of.numpy()).some(answers)
        chosen = self.answers[torch.as_tensor(np.asarray(answers))]
        return AnswerFeatures(chosen, torch.from_numpy(parts.rows), torch.from_numpy(parts.of))


class Inputs(NamedTuple):
    """What heads read of N answers."""

    features: Floats
    """[N, F] of whole answers."""
    words: Floats
    """[N, W] of whole answers."""
    sentences: Parts
    """Features and words of each sentence, [S, F + W]."""

    @property
    def joined(self) -> Floats:
        """Features and words of whole answers side by side, [N, F + W]."""
        found: Floats = np.hstack([self.features, self.words])
        return found

    @property
    def views(self) -> list[Parts]:
        """What each of three heads reads: words alone, all of the whole answer, all of each sentence."""
        return [whole(self.words), whole(self.joined), self.sentences]

    def some(self, answers: Sequence[int] | Places) -> "Inputs":
        """Return what is read of the answers at these places."""
        places = np.asarray(answers)
        return Inputs(self.features[places], self.words[places], self.sentences.some(places))


class Scale(NamedTuple):
    """What features are measured by: a scaled row is about 1 long, as a row of words is."""

    mean: Floats
    """[F]"""
    std: Floats
    """[F]"""

    def __call__(self, features: torch.Tensor) -> Floats:
        """Scaled features of texts, [N, F]."""
        found: Floats = (features.double().numpy() - self.mean) / (self.std * math.sqrt(len(self.std)))
        return found


def scale_of(features: torch.Tensor) -> Scale:
    """Return the scale of training features [N, F]; one that is the same everywhere counts for nothing."""
    plain = features.double().numpy()
    std = plain.std(axis=0)
    return Scale(plain.mean(axis=0), np.where(std > 0, std, np.inf))


class Reader(NamedTuple):
    """What the heads read of an answer: scaled features of a frozen model, then TF-IDF of words."""

    answers: Scale
    sentences: Scale
    words: TfidfVectorizer

    def __call__(self, features: AnswerFeatures, answers: Sequence[str]) -> Inputs:
        """Scale the features of answers and sentences, and weigh their words."""
        parts = [sentences(answer) for answer in answers]
        of = np.repeat(np.arange(len(parts)), [len(found) for found in parts])
        said = self.words.transform([text for found in parts for text in found]).toarray()
        rows = np.hstack([self.sentences(features.sentences), said])
        return Inputs(
            self.answers(features.answers), self.words.transform(answers).toarray(), Parts(rows, of)
        )


def tfidf(**settings: Any) -> TfidfVectorizer:
    """TF-IDF of words and word pairs."""
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, **settings)


def fit_reader(features: AnswerFeatures, answers: Sequence[str]) -> Reader:
    """Take scales and word weights from training answers; no word in two of them raises DataError."""
    words = tfidf(min_df=2, max_features=20_000)
    try:
        words.fit(answers)
    except ValueError as exc:
        raise DataError("exchanges: no word stands in two answers; expected more of them") from exc
    return Reader(scale_of(features.answers), scale_of(features.sentences), words)


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
