"""Plan whole optimiser steps: which examples, on which rank, in which micro-batch.

The gradient of a step is that of the mean over all its terms, however they are split, so the plan
may group examples by length without changing what is learned.
"""

import math
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from equipoise.models.layout import token_budget_batches


class Micro(NamedTuple):
    """One forward and backward pass: the examples, and 0.0 where a rank only keeps in step."""

    indices: tuple[int, ...]
    weight: float


class StepPlan(NamedTuple):
    """One optimiser step of one rank, and how many terms its loss has over all ranks."""

    micros: tuple[Micro, ...]
    items: int


class Planner:
    """Plans the steps of each epoch; the same for all ranks, so nothing has to be exchanged.

    It is the batch sampler of a data loader: iterating gives, for each step, this rank's plan.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        items: Sequence[int],
        *,
        batch_size: int,
        tokens_per_micro_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Plan steps of `batch_size` examples over all ranks together.

        Args:
            lengths: Tokens of each example, padding apart.
            items: Number of loss terms of each example: 1, or its response tokens.
            batch_size: Examples of one optimiser step.
            tokens_per_micro_batch: What one forward pass may hold, padding counted.
            seed: Decides the order, together with the epoch.
            rank: This process.
            world_size: Number of processes.
        """
        self.lengths = lengths
        self.items = items
        self.batch_size = batch_size
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is planned next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Optimiser steps of an epoch."""
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[StepPlan]]:
        """Yield this rank's plan of each step, in a list of one as data loaders want it."""
        order = list(range(len(self.lengths)))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        for start in range(0, len(order), self.batch_size):
            yield [self._plan(order[start : start + self.batch_size])]

    def _plan(self, chosen: Sequence[int]) -> StepPlan:
        lengths = [self.lengths[i] for i in chosen]
        groups = [
            tuple(chosen[i] for i in group)
            for group in token_budget_batches(lengths, self.tokens_per_micro_batch)
        ]
        rounds = math.ceil(len(groups) / self.world_size)
        mine = [Micro(group, 1.0) for group in groups[self.rank :: self.world_size]]
        if len(mine) < rounds:  # every rank must take part in the exchange of gradients
            mine.append(Micro((min(chosen, key=lambda i: (self.lengths[i], i)),), 0.0))
        return StepPlan(tuple(mine), sum(self.items[i] for i in chosen))
