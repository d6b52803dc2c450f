"""The runs behind `scorer_folds.py`: features of all answers once, and the scores of one fold.

A fold's scorer is trained by `training.scorer.train_scorer`; only where it would compute the features of a
frozen trunk it is given those that are there.

Shapes: N pairs of a fold, U windows that differ, F features.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from equipoise.config import Config, InputPath, ModelRef, parse_config
from equipoise.data.io import read_records
from equipoise.evaluation.baseline import safer_scores, unsafe_scores
from equipoise.lineage import Run, Step, write_text
from equipoise.models.checkpoints import load_tensors, save_tensors
from equipoise.models.features import PairIds, PooledFeatures, TextPair, embed, encode_pair
from equipoise.models.scorer import load_scorer_model, load_trunk
from equipoise.records import Exchange, Pair, text_of
from equipoise.rewards.learned import load_scorer
from equipoise.stats import Floats
from equipoise.training.scorer import Embedder, ScorerConfig, train_scorer

FILE = "features.safetensors"


class Scores(NamedTuple):
    """Of both answers of each pair, higher is worse; [N, 2] each."""

    order: Floats
    """To compare the two answers of a pair."""
    sign: Floats
    """To compare answers to any prompts; NaN where nothing learned to."""


class FeaturesConfig(Config):
    """Settings of the features."""

    pairs: InputPath
    exchanges: InputPath | None = None
    backbone: ModelRef
    depth: int | None = None
    layers: int = 6
    dtype: str = "auto"


def compute_features(config: FeaturesConfig, run: Run) -> None:
    """Write the features of every answer, each text once, with what they are found by."""
    pairs = list(read_records(config.pairs, Pair))
    answers = [*answers_of(pairs), *single(config.exchanges)]
    run.licences |= {answer.licence for answer in answers}
    backbone = load_trunk("pooled", config.backbone, depth=config.depth, dtype=config.dtype)
    windows = {key(window): window for window in encoded(backbone.tokenizer, answers)}
    features = embed(PooledFeatures(backbone.model, config.layers), list(windows.values()))
    save_tensors(run.out / FILE, {"keys": torch.tensor(list(windows)), "features": features})
    run.notes |= {"answers": len(answers), "texts": len(windows)}


def single(path: Path | None) -> list[Exchange]:
    """Single answers of a file; none without one."""
    return [] if path is None else list(read_records(path, Exchange))


def encoded(tokenizer: Any, answers: Sequence[Exchange]) -> list[PairIds]:
    """Answers as `train scorer` reads them."""
    return [encode_pair(tokenizer, TextPair(text_of(a.prompt), a.response)) for a in answers]


def key(window: PairIds) -> int:
    """A number of 63 bits that stands for a window."""
    told = json.dumps([window.ids, window.parts]).encode()
    return int.from_bytes(hashlib.sha256(told).digest()[:8], "big") >> 1


def remembered(folder: Path) -> Embedder:
    """Return what gives the features that were computed into `folder`, whatever trunk it is asked with."""
    tensors = load_tensors(folder / FILE)
    place = {number: i for i, number in enumerate(tensors["keys"].tolist())}

    def find(_: PooledFeatures, windows: Sequence[PairIds]) -> Tensor:
        return tensors["features"][[place[key(window)] for window in windows]]

    return find


class FoldConfig(Config):
    """Settings of one fold."""

    train: InputPath
    test: InputPath
    beside: InputPath | None = None
    """Single answers to learn from too."""
    scorer: dict[str, Any] | None = None
    """Settings of `train scorer`; the baseline where None."""
    features: InputPath | None = None
    """Folder of `compute_features`."""


def score_fold(config: FoldConfig, run: Run) -> None:
    """Learn from one part, and write the scores of the other; a scorer lies with them."""
    test = list(read_records(config.test, Pair))
    if config.scorer is None:
        scores = baseline(list(read_records(config.train, Pair)), single(config.beside), test)
    else:
        embedder = embed if config.features is None else remembered(config.features)
        beside = {} if config.beside is None else {"exchanges": [str(config.beside)]}
        given = {"pairs": [str(config.train)], **beside, **config.scorer}
        train_scorer(parse_config(ScorerConfig, given, "scorer"), run, embedder)
        found = costs(run.out, test, None if config.features is None else embedder)
        scores = Scores(found, found)
    write_text(run.out / "scores.json", json.dumps([column.tolist() for column in scores]))


def read_scores(folder: Path) -> Scores:
    """Read what `score_fold` wrote."""
    order, sign = json.loads((folder / "scores.json").read_text("utf-8"))
    return Scores(np.array(order, dtype=np.float64), np.array(sign, dtype=np.float64))


@torch.no_grad()
def costs(folder: Path, pairs: Sequence[Pair], embedder: Embedder | None) -> Floats:
    """Costs [N, 2] from the scorer in `folder`, on features that are there or from the texts."""
    if embedder is None:
        scored = load_scorer(folder)(answers_of(pairs))
        return np.array([one.cost.value for one in scored if one.cost]).reshape(-1, 2)
    model = load_scorer_model(folder)
    features = embedder(model.trunk, encoded(model.tokenizer, answers_of(pairs)))  # type: ignore[arg-type]
    _, cost = model(features.to(next(model.heads.parameters()).device))
    found: Floats = cost.double().cpu().view(-1, 2).numpy()
    return found


def baseline(train: Sequence[Pair], beside: Sequence[Exchange], test: Sequence[Pair]) -> Scores:
    """A ranker's scores of the order, and a classifier's of the sign where answers have labels."""
    first = safer_scores([pair for pair in train if pair.safer in (0, 1)], test)
    order = np.stack([first, np.zeros_like(first)], axis=1)
    known = [answer for answer in (*answers_of(train), *beside) if answer.is_safe is not None]
    if not known:
        return Scores(order, np.full_like(order, np.nan))
    return Scores(order, unsafe_scores(known, answers_of(test)).reshape(-1, 2))


def answers_of(pairs: Sequence[Pair]) -> list[Exchange]:
    """Both answers of each pair in turn."""
    return [pair.exchange(index) for pair in pairs for index in (0, 1)]


FEATURES = Step("scorer-folds.features", 1, compute_features, config=FeaturesConfig)
FOLD = Step("scorer-folds.fold", 1, score_fold, config=FoldConfig)
