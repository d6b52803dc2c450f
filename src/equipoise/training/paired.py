"""The policy under an objective of pairs: both responses behind one prompt, one loss per pair."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from equipoise.models.layout import response_logps
from equipoise.objectives.preference import PairLogps, implicit_accuracy, implicit_reward_margin
from equipoise.training.pair_order import OrderedPair
from equipoise.training.policy_rows import PolicyBatch
from equipoise.training.trainer import Task


class PreferenceLosses(nn.Module):
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
        super().__init__()
        self.policy = policy
        self.loss = loss
        self.beta = beta
        self.has_reference = has_reference
        self.seen: list[Tensor] = []

    def forward(self, batch: PolicyBatch) -> Tensor:
        """Loss of each pair times its weight, [B]."""
        pair = self.logps(batch)
        if self.has_reference:
            logged = [implicit_reward_margin(pair, beta=self.beta), implicit_accuracy(pair)]
        else:
            logged = [self.beta * pair.mean_gap, (torch.sign(pair.mean_gap) + 1) / 2]
        if self.training:
            self.seen.append(torch.stack(logged).detach())
        return self.loss(pair) * pair.weight

    def metrics(self) -> dict[str, float]:
        """Mean implicit reward margin and accuracy of this rank's pairs since the last call."""
        if not self.seen:
            return {}
        margin, accuracy = torch.cat(self.seen, dim=1).mean(dim=1).tolist()
        self.seen.clear()
        return {"reward_margin": margin, "accuracy": accuracy}

    def logps(self, batch: PolicyBatch) -> PairLogps:
        """Log-probabilities of both responses of each pair under policy and reference."""
        found = response_logps(self.policy, batch.rows)
        reference, unsafe, margin_reward, weight, severity_gap = batch.extras
        sums, lengths = found.sums, found.lengths.to(found.sums.dtype)
        return PairLogps(
            chosen=sums[0::2],
            rejected=sums[1::2],
            ref_chosen=reference[0::2],
            ref_rejected=reference[1::2],
            chosen_len=lengths[0::2],
            rejected_len=lengths[1::2],
            chosen_unsafe=unsafe[0::2],
            rejected_unsafe=unsafe[1::2],
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

    return Task(
        losses,
        [one.row.length for one in pairs],
        [1] * len(pairs),
        collate,
        losses.metrics,
        groups=[tuple(one.row.prompt) for one in pairs],
    )
