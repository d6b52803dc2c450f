"""What tests of online training share: settings for a tiny model, prompts, and a scoring of plain numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.data.io import write_records
from equipoise.generation.rollouts import Rollout
from equipoise.policy.scoring import Signals
from equipoise.policy.settings import GroupLagConfig, OnlineConfig, PpoLagConfig
from equipoise.records import Prompt

WORDS = ("flour", "water", "salt", "yeast", "dough", "oven", "bread", "mountain", "coat", "tide")
KINDS: dict[str, type[OnlineConfig]] = {"ppo": PpoLagConfig, "group": GroupLagConfig}

MakeConfig = Callable[..., OnlineConfig]


@pytest.fixture
def make_config(tiny_llama: Path, tmp_path: Path) -> MakeConfig:
    """Return what makes settings of a kind, `ppo` or `group`, with whatever is said on top."""
    path = tmp_path / "prompts.jsonl"
    prompts = [
        Prompt(id=word, prompt=f"what of {word} " + "and so on " * (i % 3)) for i, word in enumerate(WORDS)
    ]
    write_records(path, prompts)

    def make(kind: str, **more: Any) -> OnlineConfig:
        settings: dict[str, Any] = {
            "prompts": [path],
            "roles": {"policy": str(tiny_llama), "rank": 4, "device": "cpu"},
            "updates": 4,
            "rollout": {"prompts": 4, "samples": 3, "max_new_tokens": 10},
            "constraints": [{"name": "cost", "budget": 0.0}],
            "optim": {"lr": 0.01, "minibatches": 2, "clip_norm": 1e9},
        }
        for name, value in more.items():
            is_section = isinstance(value, dict) and isinstance(settings.get(name), dict)
            settings[name] = settings[name] | value if is_section else value
        return KINDS[kind].model_validate(settings)

    return make


@pytest.fixture
def arbitrary() -> Callable[[Sequence[Rollout]], Signals]:
    """Return a scoring whose numbers depend on the tokens alone."""

    def score(rollouts: Sequence[Rollout]) -> Signals:
        reward = [sum(r.ids) % 7 / 3 - 1 for r in rollouts]
        cost = [sum(r.ids) % 5 / 2 - 0.9 for r in rollouts]
        return Signals(torch.tensor(reward), torch.tensor(cost)[:, None], None)

    return score
