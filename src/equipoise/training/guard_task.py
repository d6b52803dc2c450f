"""The guard under training: one loss per row, on what each way of tuning has to compute at a step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from equipoise.models.guard import GuardModel
from equipoise.models.heads import GuardLogits
from equipoise.models.top import TopBatch, TopLayers
from equipoise.models.windows import PairBatch, PairIds, pad_pairs, pool_windows
from equipoise.objectives.classification import (
    masked_bce,
    ordinal_nll,
    soft_cross_entropy,
    within_group_ranking,
)
from equipoise.training.guard_rows import NO_GROUP, GuardTargets, by_group
from equipoise.training.trainer import Task

Inputs = PairBatch | TopBatch | Tensor
"""Windows: tokens, what the frozen layers made of them, or their features."""


class GuardBatch(NamedTuple):
    """Windows of some rows, and what is known of the rows."""

    inputs: Inputs
    counts: tuple[int, ...]
    """Windows of each row."""
    targets: GuardTargets

    def to(self, device: torch.device) -> "GuardBatch":
        """Return the batch on another device."""
        targets = GuardTargets(*(tensor.to(device) for tensor in self.targets))
        return GuardBatch(self.inputs.to(device), self.counts, targets)


class GuardLosses(nn.Module):
    """One loss per row, the sum over the heads it has labels for, on the pooled logits of its windows."""

    def __init__(self, model: nn.Module, *, rank_weight: float = 0.0, rank_margin: float = 0.0) -> None:
        """Wrap what turns a batch's inputs into the logits of windows."""
        super().__init__()
        self.model = model
        self.rank_weight = rank_weight
        self.rank_margin = rank_margin

    def forward(self, batch: GuardBatch) -> Tensor:
        """Loss of each row, [B]."""
        windows = GuardLogits(*(part.float() for part in self.model(batch.inputs)))
        logits, targets = pool_windows(windows, batch.counts), batch.targets
        losses = (
            ordinal_nll(logits.severity, targets.passed, targets.failed)
            + masked_bce(logits.categories, targets.categories, targets.category_weight)
            + soft_cross_entropy(logits.refusal, targets.refusal)
        )
        if self.rank_weight:
            losses = losses + self.rank_weight * within_group_ranking(
                logits.severity[:, 0], targets.unsafe, targets.group, margin=self.rank_margin
            )
        return losses


class WindowedRows(NamedTuple):
    """The windows of all rows side by side."""

    windows: list[PairIds]
    counts: list[int]
    """Windows of each row."""
    first: list[int]
    """First window of each row."""

    @property
    def padded(self) -> list[int]:
        """Tokens of each row, whose windows are padded to the longest of them."""
        sizes = [len(window.ids) for window in self.windows]
        return [
            count * max(sizes[first : first + count])
            for first, count in zip(self.first, self.counts, strict=True)
        ]


def side_by_side(rows: Sequence[Sequence[PairIds]]) -> WindowedRows:
    """Lay the windows of all rows side by side.

    >>> a, b, c = (PairIds([n], [1], False) for n in range(3))
    >>> side_by_side([[a], [b, c], [a]])[1:]
    ([1, 2, 1], [0, 1, 3])
    """
    counts = [len(windows) for windows in rows]
    first = list(accumulate(counts, initial=0))[:-1]
    return WindowedRows([window for windows in rows for window in windows], counts, first)


def together(prompts: Sequence[str], groups: Sequence[int]) -> list[int]:
    """Number rows so that those of one prompt, and those of one group, have the same number.

    >>> together(["a", "a", "b", "c", "c"], [NO_GROUP, 0, 0, NO_GROUP, NO_GROUP])
    [0, 0, 0, 3, 3]
    """
    above = list(range(len(prompts)))

    def top(row: int) -> int:
        while above[row] != row:
            row = above[row]
        return row

    first: dict[str | int, int] = {}
    for row, prompt in enumerate(prompts):
        for name in (prompt, groups[row]):
            if name != NO_GROUP:
                ends = sorted((top(first.setdefault(name, row)), top(row)))
                above[ends[1]] = ends[0]
    return [top(row) for row in range(len(prompts))]


@contextmanager
def guard_task(
    model: GuardModel,
    rows: WindowedRows,
    targets: GuardTargets,
    *,
    features: Tensor | None = None,
    top_layers: int = 0,
    scratch: Path,
    prompts: Sequence[str] | None = None,
    bf16: bool = False,
    head_lr: float | None = None,
    rank_weight: float = 0.0,
    rank_margin: float = 0.0,
) -> Iterator[Task]:
    """Yield the training task; the model is whole again at the end.

    Where look-alikes are ranked an example is a group of rows, so that no batch splits it.

    Args:
        model: Parameters that are to learn require gradients, and no others.
        rows: Their windows.
        targets: What is known of each row.
        features: [N, F] of each window, where the trunk is frozen.
        top_layers: Layers that learn, where those below are frozen.
        scratch: Folder for what the frozen layers make of each token.
        prompts: What each row is about; rows of one are held out together.
        bf16: Let the frozen layers compute in bfloat16 autocast.
        head_lr: Learning rate of the heads, where they have one of their own.
        rank_weight, rank_margin: Weight of the ranking loss within groups; its margin in log-odds.
    """

    def task(module: nn.Module, inputs: Callable[[list[int]], Inputs], row_lengths: list[int]) -> Task:
        examples = by_group(targets) if rank_weight else [[row] for row in range(len(rows.counts))]
        about = together(prompts or [], targets.group.tolist())

        def collate(chosen: Sequence[int]) -> GuardBatch:
            members = [row for example in chosen for row in examples[example]]
            counts = tuple(rows.counts[row] for row in members)
            places = [rows.first[row] + k for row in members for k in range(rows.counts[row])]
            return GuardBatch(inputs(places), counts, targets.pick(members))

        return Task(
            GuardLosses(module, rank_weight=rank_weight, rank_margin=rank_margin),
            [sum(row_lengths[row] for row in example) for example in examples],
            [len(example) for example in examples],
            collate,
            groups=None if prompts is None else [about[example[0]] for example in examples],
            rates=() if head_lr is None else [(model.heads, head_lr)],
        )

    if features is not None:
        known = features
        yield task(model.heads, lambda places: known[places], rows.counts)
        return
    if not top_layers:
        yield task(model, lambda places: pad_pairs([rows.windows[i] for i in places]), rows.padded)
        return
    top = TopLayers(model.trunk, top_layers)
    below = top.below(rows.windows, scratch, bf16=bf16)
    with top.cut() as out:
        yield task(nn.Sequential(top, model.heads), below.batch, rows.padded)._replace(beside=out)
