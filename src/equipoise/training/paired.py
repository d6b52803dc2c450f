"""The policy under an objective of pairs: both responses behind one prompt, one loss per pair."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from equipoise.models.layout import response_logps
from equipoise.objectives.preference import PairLogps, implicit_accuracy, implicit_reward_margin
from equipoise.training.pair_order import OrderedPair
from equipoise.training.policy_rows import PolicyBatch
from equipoise.training.trainer import Task


class PairLosses(nn.Module):
    """A policy under training on pairs, and what is logged of them."""

    def __init__(self, policy: nn.Module, beta: float) -> None:
        """Wrap the policy; `beta` scales the implicit reward that is logged."""
        super().__init__()
        self.policy = policy
        self.beta = beta
        self.seen: list[Tensor] = []

    def see(self, margin: Tensor, accuracy: Tensor) -> None:
        """Take in margins and accuracies, [B] each; not of what is held out."""
        if self.training:
            self.seen.append(torch.stack([margin, accuracy]).detach())

    def metrics(self) -> dict[str, float]:
        """Mean implicit reward margin and accuracy of this rank's pairs since the last call."""
        if not self.seen:
            return {}
        margin, accuracy = torch.cat(self.seen, dim=1).mean(dim=1).tolist()
        self.seen.clear()
        return {"reward_margin": margin, "accuracy": accuracy}


class PreferenceLosses(PairLosses):
    """The policy under training: one loss per pair."""

    def __init__(
        self,
        policy: nn.Module,
        loss: Callable[[PairLogps], Tensor],
        beta: float,
        *,
        has_reference: bool = True,
    ) -> None:
        """Wrap the policy and the objective.

        Args:
            policy: What learns.
            loss: The objective.
            beta: Scales the implicit reward that is logged.
            has_reference: Whether the reference counts; if not, nats per token are the reward.
        """
        super().__init__(policy, beta)
        self.loss = loss
        self.has_reference = has_reference

    def forward(self, batch: PolicyBatch) -> Tensor:
        """Loss of each pair times its weight, [B]."""
        pair = self.logps(batch)
        if self.has_reference:
            self.see(implicit_reward_margin(pair, beta=self.beta), implicit_accuracy(pair))
        else:
            self.see(self.beta * pair.mean_gap, (torch.sign(pair.mean_gap) + 1) / 2)
        return self.loss(pair) * pair.weight

    def logps(self, batch: PolicyBatch) -> PairLogps:
        """Log-probabilities of both responses of each pair under policy and reference."""
        found = response_logps(self.policy, batch.rows)
        reference, unsafe, margin_reward, weight, severity_gap = batch.extras
        return PairLogps.alternating(
            found.sums,
            reference,
            found.lengths.to(found.sums.dtype),
            unsafe,
            margin_reward=margin_reward,
            weight=weight,
            severity_gap=severity_gap,
        )


def pair_task(
    losses: PreferenceLosses,
    pairs: Sequence[OrderedPair],
    reference: Sequence[Tensor],
    margin_rewards: Tensor | None = None,
) -> Task:
    """Return what to train on pairs; `reference` has [chosen, rejected] of each."""
    known = torch.stack(list(reference))  # [B, 2]
    unsafe = torch.tensor([[float(one.chosen_unsafe), float(one.rejected_unsafe)] for one in pairs])
    weight = torch.tensor([one.weight for one in pairs])
    gap = torch.tensor([float(one.severity_gap or 0) for one in pairs])
    margin = torch.zeros(len(pairs)) if margin_rewards is None else margin_rewards

    def collate(chosen: Sequence[int]) -> PolicyBatch:
        index = torch.tensor(chosen)
        both = (known[index].flatten(), unsafe[index].flatten())
        extras = (*both, margin[index], weight[index], gap[index])
        return PolicyBatch(tuple(pairs[i].row for i in chosen), extras)

    return task_on_pairs(losses, pairs, collate)


def task_on_pairs(
    losses: PairLosses, pairs: Sequence[OrderedPair], collate: Callable[[Sequence[int]], PolicyBatch]
) -> Task:
    """Return the task of pairs, one loss term each; those of one prompt are held out together."""
    return Task(
        losses,
        [one.row.length for one in pairs],
        [1] * len(pairs),
        collate,
        losses.metrics,
        groups=[tuple(one.row.prompt) for one in pairs],
    )
