"""Rewards of groups that want different things: `equipoise train mixture --set pairs=[FILE] --out DIR`.

Linear heads on pooled features of a frozen backbone, fitted by EM (`mixture.py`). What is taken for a rater
is a setting, since few data sets name theirs: PKU-SafeRLHF has none, so that its severities, categories or
sources are the units there. The folder holds the heads (`weights.safetensors`), the card (`model.json`) and
who belongs to which group (`units.json`).
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from equipoise.config import Config, InputPath, ModelRef
from equipoise.data.check import severity_of
from equipoise.data.io import read_records
from equipoise.errors import DataError
from equipoise.lineage import Run, Step, write_text
from equipoise.models.backbone import Device, load_encoder
from equipoise.models.features import PooledFeatures, TextPair, embed, encode_pair
from equipoise.models.mixture import MixtureCard, MixtureModel
from equipoise.progress import say
from equipoise.records import Pair, text_of
from equipoise.training.cards import model_card
from equipoise.training.mixture import Mixture, Mode, fit_mixture
from equipoise.training.pair_order import told

Unit = Literal["annotator", "source", "severity", "categories", "pair"]


class MixtureConfig(Config):
    """Settings of `train mixture`."""

    pairs: tuple[InputPath, ...] = Field(min_length=1)
    backbone: ModelRef = "minilm"
    layers: int = Field(default=6, ge=1)
    """Layers that are pooled, the last and others at even steps below."""
    preference: Literal["better", "safer", "overall"] = "better"
    unit: Unit = "annotator"
    """What wants one thing: the one who labelled a pair, its source, the highest severity or all
    categories of its answers, or each pair by itself."""
    groups: int = Field(default=2, ge=1)
    mode: Mode = "soft"
    ridge: float = Field(default=0.1, ge=0)
    """Of heads on features whose differences have length 1 on the average."""
    iterations: int = Field(default=200, ge=1)
    restarts: int = Field(default=4, ge=1)
    seed: int = 0
    device: Device = "auto"


class Preferred(NamedTuple):
    """A pair in order, and whose it is."""

    pair: Pair
    chosen: Literal[0, 1]
    unit: str


def train_mixture(config: MixtureConfig, run: Run) -> None:
    """Fit the groups' rewards into `run.out`."""
    pairs = [record for path in config.pairs for record in read_records(path, Pair)]
    run.licences |= {pair.licence for pair in pairs}
    kept, left_out = preferred_pairs(pairs, config)
    if not kept:
        raise DataError(f"pairs: none is left to train on ({told(left_out)})")
    backbone = load_encoder(config.backbone, device=config.device)
    trunk = PooledFeatures(backbone.model, config.layers)
    texts = [
        TextPair(text_of(one.pair.prompt), one.pair.answers[k].response)
        for one in kept
        for k in (one.chosen, 1 - one.chosen)
    ]
    features = embed(trunk, [encode_pair(backbone.tokenizer, text) for text in texts]).double()
    gaps = features[0::2] - features[1::2]
    length = gaps.square().sum(dim=-1).mean().sqrt().clamp(min=1e-12)
    units = [one.unit for one in kept]

    def fit(groups: int) -> Mixture:
        return fit_mixture(
            gaps / length,
            units,
            groups=groups,
            mode=config.mode,
            ridge=config.ridge,
            iterations=config.iterations,
            restarts=config.restarts,
            seed=config.seed,
        )

    say(f"fitting {config.groups} rewards to {len(kept)} pairs of {len(set(units))} units")
    mixture = fit(config.groups)
    card = MixtureCard(
        backbone=str(backbone.model.name_or_path),  # a folder's is absolute
        layers=config.layers,
        unit=config.unit,
        shares=tuple(round(share, 6) for share in mixture.shares.tolist()),
    )
    MixtureModel(card, backbone, (mixture.heads / length).float()).save(run.out)
    belongs = {
        str(name): [round(p, 6) for p in row]
        for name, row in zip(mixture.units, mixture.assignment.tolist(), strict=True)
    }
    write_text(run.out / "units.json", json.dumps(belongs, indent=1, ensure_ascii=False) + "\n")
    run.notes |= {
        "rows": len(kept),
        "left_out": dict(left_out),
        "units": len(mixture.units),
        "shares": list(card.shares),
        "iterations": len(mixture.trace),
        "penalised_log_likelihood": round(mixture.trace[-1], 4),
        "penalised_log_likelihood_of_one_reward": round(fit(1).trace[-1], 4),
    }
    model_card(
        run,
        "Mixture of rewards",
        config.backbone,
        f"scores a response in the eyes of {config.groups} groups of {config.unit} units",
        polarity={"reward": "higher_is_better"},
    )


def preferred_pairs(pairs: Sequence[Pair], config: MixtureConfig) -> tuple[list[Preferred], Counter[str]]:
    """Return the pairs that have a preference and a unit; what is left out is counted by its reason."""
    kept: list[Preferred] = []
    left_out: Counter[str] = Counter()
    for pair in pairs:
        chosen = getattr(pair, config.preference)
        unit = unit_of(pair, config.unit)
        if chosen not in (0, 1):
            left_out["no preference, or a tie"] += 1
        elif unit is None:
            left_out[f"{config.unit} not known"] += 1
        else:
            kept.append(Preferred(pair, chosen, unit))
    return kept, left_out


def unit_of(pair: Pair, unit: Unit) -> str | None:
    """Return the name of what a pair's preference belongs to, or None where it is not known."""
    if unit == "pair":
        return f"{pair.source}/{pair.id}"
    if unit == "source":
        return pair.source
    if unit == "annotator":
        return pair.annotators[0] if len(pair.annotators) == 1 else None
    if unit == "severity":
        levels = [severity_of(answer) for answer in pair.answers]
        return None if None in levels else str(max(level or 0 for level in levels))
    sets = [frozenset() if answer.is_safe else answer.categories for answer in pair.answers]
    found = [names for names in sets if names is not None]
    return " + ".join(sorted(frozenset().union(*found))) or "none" if len(found) == len(sets) else None


TRAIN_MIXTURE = Step("train.mixture", 1, train_mixture, config=MixtureConfig)
