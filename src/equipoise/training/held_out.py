"""Early stop: part of the examples is held out and asked now and then, and the best weights are kept."""

import math
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

import torch
from torch import nn

from equipoise.errors import DataError
from equipoise.models.checkpoints import load_tensors, save_tensors
from equipoise.training.shards import load, trained

SHARE = 0.1
"""Of the examples, at least, that are held out; examples of one group stay together."""


def hold_out(groups: Sequence[Hashable], seed: int) -> tuple[list[int], list[int]]:
    """Return the indices to train on, and those that are held out, as the seed decides.

    Raises:
        DataError: There is one group alone.
    """
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise DataError("optim.stop_after: got examples of one prompt; expected two, to hold one out")
    names = list(sizes)
    random.Random(f"{seed}/held out").shuffle(names)
    held: set[Hashable] = set()
    count = 0
    for name in names[:-1]:
        held.add(name)
        count += sizes[name]
        if count >= SHARE * len(groups):
            break
    places = range(len(groups))
    return [i for i in places if groups[i] not in held], [i for i in places if groups[i] in held]


class Best:
    """The best weights so far, in a file of the run's scratch, so that a resumed run knows them.

    A run that goes on from before the best step comes to the same losses again, and so to the same end.
    """

    def __init__(self, path: Path, stop_after: int) -> None:
        """Read `path` if it is there."""
        self.path = path
        self.stop_after = stop_after
        self.step, self.loss = 0, math.inf
        if path.exists():
            step, self.loss = load_tensors(path)["best"].tolist()
            self.step = int(step)

    def see(self, step: int, loss: float, model: nn.Module, *, writes: bool) -> bool:
        """Take in the loss after a step; return whether the best one is too long ago."""
        if loss < self.loss:
            self.step, self.loss = step, loss
            tensors = {f"model.{name}": value for name, value in trained(model).items()}
            if writes:
                best = torch.tensor([step, loss], dtype=torch.float64)
                save_tensors(self.path, tensors | {"best": best})
        return step - self.step >= self.stop_after

    def restore(self, model: nn.Module) -> None:
        """Give the model the best weights."""
        tensors = load_tensors(self.path)
        del tensors["best"]
        own = {name.removeprefix("model."): value for name, value in tensors.items()}
        load(model, own, str(self.path))
