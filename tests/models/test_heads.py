"""Heads: sizes as asked for, each label with weights of its own."""

import pytest
import torch

from equipoise.models.heads import GuardHeads, ScorerHeads


def test_every_head_of_the_guard_has_its_size() -> None:
    logits = GuardHeads(12, 8, categories=5, thresholds=3, dropout=0.0)(torch.randn(4, 12))
    assert [tuple(part.shape) for part in logits] == [(4, 3), (4, 5), (4, 3)]


def test_the_guard_heads_are_a_shared_layer_and_linear_maps() -> None:
    torch.manual_seed(0)
    heads = GuardHeads(6, 4, categories=2, thresholds=1, dropout=0.5).eval()
    x = torch.randn(3, 6)
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    layer = heads.shared[2]
    inner = normed @ layer.weight.T + layer.bias
    hidden = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    for name in ("severity", "categories", "refusal"):
        head = getattr(heads, name)
        torch.testing.assert_close(getattr(heads(x), name), hidden @ head.weight.T + head.bias)


def test_scorer_heads_without_hidden_layer_are_linear() -> None:
    torch.manual_seed(0)
    heads = ScorerHeads(6, 0, dropout=0.5)
    x = torch.randn(3, 6)
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    reward, cost = heads(x)
    torch.testing.assert_close(reward, normed @ heads.reward.weight[0] + heads.reward.bias)
    torch.testing.assert_close(cost, normed @ heads.cost.weight[0] + heads.cost.bias)


@pytest.mark.parametrize("hidden", [0, 4])
def test_the_reward_does_not_move_the_head_of_the_cost(hidden: int) -> None:
    heads = ScorerHeads(6, hidden, dropout=0.0)
    heads(torch.randn(3, 6))[0].sum().backward()
    assert all(p.grad is None for p in heads.cost.parameters())
    assert all(p.grad is not None for p in heads.reward.parameters())


@pytest.mark.parametrize("hidden", [0, 4])
def test_heads_of_categories_leave_the_other_scores_as_they_are(hidden: int) -> None:
    torch.manual_seed(0)
    plain = ScorerHeads(6, hidden, dropout=0.0)
    torch.manual_seed(0)
    more = ScorerHeads(6, hidden, dropout=0.0, categories=3)
    x = torch.randn(4, 6)
    found, none = more.every_score(x), plain.every_score(x)
    assert torch.equal(found.reward, plain(x)[0])
    assert torch.equal(found.cost, plain(x)[1])
    assert (found.categories.shape, none.categories.shape) == ((4, 3), (4, 0))
    found.categories[:, 1].sum().backward()
    assert all(p.grad is None for p in more.cost.parameters())
    assert more.categories is not None
    last = more.categories if hidden == 0 else more.categories[-1]
    assert last.bias.grad.tolist() == [0.0, 4.0, 0.0]
