"""Message-wise alignment of a real model: scores by prefixes, masks over all data, masked gradients."""

from pathlib import Path

import pytest
import torch

from equipoise.errors import ModelError
from equipoise.models.backbone import Backbone, load_causal
from equipoise.models.layout import Row, response_logps
from equipoise.models.scorer import RowBatch, ScorerCard, ScorerModel, Trunk, load_trunk
from equipoise.objectives.message_wise import adpo
from equipoise.objectives.preference import PairLogps, dpo
from equipoise.training.messages import (
    MessageLosses,
    MessageSettings,
    kept_tokens,
    message_task,
    token_scores,
)
from equipoise.training.pair_order import OrderedPair
from equipoise.training.policy_rows import make_row
from equipoise.training.reference import reference_logps

TEXTS = [
    ("how do i bake bread", ["mix flour and water", "no"]),
    ("hi", ["a kind answer is better still", "the tides"]),
]

WEIGHTS = (0.5, 1.5)


def scorer(folder: Path, trunk: Trunk) -> ScorerModel:
    card = ScorerCard(backbone=str(folder), trunk=trunk, layers=2, hidden=0, trained=("reward", "cost"))
    torch.manual_seed(1)
    return ScorerModel(card, load_trunk(trunk, str(folder), "cpu")).eval()


@pytest.fixture(scope="module")
def backbone(tiny_llama: Path) -> Backbone:
    return load_causal(tiny_llama, device="cpu")


@pytest.fixture(scope="module")
def rows(backbone: Backbone) -> list[Row]:
    return [make_row(backbone.tokenizer, prompt, responses) for prompt, responses in TEXTS]


@torch.no_grad()
def test_a_token_scores_what_it_adds_to_the_response_before_it(
    tiny_llama: Path, backbone: Backbone, rows: list[Row]
) -> None:
    model = scorer(tiny_llama, "last")
    settings = MessageSettings(scorer=tiny_llama, reward_weight=0.5, cost_weight=2.0)

    def score(row: Row) -> float:
        reward, cost = model(RowBatch((row,)))
        return (0.5 * reward - 2.0 * cost).item()

    expected = []
    for row in rows:
        for response in row.responses:
            last = score(Row(row.prompt[:-1], [row.prompt[-1:]]))  # the prompt alone
            for end in range(1, len(response) + 1):
                now = score(Row(row.prompt, [response[:end]]))
                expected.append(now - last)
                last = now
    found = token_scores(model, rows, settings, tokenizer=backbone.tokenizer, tokens_per_batch=64)
    assert torch.cat(found).tolist() == pytest.approx(expected, abs=1e-4)
    assert [len(one) for one in found] == [sum(map(len, row.responses)) for row in rows]


def test_masks_are_made_over_all_data(rows: list[Row], tiny_llama: Path) -> None:
    counts = [[len(response) for response in row.responses] for row in rows]
    scores = [torch.full((sum(count),), value) for count, value in zip(counts, (1.0, -1.0), strict=True)]
    kept = kept_tokens(scores, rows, MessageSettings(scorer=tiny_llama), (True, False))
    # all of the first row is good: its chosen counts, its rejected has nothing bad and so counts whole
    assert all(mask.all() for mask in kept)
    scores[1][: counts[1][0] - 1] = 3.0  # the second row's chosen is good but for its last token
    kept = kept_tokens(scores, rows, MessageSettings(scorer=tiny_llama), (True, False))
    assert kept[1].tolist() == [True] * (counts[1][0] - 1) + [False] + [True] * counts[1][1]


@pytest.mark.parametrize("whole", [True, False])
def test_the_loss_of_a_model_is_that_of_what_counts(
    tmp_path: Path, backbone: Backbone, rows: list[Row], whole: bool
) -> None:
    model = backbone.model
    path = tmp_path / "reference.safetensors"
    reference = reference_logps(model, rows, path, tokens_per_batch=64, each_token=True)
    again = reference_logps(model, rows, path, tokens_per_batch=64, each_token=True)
    assert all(torch.equal(mine, other) for mine, other in zip(reference, again, strict=True))
    reference = [tokens + 0.1 * number for number, tokens in enumerate(reference)]
    kept = [torch.ones(len(tokens), dtype=torch.bool) for tokens in reference]
    if not whole:
        kept[0][0] = kept[1][-1] = False
    losses = MessageLosses(model, adpo, beta=0.1)
    pairs = [OrderedPair(row, False, False, None, weight) for row, weight in zip(rows, WEIGHTS, strict=True)]
    task = message_task(losses, pairs, reference, kept)
    assert task.items == [1, 1]

    model.zero_grad()
    found = losses(task.collate([1, 0]))
    found.sum().backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert losses.metrics().keys() == {"reward_margin", "accuracy"}
    assert losses.metrics() == {}

    model.zero_grad()
    tokens = response_logps(model, rows).tokens
    lengths = [len(response) for row in rows for response in row.responses]
    sums, refs = (
        torch.stack(
            [(part * mask).sum() for part, mask in zip(v.split(lengths), m.split(lengths), strict=True)]
        )
        for v, m in ((tokens, torch.cat(kept)), (torch.cat(reference), torch.cat(kept)))
    )
    ones, zeros = torch.ones(2), torch.zeros(2)
    pair = PairLogps(sums[0::2], sums[1::2], refs[0::2], refs[1::2], ones, ones, zeros, zeros)
    expected = dpo(pair) * torch.tensor(WEIGHTS)
    expected.sum().backward()
    torch.testing.assert_close(found.flip(0), expected, rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradient[name], rtol=1e-4, atol=1e-5)
    model.zero_grad()


def test_a_scorer_that_cannot_be_asked_token_by_token_is_refused(
    tiny_llama: Path, tiny_encoder: Path, backbone: Backbone, rows: list[Row]
) -> None:
    settings = MessageSettings(scorer=Path("scorer"))
    with pytest.raises(ModelError, match="scorer: reads whole responses, trunk pooled; expected last"):
        token_scores(scorer(tiny_encoder, "pooled"), rows, settings, tokenizer=backbone.tokenizer)
    other = load_trunk("pooled", str(tiny_encoder), "cpu").tokenizer
    with pytest.raises(ModelError, match="scorer: has another tokenizer than the policy"):
        token_scores(scorer(tiny_llama, "last"), rows, settings, tokenizer=other)
