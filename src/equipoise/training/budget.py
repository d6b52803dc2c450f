"""Micro-batches that keep a training within so much memory: what one takes is measured, not guessed.

Before the first step one pass forward and back is made over the longest example, and one over the two
longest, with every piece of memory counted as it comes and goes. What the second takes more than the first
is taken for that of their tokens; shorter examples take less for a token, since attention grows with the
square of a length. Counted are the weights of what trains, its gradients, the optimiser's moments, what a
checkpoint copies and the passes; libraries, the data and features made before come on top.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from equipoise.errors import ConfigError
from equipoise.models.backbone import pick_device
from equipoise.progress import say
from equipoise.training.memory import recomputing
from equipoise.training.optim import OptimSettings
from equipoise.training.task import Task

GIB = 1024**3

SLACK = 1.2
"""Memory that allocators hold, for each byte of a pass that is in use."""


def within_memory(task: Task, settings: OptimSettings) -> OptimSettings:
    """Return settings whose `tokens_per_micro_batch` keeps the training within `memory_gib`.

    It is never raised. The same in a run that is resumed, and no random number is drawn.

    Raises:
        ConfigError: The longest example alone takes more.
    """
    if settings.memory_gib is None:
        return settings
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in task.model.parameters()]
    weights = sum(size for size, _ in sizes) + task.beside
    learns = sum(size for size, learns in sizes if learns)
    by_length = sorted(range(len(task.lengths)), key=lambda i: (-task.lengths[i], i))
    longest = task.lengths[by_length[0]]
    one = passes(task, by_length[:1], settings)
    more = passes(task, by_length[:2], settings) - one if len(by_length) > 1 else one
    held = weights + 2 * learns  # and the moments of AdamW

    def needed(tokens: int) -> float:
        micro = one + max(more, 0) * (tokens / longest - 1)
        return (
            max(2 * weights, held + max(SLACK * micro, 2 * learns)) / GIB
        )  # loaded from, or saved to, a copy

    if needed(longest) > settings.memory_gib:
        raise ConfigError(
            f"optim.memory_gib: got {settings.memory_gib:g}; expected {needed(longest):.2g} at least, which"
            f" the weights, the optimiser and the longest example ({longest} tokens) take"
        )
    tokens = settings.micro_tokens
    if needed(tokens) > settings.memory_gib:
        room = (settings.memory_gib * GIB - held) / SLACK - one
        tokens = longest + int(longest * room / more)
        say(f"micro-batches of {tokens} tokens at most, to keep within {settings.memory_gib:g} GiB")
    return settings.model_copy(update={"tokens_per_micro_batch": tokens})


def passes(task: Task, indices: Sequence[int], settings: OptimSettings) -> int:
    """Return the most bytes that a pass forward and back over some examples holds, gradients with them."""
    device = pick_device(settings.device)
    cuda = [torch.cuda.current_device()] if device.type == "cuda" else []
    was_training = task.model.training
    task.model.train()
    with (
        torch.random.fork_rng(cuda),
        torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16),
        recomputing(task.model, settings.gradient_checkpointing),
    ):
        batch = task.collate(indices).to(device)
        if task.before_step is not None:
            task.before_step(task.model, [(batch, 1.0)])
        peak = Peak(task.model)
        with peak:
            task.model(batch).float().sum().backward()
    task.model.zero_grad(set_to_none=True)
    task.model.train(was_training)
    task.metrics()  # what was seen here is no part of the log
    return peak.most


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are made inside and still there, and the most there ever were."""

    def __init__(self, model: nn.Module) -> None:
        """Count nothing that the model holds already."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._sizes = {_key(value): 0 for value in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Do what is asked, and count what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return made

    def _see(self, tensor: Tensor) -> None:
        key = _key(tensor)
        if key in self._sizes:
            return
        storage = tensor.untyped_storage()
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _key(tensor: Tensor) -> int:
    """Return what tells one piece of memory from the others, as long as it is there."""
    address: int = tensor.untyped_storage()._cdata
    return address
