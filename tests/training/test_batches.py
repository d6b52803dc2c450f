"""The plan of optimiser steps: every example once an epoch, ranks in step, budgets kept."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.training.batches import Planner, StepPlan


def plans(planner: Planner) -> list[StepPlan]:
    return [plan for (plan,) in planner]


def planner(lengths: list[int], **changes: int) -> Planner:
    settings = {"batch_size": 4, "tokens_per_micro_batch": 20, "seed": 0} | changes
    return Planner(lengths, [1] * len(lengths), **settings)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    world_size=st.integers(1, 4),
    batch_size=st.integers(1, 9),
    epoch=st.integers(0, 3),
)
def test_every_example_counts_once_an_epoch_over_all_ranks(
    lengths: list[int], world_size: int, batch_size: int, epoch: int
) -> None:
    seen: Counter[int] = Counter()
    micros_per_rank = []
    for rank in range(world_size):
        one = planner(lengths, batch_size=batch_size, rank=rank, world_size=world_size)
        one.set_epoch(epoch)
        steps = plans(one)
        assert len(steps) == len(one)
        seen.update(i for step in steps for micro in step.micros if micro.weight for i in micro.indices)
        micros_per_rank.append([len(step.micros) for step in steps])
    assert seen == Counter(range(len(lengths)))
    assert all(counts == micros_per_rank[0] for counts in micros_per_rank)


def test_a_micro_batch_stays_within_its_tokens_unless_one_example_is_longer() -> None:
    lengths = [3, 19, 50, 7, 7, 2, 11, 5]
    for step in plans(planner(lengths, batch_size=8)):
        for micro in step.micros:
            tokens = len(micro.indices) * max(lengths[i] for i in micro.indices)
            assert tokens <= 20 or len(micro.indices) == 1


def test_items_are_those_of_the_whole_step_on_every_rank() -> None:
    items = [5, 1, 2, 9]
    for rank in (0, 1):
        one = Planner(
            [4, 4, 4, 4],
            items,
            batch_size=4,
            tokens_per_micro_batch=4,
            seed=0,
            rank=rank,
            world_size=2,
        )
        assert [plan.items for plan in plans(one)] == [sum(items)]


def test_a_rank_without_work_takes_part_with_weight_zero() -> None:
    (step,) = plans(planner([4, 4, 4], tokens_per_micro_batch=4, rank=1, world_size=2))
    assert [micro.weight for micro in step.micros] == [1.0, 0.0]


def test_order_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int) -> list[StepPlan]:
        one = planner(list(range(1, 30)), seed=seed)
        one.set_epoch(epoch)
        return plans(one)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 11])
def test_length_is_the_number_of_steps(batch_size: int) -> None:
    one = planner([1] * 10, batch_size=batch_size)
    assert len(one) == len(plans(one))
