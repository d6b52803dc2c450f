"""Weights of groups over a run: the same numbers as the function, and a state that is complete."""

import json

import pytest
import torch

from equipoise.errors import ModelError
from equipoise.objectives.maxmin import min_of_mean
from equipoise.policy.group_weights import GroupWeights, MaxMinSettings


def rollouts() -> list[torch.Tensor]:
    return list(torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0)))


def test_weights_go_on_from_rollout_to_rollout() -> None:
    weights = GroupWeights("abc", MaxMinSettings(lr=0.3))
    expected = torch.full((3,), 1 / 3, dtype=torch.float64)
    for rewards in rollouts():
        step = min_of_mean(rewards.double(), expected, lr=0.3)
        expected = step.weights
        found = weights.update(rewards)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, step.rewards.float())
    assert weights.values == pytest.approx(expected.tolist(), rel=1e-12)
    assert sum(weights.values) == pytest.approx(1)


def test_the_mean_of_the_least_moves_no_weights() -> None:
    weights = GroupWeights("ab", MaxMinSettings(aggregate="mean_of_min"))
    assert weights.update(torch.tensor([[1.0, 0.0], [0.2, 0.5]])).tolist() == pytest.approx([0.0, 0.2])
    assert weights.values == (0.5, 0.5)


def test_a_run_that_is_resumed_is_the_same_run() -> None:
    whole, resumed = GroupWeights("abc"), GroupWeights("abc")
    for rewards in rollouts()[:3]:
        whole.update(rewards)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for rewards in rollouts()[3:]:
        assert torch.equal(whole.update(rewards), resumed.update(rewards))
    assert whole.values == resumed.values
    with pytest.raises(ModelError, match="has: a, b, c; this run has: a, b"):
        GroupWeights("ab").load_state_dict(whole.state_dict())
