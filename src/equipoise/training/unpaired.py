"""The policy under an unpaired objective (KTO): one loss per response, one baseline per optimiser step.

KTO compares each response with how far the policy has moved on answers to *other* prompts. Public code
estimates that over a micro-batch, so its loss changes with the split. Here each row has a fixed partner
whose responses it borrows, and before a step's first gradient one pass without gradients takes the mean
over the whole step and all ranks: exact, and no more work than computing it in each micro-batch.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from equipoise.errors import DataError
from equipoise.models.layout import Row, response_logps
from equipoise.objectives.unpaired import LabelledLogps, kto_baseline
from equipoise.training.pair_order import LabelledRow
from equipoise.training.trainer import Task


class UnpairedBatch(NamedTuple):
    """Rows with their labels, and the same prompts with borrowed responses; tensors are [R]."""

    rows: tuple[Row, ...]
    reference: Tensor
    desirable: Tensor
    weight: Tensor
    borrowed: tuple[Row, ...]
    borrowed_reference: Tensor

    def to(self, device: torch.device) -> "UnpairedBatch":
        """Return the batch on another device; rows become tensors where the model is."""
        return self._replace(
            reference=self.reference.to(device),
            desirable=self.desirable.to(device),
            weight=self.weight.to(device),
            borrowed_reference=self.borrowed_reference.to(device),
        )


class Borrowed(NamedTuple):
    """Asks the module for the log-ratios of the borrowed responses of a batch."""

    batch: UnpairedBatch


def borrowed_rows(
    rows: Sequence[LabelledRow], max_tokens: int | None = None
) -> tuple[list[LabelledRow], list[Row]]:
    """Give each prompt the responses of the nearest row before it, in a circle, that has another prompt.

    Args:
        rows: Who borrows, and from whom.
        max_tokens: Of a prompt with what it borrows; a nearer row with more is passed over.

    Returns:
        The rows that can borrow so, and for each its prompt with the borrowed responses.

    Raises:
        DataError: All rows have the same prompt.
    """
    if rows and len({tuple(one.row.prompt) for one in rows}) < 2:
        raise DataError("pairs: all have the same prompt; expected at least two prompts, to estimate the KL")
    kept: list[LabelledRow] = []
    borrowed: list[Row] = []
    for i, one in enumerate(rows):
        for back in range(1, len(rows)):
            lender = rows[i - back].row
            row = Row(one.row.prompt, lender.responses)
            if lender.prompt != row.prompt and (max_tokens is None or row.length <= max_tokens):
                kept.append(one)
                borrowed.append(row)
                break
    return kept, borrowed


class UnpairedLosses(nn.Module):
    """The policy under training: one loss per response."""

    def __init__(self, policy: nn.Module, loss: Callable[[LabelledLogps], Tensor], beta: float) -> None:
        """Wrap the policy and the objective; `beta` scales the implicit rewards that are logged."""
        super().__init__()
        self.policy = policy
        self.loss = loss
        self.beta = beta
        self.baseline = torch.zeros(())
        self.seen: list[Tensor] = []

    def forward(self, batch: UnpairedBatch | Borrowed) -> Tensor:
        """Loss of each response, [R]; or log-ratio of each borrowed response."""
        if isinstance(batch, Borrowed):
            sums = response_logps(self.policy, batch.batch.borrowed).sums
            return sums - batch.batch.borrowed_reference.to(sums.dtype)
        sums = response_logps(self.policy, batch.rows).sums
        rows = LabelledLogps(sums, batch.reference, batch.desirable, self.baseline)
        if self.training:
            seen = torch.stack([self.beta * rows.log_ratio, batch.desirable])
            self.seen.append(seen.detach().float().cpu())
        return self.loss(rows) * batch.weight

    @torch.no_grad()
    def before_step(self, model: nn.Module, micros: Sequence[tuple[UnpairedBatch, float]]) -> None:
        """Take the baseline over all micro-batches of all ranks; `model` is this module as wrapped.

        Dropout is off: the baseline is of the policy, and the gradients' random numbers stay the same.
        """
        model.eval()
        found = [(model(Borrowed(batch)), weight) for batch, weight in micros]
        model.train()
        parts = [torch.stack([r.sum(), r.new_tensor(len(r))]) * weight for r, weight in found]
        total = torch.stack(parts).sum(0)
        if dist.is_initialized():
            dist.all_reduce(total)
        self.baseline = kto_baseline(total[:1] / total[1])

    def metrics(self) -> dict[str, float]:
        """Last baseline, and mean implicit reward of each kind of response since the last call."""
        if not self.seen:
            return {}
        reward, desirable = torch.cat(self.seen, dim=1)
        self.seen.clear()
        logged = {"kl": self.baseline.item()}
        for name, label in (("desirable_reward", 1.0), ("undesirable_reward", 0.0)):
            if (desirable == label).any():
                logged[name] = reward[desirable == label].mean().item()
        return logged


def unpaired_task(
    losses: UnpairedLosses,
    labelled: Sequence[LabelledRow],
    reference: Sequence[Tensor],
    borrowed: Sequence[Row],
    borrowed_reference: Sequence[Tensor],
) -> Task:
    """Return what to train on single answers: each is a term of the loss, those of one prompt share a row."""

    def collate(chosen: Sequence[int]) -> UnpairedBatch:
        mine = [labelled[i] for i in chosen]
        return UnpairedBatch(
            rows=tuple(one.row for one in mine),
            reference=torch.cat([reference[i] for i in chosen]),
            desirable=torch.tensor([float(label) for one in mine for label in one.desirable]),
            weight=torch.tensor([one.weight for one in mine for _ in one.desirable]),
            borrowed=tuple(borrowed[i] for i in chosen),
            borrowed_reference=torch.cat([borrowed_reference[i] for i in chosen]),
        )

    lengths = [max(one.row.length, other.length) for one, other in zip(labelled, borrowed, strict=True)]
    items = [len(one.desirable) for one in labelled]
    groups = [tuple(one.row.prompt) for one in labelled]
    return Task(losses, lengths, items, collate, losses.metrics, losses.before_step, groups)
