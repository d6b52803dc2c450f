"""A grader of trained heads: what it reads, its heads, and the file both are kept in.

Shapes: N answers, P propositions; see `answer_features` for the rest.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from equipoise.errors import ModelError
from equipoise.models.backbone import Backbone
from equipoise.models.checkpoints import load_tensors, require_all, save_tensors
from equipoise.records import Exchange
from equipoise.rewards.answer_features import Features, Projection, Reader, tfidf
from equipoise.rewards.grading import Heads
from equipoise.rewards.rules import Grades

_FILE = "weights.safetensors"
TENSORS = (
    *("weight", "sentence_weight", "sentence_share", "bias"),
    *("answers.mean", "answers.directions", "sentences.mean", "sentences.directions"),
    *("trained", "words.idf", "words.terms"),
)
"""What a file of heads holds."""
_AT_ONCE = 2048
"""Answers whose sentences are in memory at once."""


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
            **{f"answers.{name}": torch.tensor(part) for name, part in reader.answers._asdict().items()},
            **{f"sentences.{name}": torch.tensor(part) for name, part in reader.sentences._asdict().items()},
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
    require_all(tensors, TENSORS, str(path))
    features = Features(backbone, layers)
    terms = _terms(tensors["words.terms"], path)
    kept = {of: tensors[f"{of}.directions"].shape[-1:].numel() for of in ("answers", "sentences")}
    expected = {
        "weight": [propositions, kept["answers"] + len(terms)],
        "sentence_weight": [propositions, kept["sentences"] + len(terms)],
        **{name: [propositions] for name in ("sentence_share", "bias", "trained")},
        **{f"{of}.mean": [features.width] for of in kept},
        **{f"{of}.directions": [features.width, count] for of, count in kept.items()},
        "words.idf": [len(terms)],
    }
    for name, shape in expected.items():
        if list(tensors[name].shape) != shape:
            raise ModelError(
                f"{path}: tensor {name!r} has shape {list(tensors[name].shape)}, expected {shape}"
            )
    given = {name: tensors[name].double().numpy() for name in expected}
    words = tfidf(vocabulary=terms)
    words.idf_ = given["words.idf"]
    answers, parts = (Projection(given[f"{of}.mean"], given[f"{of}.directions"]) for of in kept)
    heads = Heads(
        given["weight"],
        given["sentence_weight"],
        given["sentence_share"],
        given["bias"],
        given["trained"] != 0,
    )
    return TrainedGrader(features, Reader(answers, parts, words), heads)


def _terms(found: torch.Tensor, path: Path) -> list[str]:
    """Read the words that are counted, in the order of their columns."""
    if found.dtype != torch.uint8 or found.dim() != 1:
        raise ModelError(f"{path}: tensor 'words.terms' is no text; expected bytes, a word to a line")
    terms = bytes(found.tolist()).decode("utf-8", "replace").split("\n")
    if len(set(terms)) < len(terms):
        raise ModelError(f"{path}: tensor 'words.terms' has a word twice; expected each once")
    return terms
