"""`models ensemble`: join several scorers into one folder, which is a scorer wherever one is expected.

A policy finds what its scorer takes for good and people do not. That is harder where scorers of different
backbones, trainings or rows must be deceived at once, though not impossible (Coste et al. 2023; Eisenstein
et al. 2023).

Shapes: R responses.
"""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Literal

from pydantic import Field

from equipoise.config import Config, InputPath
from equipoise.data.io import read_exchanges
from equipoise.errors import DataError, ModelError
from equipoise.lineage import Run, Step
from equipoise.models.backbone import Device
from equipoise.models.checkpoints import save_card
from equipoise.models.scorer import EnsembleCard, Units, read_scorer_card
from equipoise.records import Score
from equipoise.rewards.learned import load_scorer

_FILES = ("model.json", "weights.safetensors")
"""What a scorer's folder holds that is needed to load it."""


class EnsembleConfig(Config):
    """Settings of `models ensemble`."""

    scorers: tuple[InputPath, ...] = Field(min_length=2)
    """Folders of `train scorer`."""
    pairs: tuple[InputPath, ...] = Field(min_length=1)
    """Pairs on whose answers the spread of each scorer is measured, which is its unit."""
    answers: int = Field(default=500, ge=2)
    """So many of them, drawn at random."""
    seed: int = 0
    device: Device = "auto"
    """Where they are measured."""
    reward: Literal["mean", "worst"] = "mean"
    cost: Literal["mean", "worst"] = "worst"
    """mean, or what the most severe scorer says: the lowest reward, the highest cost."""


def join(config: EnsembleConfig, run: Run) -> None:
    """Write copies of the scorers into `run.out`, and how they speak as one.

    Raises:
        ModelError: A folder is itself an ensemble, or no head is common to all scorers.
        DataError: A scorer says the same of all answers.
    """
    cards = [read_scorer_card(folder) for folder in config.scorers]
    for folder, card in zip(config.scorers, cards, strict=True):
        if isinstance(card, EnsembleCard):
            raise ModelError(f"{folder}: joins several scorers already; expected single ones")
    common = [head for head in ("reward", "cost") if all(head in card.trained for card in cards)]
    if not common:
        has = "; ".join(
            f"{folder}: {', '.join(card.trained) or 'none'}"
            for folder, card in zip(config.scorers, cards, strict=True)
        )
        raise ModelError(f"scorers: no head is common to all of them ({has})")
    exchanges = read_exchanges((), config.pairs)
    if not exchanges:
        raise DataError("pairs: got no answer to measure on; expected two at least")
    run.licences |= {exchange.licence for exchange in exchanges}
    exchanges = random.Random(config.seed).sample(exchanges, min(config.answers, len(exchanges)))
    said = [load_scorer(folder, config.device)(exchanges) for folder in config.scorers]
    rewards, costs = (
        _units(config.scorers, head, [[getattr(one, head) for one in each] for each in said])
        if head in common
        else ()
        for head in ("reward", "cost")
    )
    for k, folder in enumerate(config.scorers):
        (run.out / str(k)).mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            shutil.copyfile(folder / name, run.out / str(k) / name)
    save_card(run.out, EnsembleCard(reward=config.reward, cost=config.cost, rewards=rewards, costs=costs))
    run.notes |= {"scorers": len(config.scorers), "answers": len(exchanges), "heads": ", ".join(common)}


def _units(folders: Sequence[Path], head: str, said: Sequence[Sequence[Score]]) -> tuple[Units, ...]:
    """Spread of what each scorer says over the mean spread, and of rewards, which have no zero, the mean."""
    values = [[score.value for score in each] for each in said]
    spreads = [pstdev(each) for each in values]
    for folder, spread in zip(folders, spreads, strict=True):
        if not spread > 0:
            raise DataError(
                f"pairs: {folder} gives the same {head} to all {len(values[0])} answers; expected a spread"
            )
    return tuple(
        Units(middle=fmean(each) if head == "reward" else 0.0, deviation=spread / fmean(spreads))
        for each, spread in zip(values, spreads, strict=True)
    )


ENSEMBLE = Step("models.ensemble", 1, join, config=EnsembleConfig)
