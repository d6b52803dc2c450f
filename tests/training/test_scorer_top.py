"""Tuning the highest layers of a scorer on what the layers below made once; features from elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from equipoise.config import parse_config
from equipoise.data.io import write_records
from equipoise.errors import ModelError
from equipoise.lineage import Outcome, Run, produce
from equipoise.models.backbone import layer_stack, load_encoder
from equipoise.models.features import PooledFeatures
from equipoise.models.scorer import ScorerModel, load_scorer_model
from equipoise.models.windows import PairIds
from equipoise.records import Answer, Pair
from equipoise.rewards.learned import load_scorer
from equipoise.training.scorer import TRAIN_SCORER, ScorerConfig, train_scorer

PAIRS = [
    Pair(
        id=f"p{i}",
        prompt=f"how do i bake bread {i}",
        answers=(
            Answer(response=f"mix flour and water {i}", is_safe=True),
            Answer(response=f"take a warm coat to the mountains {i}", is_safe=i % 3 == 0),
        ),
        better=i % 2,
        safer=0 if i % 3 else "tie",
        licence="CC0-1.0",
    )
    for i in range(12)
]


def config_of(place: Path, model: Path, **settings: Any) -> ScorerConfig:
    write_records(place / "pairs.jsonl", PAIRS)
    optim = {"epochs": 2, "batch_size": 4, "device": "cpu", "log_every": 1} | settings.pop("optim", {})
    small = {"layers": 2, "hidden": 0, "dropout": 0.0}
    given = {"pairs": [str(place / "pairs.jsonl")], "backbone": str(model), "optim": optim}
    return parse_config(ScorerConfig, {**given, **small, **settings}, "test")


def train(place: Path, model: Path, **settings: Any) -> Outcome:
    return produce(place / settings["tune"], TRAIN_SCORER, config_of(place, model, **settings))


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def layers(model: ScorerModel) -> list[Tensor]:
    stack = layer_stack(model.trunk.encoder)
    assert stack is not None
    return [torch.cat([p.detach().flatten() for p in layer.parameters()]) for layer in stack]


@pytest.mark.parametrize("tokens", [100_000, 1], ids=["whole", "split"])
def test_the_top_layers_learn_as_they_do_where_all_layers_are_run(
    tmp_path: Path, tiny_llama: Path, tokens: int
) -> None:
    """The first step sees the same weights, so it has the same loss; the layers below stay as they were."""
    optim = {"lr": 1e-2, "schedule": "constant", "tokens_per_micro_batch": tokens}
    for tune in ("top", "full"):
        train(tmp_path, tiny_llama, tune=tune, top_layers=1, optim=optim)
    top, full = losses(tmp_path / "top"), losses(tmp_path / "full")
    assert top[0] == pytest.approx(full[0], rel=1e-5)
    assert top[-1] < top[0]
    tuned = load_scorer_model(tmp_path / "top", "cpu")
    base = ScorerModel(tuned.card, load_encoder(tiny_llama, device="cpu"))
    same = [torch.equal(one, other) for one, other in zip(layers(tuned), layers(base), strict=True)]
    assert same == [True, False]
    assert (tuned.card.top_layers, tuned.card.own_trunk) == (1, False)


def test_a_scorer_with_tuned_layers_scores_as_it_did_when_it_was_trained(
    tmp_path: Path, tiny_llama: Path
) -> None:
    """The loss of the last step at a rate too small to matter is that of what was saved."""
    rates = {"lr": 1e-12, "head_lr": 1e-12, "weight_decay": 0.0, "epochs": 1, "batch_size": len(PAIRS)}
    train(tmp_path, tiny_llama, tune="top", top_layers=1, optim=rates)
    found = load_scorer(tmp_path / "top", "cpu")([p.exchange(k) for p in PAIRS for k in (0, 1)])
    reward = torch.tensor([f.reward.value for f in found if f.reward]).view(-1, 2)
    cost = torch.tensor([f.cost.value for f in found if f.cost]).view(-1, 2)
    total = 0.0
    soft, centring = torch.nn.functional.softplus, 0.001
    for i, pair in enumerate(PAIRS):
        gap = reward[i, 0] - reward[i, 1]
        total += float(soft(gap if pair.better == 1 else -gap))
        for k, answer in enumerate(pair.answers):
            total += float(soft(cost[i, k] if answer.is_safe else -cost[i, k]))
        if pair.safer == 0:
            total += float(soft(cost[i, 0] - cost[i, 1]))
        total += float(centring * ((reward[i] ** 2).mean() + (cost[i] ** 2).mean()))
    assert losses(tmp_path / "top")[-1] == pytest.approx(total / len(PAIRS), rel=1e-4)


def test_the_heads_may_learn_at_a_rate_of_their_own(tmp_path: Path, tiny_llama: Path) -> None:
    still = {"lr": 1e-12, "weight_decay": 0.0, "head_lr": 1e-2, "schedule": "constant"}
    train(tmp_path, tiny_llama, tune="top", top_layers=1, optim=still)
    tuned = load_scorer_model(tmp_path / "top", "cpu")
    base = ScorerModel(tuned.card, load_encoder(tiny_llama, device="cpu"))
    torch.testing.assert_close(layers(tuned), layers(base), rtol=0, atol=1e-8)
    assert losses(tmp_path / "top")[-1] < losses(tmp_path / "top")[0]


def test_what_is_tuned_has_defaults_of_its_own() -> None:
    def given(tune: str, **optim: Any) -> tuple[float, int]:
        settings = {"pairs": ["x"], "tune": tune, "optim": optim}
        found = parse_config(ScorerConfig, settings, "here").optim
        return found.lr, found.epochs

    assert given("frozen") == (1e-3, 10)
    assert given("top") == (1e-4, 3)
    assert given("top", lr=2e-5) == (2e-5, 3)


def test_features_may_come_from_elsewhere(tmp_path: Path, tiny_encoder: Path) -> None:
    """Of features that are all alike nothing can be learned but a constant."""
    asked: list[PairIds] = []

    def alike(trunk: PooledFeatures, windows: Any) -> Tensor:
        asked.extend(windows)
        return torch.ones(len(windows), trunk.width)

    (tmp_path / "scratch").mkdir()
    train_scorer(config_of(tmp_path, tiny_encoder), Run(tmp_path, tmp_path / "scratch"), alike)
    assert len(asked) == 2 * len(PAIRS)
    heads = load_scorer_model(tmp_path, "cpu").heads
    assert heads.reward.weight.detach().abs().max() < 0.2  # as it was made


def test_something_stays_below_the_top(tmp_path: Path, tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match="top_layers: got 2 of a model with 2 layers; expected fewer"):
        train(tmp_path, tiny_llama, tune="top", top_layers=2)
