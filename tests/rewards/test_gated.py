"""The gated reward: heads against a library, shares of length in floats, the gate on planted wishes."""

import math
import statistics

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from equipoise.errors import DataError
from equipoise.rewards.gated import (
    Gate,
    GatedReward,
    RatingHeads,
    decorrelate,
    fit_gate,
    fit_ratings,
    length_shares,
)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_heads_are_those_of_ridge_regression_on_the_rated_rows() -> None:
    features, ratings = normal(40, 5, seed=0), normal(40, 3, seed=1)
    ratings[::3, 1] = math.nan
    heads = fit_ratings(features, ratings, ridge=0.7)
    for number in range(3):
        rated = ~ratings[:, number].isnan()
        peer = Ridge(alpha=0.7, tol=1e-12).fit(features[rated].numpy(), ratings[rated, number].numpy())
        assert heads.weight[number].tolist() == pytest.approx(peer.coef_.tolist(), rel=1e-9)
        assert heads.bias[number].item() == pytest.approx(peer.intercept_, rel=1e-9)
        assert heads(features)[:, number].tolist() == pytest.approx(
            peer.predict(features.numpy()).tolist(), rel=1e-9
        )


def test_a_rating_that_nobody_got_is_named() -> None:
    ratings = torch.tensor([[1.0, math.nan], [2.0, math.nan]])
    with pytest.raises(DataError, match="ratings: column 1 holds none"):
        fit_ratings(torch.eye(2), ratings)


def lengthy(n: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    """Ratings that rise and fall with the length, verbosity, and lengths in tokens."""
    lengths = (40 * normal(n, seed=2).exp()).round().clamp(min=1)
    long = (lengths - lengths.mean()) / lengths.std()
    ratings = normal(n, 3, seed=3) + long[:, None] * torch.tensor([1.5, 0.2, -0.7], dtype=torch.float64)
    return ratings, long + 0.3 * normal(n, seed=4), lengths


@pytest.mark.parametrize("by_length_itself", [False, True])
def test_shares_match_formula_and_leave_no_correlation_with_length(by_length_itself: bool) -> None:
    ratings, verbosity, lengths = lengthy()
    verbosity = lengths if by_length_itself else verbosity
    shares = length_shares(ratings, verbosity, lengths)
    tokens = lengths.tolist()
    along = statistics.covariance(verbosity.tolist(), tokens)
    expected = [statistics.covariance(column.tolist(), tokens) / along for column in ratings.T]
    assert shares.tolist() == pytest.approx(expected, rel=1e-12)

    left = decorrelate(ratings, verbosity, shares)
    before = [abs(statistics.correlation(column.tolist(), tokens)) for column in ratings.T]
    after = [abs(statistics.correlation(column.tolist(), tokens)) for column in left.T]
    assert min(before) > 0.1
    assert max(after) < 1e-12


def test_verbosity_that_does_not_vary_with_length_is_refused() -> None:
    ratings, _, lengths = lengthy()
    with pytest.raises(DataError, match="verbosity: does not vary with the length"):
        length_shares(ratings, torch.ones(300), lengths)


def test_a_gate_weighs_by_softmax_and_a_new_one_all_alike() -> None:
    prompts, gaps = normal(4, 6, seed=5), normal(4, 3, seed=6)
    gate = Gate(6, 3)
    torch.testing.assert_close(gate(prompts), torch.full((4, 3), 1 / 3, dtype=torch.float64))
    torch.nn.init.normal_(gate.layers[2].weight)
    gate.log_scale.data += math.log(2)
    first, _, second = gate.layers
    for row in range(4):
        hidden = [
            max(0.0, sum(w * x for w, x in zip(weights, prompts[row].tolist(), strict=True)) + b)
            for weights, b in zip(first.weight.tolist(), first.bias.tolist(), strict=True)
        ]
        logits = [
            sum(w * h for w, h in zip(weights, hidden, strict=True)) for weights in second.weight.tolist()
        ]
        total = sum(math.exp(logit) for logit in logits)
        weights = [math.exp(logit) / total for logit in logits]
        assert gate(prompts)[row].tolist() == pytest.approx(weights, rel=1e-12)
        expected = 2 * sum(w * gap for w, gap in zip(weights, gaps[row].tolist(), strict=True))
        assert gate.score(prompts, gaps)[row].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_a_gate_beats_the_best_fixed_weights_where_prompts_want_different_things() -> None:
    def draw(seed: int) -> tuple[Tensor, Tensor]:
        prompts, gaps = normal(500, 4, seed=seed), 2 * normal(500, 2, seed=seed + 1)
        wish = torch.where(prompts[:, 0] > 0, gaps[:, 0], gaps[:, 1])  # one rating each
        return prompts, torch.where(wish > 0, 1.0, -1.0)[:, None] * gaps

    prompts, gaps = draw(10)
    gate = fit_gate(prompts, gaps, hidden=16, steps=150, lr=0.03)
    held_prompts, held_gaps = draw(20)
    with torch.no_grad():
        right = (gate.score(held_prompts, held_gaps) > 0).double().mean().item()
    fixed = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    best = ((fixed * held_gaps[:, 0] + (1 - fixed) * held_gaps[:, 1]) > 0).double().mean(-1).max().item()
    assert right > 0.9
    assert right > best + 0.1


def test_fitting_a_gate_leaves_the_random_numbers_of_others_alone_and_repeats() -> None:
    prompts, gaps = normal(20, 4, seed=7), normal(20, 2, seed=8)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = fit_gate(prompts, gaps, steps=3, seed=5)
    assert torch.equal(torch.rand(1), expected)
    again = fit_gate(prompts, gaps, steps=3, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_the_whole_reward_is_its_parts_and_ignores_verbosity() -> None:
    heads = RatingHeads(normal(3, 5, seed=11), normal(3, seed=12))
    responses, prompts = normal(200, 5, seed=13), normal(200, 4, seed=14)
    raw = heads(responses)
    lengths = (50 + 20 * raw[:, 2] + 5 * normal(200, seed=15)).clamp(min=1)
    shares = length_shares(raw, raw[:, 2], lengths)
    reward = GatedReward(heads, 2, shares, Gate(4, 3))
    assert (reward.ratings(responses)[:, 2].abs() < 1e-12).all()
    left = raw[:, :2] - raw[:, 2:] * shares[:2]
    torch.testing.assert_close(reward(prompts, responses), left.sum(-1) / 3)
    found = statistics.correlation(reward(prompts, responses).tolist(), lengths.tolist())
    assert abs(found) < 1e-9
