"""Weights of groups over a run: the same numbers as the function, and a state that is complete."""

import json
import math

import pytest
import torch

from equipoise.errors import ConfigError, ModelError
from equipoise.objectives.maxmin import min_of_mean
from equipoise.policy.group_weights import GroupReading, GroupWeights, MaxMinSettings


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


def test_groups_begin_alike_and_are_compared_by_how_far_they_have_come() -> None:
    """Means 1 and 20 and deviations 1 and 10 at the start, so that the mean deviation is 5.5."""
    weights = GroupWeights(("a", "b"), MaxMinSettings(lr=0.5))
    start = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
    assert weights.start(start) == ()
    # a: 5.5 r + 2.75, b: 0.55 r - 2.75; both have the mean 8.25, so that the weights stay
    assert weights.update(start).tolist() == pytest.approx([2.75, 13.75])
    assert weights.values == pytest.approx((0.5, 0.5), rel=1e-12)
    later = torch.tensor([[3.0, 20.0], [1.0, 20.0]])  # a has come a deviation further, b has not moved
    least = 1 / (1 + math.exp(-0.5))
    found = weights.update(later).tolist()
    assert found == pytest.approx([least * 8.25 + (1 - least) * 19.25, 8.25])
    assert weights.values == pytest.approx((1 - least, least), rel=1e-12)
    assert weights.readings(later) == {
        "a": GroupReading(2.0, pytest.approx(1.0), weights.values[0]),
        "b": GroupReading(20.0, 0.0, weights.values[1]),
    }


def test_a_groups_own_scale_moves_no_weight_unless_rewards_are_taken_as_they_are() -> None:
    stretched = torch.tensor([1.0, 8.0, 0.25]), torch.tensor([0.0, -5.0, 3.0])
    found = {}
    for is_scaled in (True, False):
        one, other = (GroupWeights("abc", MaxMinSettings(lr=0.3, scaled=is_scaled)) for _ in range(2))
        for number, rewards in enumerate(rollouts()):
            again = rewards * stretched[0] + stretched[1]
            if number == 0:
                one.start(rewards)
                other.start(again)
            one.update(rewards)
            other.update(again)
        found[is_scaled] = (one.values, other.values)
    assert found[True][0] == pytest.approx(found[True][1], rel=1e-5)
    assert max(abs(a - b) for a, b in zip(*found[False], strict=True)) > 0.1


def test_one_group_is_its_reward_to_the_last_bit() -> None:
    for aggregate in ("min_of_mean", "mean_of_min"):
        weights = GroupWeights("a", MaxMinSettings.model_validate({"aggregate": aggregate}))
        columns = [rewards[:, :1] * 1e3 + 0.1 for rewards in rollouts()]
        weights.start(columns[0])
        for column in columns:
            assert torch.equal(weights.update(column), column[:, 0])


def test_weights_that_take_no_steps_stay_equal() -> None:
    weights = GroupWeights("abc", MaxMinSettings(lr=0))
    weights.update(torch.tensor([[1.0, -100.0, 3.0]]))
    assert weights.values == pytest.approx((1 / 3,) * 3)


def test_a_group_whose_rewards_do_not_differ_has_the_others_scale_and_is_told() -> None:
    weights = GroupWeights("abc")
    start = torch.tensor([[0.0, 3.0, 0.0], [2.0, 3.0, 6.0]])
    (warning,) = weights.start(start)
    assert "group 'b': the starting policy's responses all have the reward 3, so" in warning
    assert "; 2 is taken for its deviation" in warning  # the mean of 1 and 3
    later = weights.readings(torch.tensor([[1.0, 5.0, 3.0]]))
    assert [later[name].compared for name in "abc"] == pytest.approx([0, 1, 0])
    alone = GroupWeights("a")
    assert "; 1 is taken" in alone.start(torch.ones(4, 1))[0]


def test_a_run_that_is_resumed_is_the_same_run() -> None:
    whole, resumed = GroupWeights("abc"), GroupWeights("abc")
    whole.start(rollouts()[0])
    for rewards in rollouts()[:3]:
        whole.update(rewards)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for rewards in rollouts()[3:]:
        assert torch.equal(whole.update(rewards), resumed.update(rewards))
        assert whole.readings(rewards) == resumed.readings(rewards)
    with pytest.raises(ModelError, match="has: a, b, c; this run has: a, b"):
        GroupWeights("ab").load_state_dict(whole.state_dict())


def test_columns_are_in_the_order_of_the_groups_and_others_are_refused() -> None:
    rewards = {"b": torch.tensor([2.0]), "a": torch.tensor([1.0])}
    assert GroupWeights("ab").columns(rewards).tolist() == [[1.0, 2.0]]
    with pytest.raises(ConfigError, match="scoring: got rewards of the groups: b, a; expected: a, b, c"):
        GroupWeights("abc").columns(rewards)
