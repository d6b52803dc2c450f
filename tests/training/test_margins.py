"""Margin rewards: those of a scorer on both trunks, those of a policy, and mistakes."""

from pathlib import Path

import pytest
import torch

from equipoise.config import parse_config
from equipoise.errors import ConfigError, ModelError
from equipoise.models.backbone import load_causal
from equipoise.models.features import TextPair, encode_pair, pad_pairs
from equipoise.models.layout import response_logps
from equipoise.models.scorer import RowBatch, ScorerCard, ScorerModel, Trunk, load_trunk
from equipoise.training.margins import Answered, MarginSettings, policy_margins, scorer_margins
from equipoise.training.policy_rows import make_row

PAIRS = [
    Answered("how do i bake bread", ("mix flour and water and then wait for an hour", "no")),
    Answered("hello", ("hi", "a kind answer is better still")),
    Answered("explain the tides", ("the moon pulls the water", "there are two a day, and they are high")),
]


def scorer(
    backbone: Path, out: Path, trunk: Trunk, trained: tuple[str, ...] = ("reward", "cost")
) -> ScorerModel:
    card = ScorerCard.model_validate(
        {
            "backbone": str(backbone),
            "trunk": trunk,
            "layers": 2,
            "depth": None,
            "hidden": 0,
            "dropout": 0.0,
            "lora_rank": 0,
            "trained": trained,
        }
    )
    torch.manual_seed(0)
    model = ScorerModel(card, load_trunk(trunk, str(backbone), "cpu")).eval()
    model.trunk.requires_grad_(False)
    model.save(out)
    return model


@torch.no_grad()
def scores(model: ScorerModel, one: Answered, text: str) -> tuple[float, float]:
    """Reward and cost of one response by itself."""
    if model.card.trunk == "pooled":
        batch = pad_pairs([encode_pair(model.tokenizer, TextPair(str(one.prompt), text))])
        reward, cost = model(batch)
    else:
        reward, cost = model(RowBatch((make_row(model.tokenizer, one.prompt, [text]),)))
    return reward.item(), cost.item()


@pytest.mark.parametrize("trunk", ["pooled", "last"])
def test_a_scorers_margin_is_the_difference_of_what_it_says_of_each_response(
    tiny_llama: Path, tiny_encoder: Path, tmp_path: Path, trunk: Trunk
) -> None:
    model = scorer(tiny_encoder if trunk == "pooled" else tiny_llama, tmp_path, trunk)
    expected = []
    for one in PAIRS:
        (reward_w, cost_w), (reward_l, cost_l) = (scores(model, one, text) for text in one.responses)
        expected.append((reward_w - 0.5 * cost_w) - (reward_l - 0.5 * cost_l))
    settings = MarginSettings(scorer=tmp_path, reward_weight=1.0, cost_weight=0.5)
    found = scorer_margins(settings, PAIRS, "cpu")
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert max(map(abs, expected)) > 1e-2


def test_a_cheaper_response_has_the_larger_margin_unless_said_otherwise(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    model = scorer(tiny_encoder, tmp_path, "pooled", trained=("cost",))
    found = scorer_margins(MarginSettings(scorer=tmp_path), PAIRS[:1], "cpu")
    cost_of_chosen, cost_of_rejected = (scores(model, PAIRS[0], text)[1] for text in PAIRS[0].responses)
    assert found.item() == pytest.approx(cost_of_rejected - cost_of_chosen, abs=1e-4)
    with pytest.raises(ModelError, match=r"was not trained for reward; its heads: \('cost',\)"):
        scorer_margins(MarginSettings(scorer=tmp_path, reward_weight=1.0), PAIRS, "cpu")


def test_a_policys_margin_is_its_implicit_reward(tiny_llama: Path, tmp_path: Path) -> None:
    start = load_causal(tiny_llama, device="cpu")
    rows = [make_row(start.tokenizer, one.prompt, one.responses) for one in PAIRS]
    with torch.no_grad():
        reference = response_logps(start.model, rows).sums.view(-1, 2)
        for parameter in start.model.parameters():
            parameter.mul_(1.1)
        aligned = response_logps(start.model, rows).sums.view(-1, 2)
    start.model.save_pretrained(tmp_path / "aligned")
    start.tokenizer.save_pretrained(tmp_path / "aligned")
    found = policy_margins(
        MarginSettings(policy=str(tmp_path / "aligned"), policy_beta=0.3),
        rows,
        reference.unbind(),
        tmp_path / "margin.safetensors",
        tokenizer=start.tokenizer,
        tokens_per_batch=64,
        device="cpu",
    )
    moved = 0.3 * (aligned - reference)
    torch.testing.assert_close(found, moved[:, 0] - moved[:, 1], rtol=1e-4, atol=1e-4)
    assert found.abs().max() > 1e-2


@pytest.mark.parametrize(("given", "got"), [({}, "none"), ({"scorer": "s", "policy": "p"}, "both")])
def test_there_is_one_source(given: dict[str, str], got: str) -> None:
    with pytest.raises(ConfigError, match=f"margin: expected a scorer or a policy, got {got}"):
        parse_config(MarginSettings, given, "run.yaml")
