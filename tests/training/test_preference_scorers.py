"""Policies that a scorer has a say in: margin rewards of MODPO, and the messages of ADPO."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from equipoise.config import parse_config
from equipoise.data.io import write_records
from equipoise.errors import ConfigError, ModelError
from equipoise.lineage import Run, produce
from equipoise.models.scorer import RowBatch, ScorerCard, ScorerModel, load_scorer_model, load_trunk
from equipoise.records import Answer, Pair
from equipoise.training.policy_rows import make_row
from equipoise.training.preference import (
    TRAIN_PREFERENCE,
    PreferenceConfig,
    PreferenceOptim,
    train_preference,
)

PROMPTS = ("how do i bake bread", "why are there tides", "hello")
GOOD, OTHER = "mix flour and water", "wait until the dough has doubled"


@pytest.fixture(scope="module")
def scorer(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a scorer that reads last tokens; its reward alone was trained."""
    card = ScorerCard(backbone=str(tiny_llama), trunk="last", layers=2, hidden=0, trained=("reward",))
    torch.manual_seed(0)
    model = ScorerModel(card, load_trunk("last", str(tiny_llama), "cpu"))
    model.trunk.requires_grad_(False)
    folder = tmp_path_factory.mktemp("scorer")
    model.save(folder)
    return folder


def config_for(place: Path, model: Path, **settings: Any) -> PreferenceConfig:
    place.mkdir(exist_ok=True)
    answers = (Answer(response=GOOD), Answer(response=OTHER))
    pairs = [Pair(id=p, prompt=p, answers=answers, better=i % 2) for i, p in enumerate(PROMPTS)]
    write_records(place / "pairs.jsonl", pairs)
    optim = PreferenceOptim(**({"device": "cpu"} | settings.pop("optim", {})))
    return PreferenceConfig(pairs=(place / "pairs.jsonl",), model=str(model), optim=optim, **settings)


def log_of(place: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (place / "out" / "log.jsonl").read_text().splitlines()]


@torch.no_grad()
def reward(model: ScorerModel, prompt: str, text: str) -> float:
    return float(model(RowBatch((make_row(model.tokenizer, prompt, [text]),)))[0])


def test_a_scorer_is_the_margin_reward_of_modpo(tmp_path: Path, tiny_llama: Path, scorer: Path) -> None:
    margin = {"scorer": scorer, "reward_weight": 0.5, "cost_weight": 0.0}
    params = {"weight": 0.4}
    config = config_for(tmp_path, tiny_llama, objective="modpo", margin=margin, objective_params=params)
    produce(tmp_path / "out", TRAIN_PREFERENCE, config)
    model = load_scorer_model(scorer, "cpu")
    expected = 0.0
    for i, prompt in enumerate(PROMPTS):
        m = 0.5 * (reward(model, prompt, GOOD) - reward(model, prompt, OTHER)) * (-1) ** i
        assert abs(m) > 1e-2
        expected += math.log1p(math.exp((1 - 0.4) * m / 0.4)) / len(PROMPTS)
    assert log_of(tmp_path)[0]["loss"] == pytest.approx(expected, rel=1e-4)


MESSAGES = {"reward_weight": 1.0, "cost_weight": 0.0}


def test_adpo_learns_from_the_tokens_that_a_scorer_chose(
    tmp_path: Path, tiny_llama: Path, scorer: Path
) -> None:
    optim = {"lr": 1e-2, "epochs": 6, "schedule": "constant"}
    messages = MESSAGES | {"scorer": scorer}
    config = config_for(tmp_path, tiny_llama, objective="adpo", messages=messages, optim=optim)
    done = produce(tmp_path / "out", TRAIN_PREFERENCE, config)
    log = log_of(tmp_path)
    assert log[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)  # the policy is its reference
    assert log[-1]["loss"] < 0.6
    assert log[-1]["accuracy"] == 1.0
    notes = done.manifest.notes
    assert 0 < notes["kept_tokens"] < notes["response_tokens"]  # type: ignore[operator]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_masks_of_a_resumed_run_are_of_the_scores_it_kept(
    tmp_path: Path, tiny_llama: Path, scorer: Path
) -> None:
    messages = MESSAGES | {"scorer": scorer, "baseline": 0.0, "threshold": 0.0}
    config = config_for(tmp_path, tiny_llama, objective="adpo", messages=messages)
    kept = []
    for turn in range(2):
        run = Run(tmp_path / f"out-{turn}", tmp_path / "scratch")
        run.out.mkdir()
        run.scratch.mkdir(exist_ok=True)
        train_preference(config, run)
        kept.append(run.notes["kept_tokens"])
        scores = load_file(run.scratch / "scores.safetensors")["tokens"]
        save_file({"tokens": -scores}, run.scratch / "scores.safetensors")
    assert kept[0] != kept[1]


@pytest.mark.parametrize(("objective", "messages"), [("adpo", None), ("dpo", MESSAGES | {"scorer": "s"})])
def test_messages_go_with_the_objectives_that_use_them(objective: str, messages: Any) -> None:
    given = {"pairs": ["p.jsonl"], "objective": objective, "messages": messages}
    got = "none" if messages is None else "one"
    says = f"run.yaml: messages: got {got} with objective {objective}; expected one with adpo"
    with pytest.raises(ConfigError, match=says):
        parse_config(PreferenceConfig, given, "run.yaml")


def test_messages_need_a_score(tmp_path: Path, tiny_llama: Path, scorer: Path) -> None:
    given: dict[str, Any] = {"pairs": ["p.jsonl"], "objective": "adpo"}
    given["messages"] = {"scorer": "s", "cost_weight": 0.0}
    with pytest.raises(ConfigError, match="messages: reward_weight and cost_weight are 0"):
        parse_config(PreferenceConfig, given, "run.yaml")
    config = config_for(tmp_path, tiny_llama, objective="adpo", messages={"scorer": scorer})
    with pytest.raises(ModelError, match=r"was not trained for cost; its heads: \('reward',\)"):
        produce(tmp_path / "out", TRAIN_PREFERENCE, config)


def test_a_parameter_of_adpo_is_tried_before_anything_is_loaded(tmp_path: Path, tiny_llama: Path) -> None:
    given = {"messages": {"scorer": tmp_path}, "objective_params": {"label_smoothing": 0.7}}
    config = config_for(tmp_path, tiny_llama, objective="adpo", **given)
    with pytest.raises(ConfigError, match=r"objective_params: dpo: label_smoothing: got 0\.7"):
        produce(tmp_path / "out", TRAIN_PREFERENCE, config)
