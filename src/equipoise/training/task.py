"""A task of the trainer: a module whose forward gives losses, and the examples it learns from."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn


class Batch(Protocol):
    """What a module is given: anything that can go to a device."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on another device."""
        ...


class Task(NamedTuple):
    """What to train, and on what."""

    model: nn.Module
    """forward(batch) -> one loss per term, flat."""
    lengths: Sequence[int]
    """Tokens of each example."""
    items: Sequence[int]
    """Loss terms of each example: 1, or its response tokens."""
    collate: Callable[[Sequence[int]], Batch]
    """Indices of examples -> a batch."""
    metrics: Callable[[], dict[str, float]] = dict
    """More numbers for the log, of what was seen since the last call."""
    before_step: Callable[[nn.Module, Sequence[tuple[Any, float]]], None] | None = None
    """Sees the model as wrapped, and this rank's micro-batches and weights, before a step's first one."""
    groups: Sequence[Hashable] | None = None
    """What each example is about, its prompt: examples of one group are held out together."""

    rates: Sequence[tuple[nn.Module, float]] = ()
    """Parts of the model that learn at a rate of their own; the schedule is the same for all."""

    beside: int = 0
    """Bytes of weights that are held meanwhile and are no part of the model: those of frozen layers below."""

    reads_all: bool = True
    """Whether every weight that learns has a part in the losses. An encoder that is tuned whole, or
    adapted, may have a pooler that nothing reads; processes then look for what has none."""

    def pick(self, indices: Sequence[int]) -> "Task":
        """Return the same with these examples alone."""

        def collate(chosen: Sequence[int]) -> Batch:
            return self.collate([indices[i] for i in chosen])

        lengths, items = ([column[i] for i in indices] for column in (self.lengths, self.items))
        return self._replace(lengths=lengths, items=items, collate=collate, groups=None)
