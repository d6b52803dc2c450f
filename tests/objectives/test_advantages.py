"""Advantages against plain floats, public formulas among them, and what a multiplier may not lose."""

import math
import statistics

import pytest
import torch
from torch import Tensor

from equipoise.objectives.advantages import (
    GROUP_ADVANTAGES,
    blend,
    gae,
    grpo,
    prompt_excess,
    rectify,
    reinforce,
    rloo,
    whiten,
)

LENGTHS = [3, 1, 5, 2]
SLOTS = torch.tensor([r for r, n in enumerate(LENGTHS) for _ in range(n)])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equals(found: Tensor, expected: object) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def gae_in_floats(rewards: list[float], values: list[float], gamma: float, decay: float) -> list[float]:
    """The sum over all later differences, term by term."""
    after = [*values[1:], 0.0]
    differences = [r + gamma * v2 - v for r, v, v2 in zip(rewards, values, after, strict=True)]
    return [
        sum((gamma * decay) ** (s - t) * differences[s] for s in range(t, len(rewards)))
        for t in range(len(rewards))
    ]


@pytest.mark.parametrize(("gamma", "decay"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_gae_matches_formula_for_reward_and_cost(gamma: float, decay: float) -> None:
    signals, values = random(11, 2), random(11, 2, seed=1)
    found = gae(signals, values, SLOTS, gamma=gamma, decay=decay)
    for column in range(2):
        expected = []
        start = 0
        for n in LENGTHS:
            here = slice(start, start + n)
            expected += gae_in_floats(
                signals[here, column].tolist(), values[here, column].tolist(), gamma, decay
            )
            start += n
        assert_equals(found.advantages[:, column], expected)
    assert_equals(found.returns, (found.advantages + values).tolist())


def test_gae_of_one_signal_and_of_none() -> None:
    signals, values = random(11), random(11, seed=1)
    both = gae(signals[:, None], values[:, None], SLOTS).advantages[:, 0]
    assert torch.equal(gae(signals, values, SLOTS).advantages, both)
    assert gae(signals[:0], values[:0], SLOTS[:0]).advantages.shape == (0,)


def test_with_decay_one_returns_are_what_is_still_to_come() -> None:
    signals = random(11)
    returns = gae(signals, random(11, seed=1), SLOTS, decay=1.0).returns
    assert returns[4].item() == pytest.approx(signals[4:9].sum().item(), rel=1e-12)


def test_responses_do_not_see_each_other() -> None:
    signals, values = random(11, 2), random(11, 2, seed=1)
    alone = gae(signals[4:9], values[4:9], SLOTS[4:9] - 2)
    torch.testing.assert_close(gae(signals, values, SLOTS).advantages[4:9], alone.advantages, rtol=0, atol=0)


def test_whitening_matches_the_public_formula() -> None:
    values = random(40, 2)
    values[:, 1] *= 7
    for column, found in zip(values.T.tolist(), whiten(values).T.tolist(), strict=True):
        mean, variance = statistics.mean(column), statistics.variance(column)
        assert found == pytest.approx([(v - mean) / math.sqrt(variance + 1e-8) for v in column], rel=1e-12)
    together = whiten(values, together=True)
    ratio = (values[:, 1] - values[:, 1].mean()) / (values[:, 0] - values[:, 0].mean())
    torch.testing.assert_close(together[:, 1] / together[:, 0], ratio, rtol=1e-9, atol=0)


def test_whitening_what_is_all_the_same_gives_nothing() -> None:
    assert whiten(torch.full((4, 2), 3.0)).tolist() == [[0.0, 0.0]] * 4
    assert whiten(torch.full((1, 2), 3.0)).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("multipliers", [[0.0], [1.5], [0.2, 3.0]])
def test_blend_matches_formula(multipliers: list[float]) -> None:
    columns = random(5, 4, 1 + len(multipliers))
    expected = [
        [
            (row[0] - sum(k * c for k, c in zip(multipliers, row[1:], strict=True))) / (1 + sum(multipliers))
            for row in rows
        ]
        for rows in columns.tolist()
    ]
    assert_equals(blend(columns, multipliers), expected)


def test_blend_wants_a_multiplier_per_cost() -> None:
    with pytest.raises(ValueError, match="got 3 columns and 1 multipliers"):
        blend(random(5, 3), [1.0])


def test_a_growing_multiplier_does_not_grow_the_step() -> None:
    columns = random(200, 2)
    assert all(blend(columns, [k]).abs().max() <= columns.abs().max() for k in (0.0, 1.0, 10.0, 1e6))


def test_reinforce_and_rloo_match_formula() -> None:
    scores = random(3, 4)
    rows = scores.tolist()
    mean = sum(map(sum, rows)) / 12
    assert_equals(reinforce(scores), [[value - mean for value in row] for row in rows])
    assert_equals(rloo(scores), [[v - (sum(row) - v) / 3 for v in row] for row in rows])
    # the same thing as it is also published: k / (k - 1) of the score less k / (k - 1) of the mean
    assert_equals(rloo(scores), [[v * 4 / 3 - sum(row) / 4 * 4 / 3 for v in row] for row in rows])


@pytest.mark.parametrize("epsilon", [1e-6, 1e-9, 1e-4])
def test_grpo_by_group_matches_the_public_formula(epsilon: float) -> None:
    scores = random(3, 4)
    expected = [
        [(v - statistics.mean(row)) / (statistics.stdev(row) + epsilon) for v in row]
        for row in scores.tolist()
    ]
    assert_equals(grpo(scores, scale="group", epsilon=epsilon), expected)


def test_grpo_by_batch_and_without_a_scale_match_formula() -> None:
    scores = random(3, 4)
    centred = [[v - statistics.mean(row) for v in row] for row in scores.tolist()]
    assert_equals(grpo(scores, scale="none"), centred)
    deviation = math.sqrt(statistics.mean(statistics.variance(row) for row in scores.tolist()))
    assert_equals(grpo(scores), [[v / (deviation + 1e-6) for v in row] for row in centred])


@pytest.mark.parametrize("name", GROUP_ADVANTAGES)
def test_columns_are_treated_apart(name: str) -> None:
    scores = random(3, 4, 2) * torch.tensor([1.0, 30.0])
    found = GROUP_ADVANTAGES[name](scores)
    for column in range(2):
        torch.testing.assert_close(found[..., column], GROUP_ADVANTAGES[name](scores[..., column]))


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_one_response_is_no_group(name: str) -> None:
    with pytest.raises(ValueError, match="expected 2 or more"):
        GROUP_ADVANTAGES[name](random(3, 1, 2))


@pytest.mark.parametrize("scale", ["batch", "group"])
def test_a_group_of_equal_scores_teaches_nothing(scale: str) -> None:
    scores = torch.ones(2, 4, dtype=torch.float64)
    assert grpo(scores, scale=scale).abs().max() == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", ["batch", "group"])
def test_scaling_apart_keeps_what_the_multiplier_does_and_scaling_the_sum_does_not(scale: str) -> None:
    harm = random(6, 8)
    scores = torch.stack([harm + 0.01 * random(6, 8, seed=1), harm], -1)  # what pleases is what harms

    def ours(k: float) -> float:
        return blend(grpo(scores, scale=scale), [k]).abs().mean().item()  # type: ignore[arg-type]

    def scaled_after(k: float) -> float:
        return grpo((scores[..., 0] - k * scores[..., 1]) / (1 + k), scale=scale).abs().mean().item()  # type: ignore[arg-type]

    assert ours(1.0) < 0.02 * ours(0.0)  # at the price where nothing is to be gained, no step
    assert scaled_after(1.0) > 0.9 * scaled_after(0.0)


def test_grpo_does_not_depend_on_the_reward_models_scale_and_so_neither_does_the_multiplier() -> None:
    scores = random(6, 8, 2)
    louder = scores * torch.tensor([50.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(blend(grpo(louder), [0.7]), blend(grpo(scores), [0.7]), rtol=1e-4, atol=1e-6)


def test_repo_matches_formula() -> None:
    raw = random(5, 3, 2, seed=4)
    costs = raw.tolist()
    budgets = [0.1, -0.2]
    excess = [[max(0.0, sum(c[m] for c in p) / 3 - budgets[m]) for m in range(2)] for p in costs]
    assert_equals(prompt_excess(raw, budgets), excess)
    advantages = random(5, 3, 3)
    expected = [
        [[a[0], *(a[1 + m] if excess[p][m] > 0 else 0.0 for m in range(2))] for a in advantages[p].tolist()]
        for p in range(5)
    ]
    assert_equals(rectify(advantages, raw, budgets), expected)
    assert 0 < sum(e > 0 for row in excess for e in row) < 10


def test_repo_has_the_gradient_of_the_rectified_cost() -> None:
    logits, reward, cost = random(4, 5).requires_grad_(), random(4, 5, seed=1), random(4, 5, seed=2)
    policy = logits.softmax(-1)
    mean_cost = (policy * cost).sum(-1)
    target = ((policy * reward).sum(-1) - 2.0 * mean_cost.clamp(min=0)).mean() / 3
    true = torch.autograd.grad(target, logits, retain_graph=True)[0]
    # every answer once, weighed by its probability, in place of draws
    over = (mean_cost > 0)[:, None]
    advantages = torch.stack([reward, torch.where(over, cost, 0.0)], -1)
    surrogate = (policy.detach() * logits.log_softmax(-1) * blend(advantages, [2.0])).sum(-1).mean()
    torch.testing.assert_close(torch.autograd.grad(surrogate, logits)[0], true, rtol=1e-10, atol=1e-14)
    assert 0 < over.sum() < 4
