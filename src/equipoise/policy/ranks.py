"""Several processes of one online training: each writes and scores a share, all know everything.

Every process holds all roles. A rollout's prompts are shared out in order; what came of them is brought
together, so that multipliers, advantages and budgets are those of one process; the micro-batches of a step
are shared out again, and gradients added up. With one process nothing is sent.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def rank() -> int:
    """Return which process this is; the first one writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(items: Sequence[T]) -> Sequence[T]:
    """Return this process's part of a sequence; all parts, in the order of the processes, are the whole."""
    first, last = (len(items) * i // world_size() for i in (rank(), rank() + 1))
    return items[first:last]


def gathered(part: T) -> list[T]:
    """Return what every process holds, in their order."""
    if world_size() == 1:
        return [part]
    parts: list[T | None] = [None] * world_size()
    dist.all_gather_object(parts, part)
    return [found for found in parts if found is not None]


def add_up_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace gradients by their sums; one that a process has none of counts as 0."""
    if world_size() > 1:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


def wait() -> None:
    """Wait until all processes are here."""
    if world_size() > 1:
        dist.barrier()
