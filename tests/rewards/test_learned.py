"""Scores of a scorer: each response read in its context, and polarity on every value."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from equipoise.errors import ModelError
from equipoise.models.backbone import load_causal
from equipoise.models.scorer import ScorerCard, ScorerModel, Trunk, load_trunk
from equipoise.records import Exchange, Message
from equipoise.rewards.learned import Scorer

EXCHANGES = [
    Exchange(id="a", prompt="how do i bake bread", response="mix flour and water"),
    Exchange(id="b", prompt=(Message(role="user", content="hi"),), response="yes"),
    Exchange(id="c", prompt="take a warm coat", response=""),
    Exchange(id="d", prompt="hi", response="wait until the dough has doubled"),
]


def scorer(folder: Path, trunk: Trunk = "pooled", **more: Any) -> Scorer:
    torch.manual_seed(0)
    card = ScorerCard(
        **({"backbone": str(folder), "trunk": trunk, "layers": 2, "hidden": 6, "dropout": 0.5} | more),
        **({} if "trained" in more else {"trained": ("reward", "cost")}),
    )
    return Scorer(ScorerModel(card, load_trunk(trunk, str(folder), "cpu")))


@pytest.mark.parametrize("trunk", ["pooled", "last"])
def test_a_score_does_not_depend_on_the_company(tiny_encoder: Path, tiny_llama: Path, trunk: Trunk) -> None:
    score = scorer(tiny_encoder if trunk == "pooled" else tiny_llama, trunk)
    together = score(EXCHANGES)
    values = set()
    for exchange, found in zip(EXCHANGES, together, strict=True):
        alone = score([exchange])[0]
        assert found.reward is not None
        assert found.cost is not None
        assert alone.reward is not None
        assert alone.cost is not None
        assert found.reward.value == pytest.approx(alone.reward.value, abs=1e-5)
        assert found.cost.value == pytest.approx(alone.cost.value, abs=1e-5)
        values.add(round(found.reward.value, 4))
    assert len(values) == len(EXCHANGES)
    assert score([]) == []


@torch.no_grad()
def test_a_decoder_scores_the_text_as_the_library_reads_it(tiny_llama: Path) -> None:
    score = scorer(tiny_llama, "last", hidden=0)
    tokenizer, plain = load_causal(tiny_llama).tokenizer, AutoModel.from_pretrained(tiny_llama).eval()
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nwait until the dough has doubled<|im_end|>"
    hidden = plain(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0, -1]
    reward, cost = score.model.heads(hidden[None])
    found = score(EXCHANGES)[3]
    assert found.reward is not None
    assert found.cost is not None
    assert found.reward.value == pytest.approx(reward.item(), abs=1e-4)
    assert found.cost.value == pytest.approx(cost.item(), abs=1e-4)


def test_scores_know_which_way_is_good(tiny_encoder: Path) -> None:
    found = scorer(tiny_encoder)(EXCHANGES)[0]
    assert found.reward is not None
    assert found.cost is not None
    assert found.reward.polarity == "higher_is_better"
    assert found.cost.polarity == "higher_is_worse"
    assert (found.reward.harm, found.cost.harm) == (-found.reward.value, found.cost.value)


@pytest.mark.parametrize("head", ["reward", "cost"])
def test_a_head_that_was_not_trained_says_nothing(tiny_encoder: Path, head: str) -> None:
    for found in scorer(tiny_encoder, trained=(head,))(EXCHANGES):
        assert [name for name in ("reward", "cost", "category_costs") if getattr(found, name)] == [head]


@pytest.mark.parametrize("head", ["reward", "cost"])
def test_a_score_that_is_no_number_is_an_error(tiny_encoder: Path, head: str) -> None:
    score = scorer(tiny_encoder)
    with torch.no_grad():
        getattr(score.model.heads, head)[-1].bias[:] = torch.nan
    with pytest.raises(ModelError, match="the scorer's answer is not finite"):
        score(EXCHANGES)
