"""Message-wise alignment of a policy: a scorer scores tokens, scores make masks, losses look through masks.

`objectives/message_wise.py` says what is learned. A scorer that reads a language model's last token
(`trunk: last`) is asked after every token of a response, so that each token has the amount by which it made
the response better or worse. All masks are made before the first step, over all data, so that they depend
neither on the batches nor on what the policy learns.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from equipoise.errors import ModelError
from equipoise.models.checkpoints import load_tensors, save_tensors
from equipoise.models.layout import Row, hidden_states, lay_out, response_logps, token_budget_batches
from equipoise.models.scorer import ScorerModel
from equipoise.objectives.message_wise import TokenPairs, masked_pairs, message_mask, score_increments
from equipoise.objectives.preference import implicit_accuracy, implicit_reward_margin
from equipoise.progress import track
from equipoise.training.margins import ScorerWeights, load_weighed
from equipoise.training.pair_order import OrderedPair
from equipoise.training.paired import PairLosses, task_on_pairs
from equipoise.training.policy_rows import PolicyBatch
from equipoise.training.trainer import Task


class MessageSettings(ScorerWeights):
    """Which tokens of a response are learned from.

    The scorer has `trunk: last`, and the tokenizer of the policy.
    """

    reward_weight: float = Field(default=0.0, ge=0)
    baseline: float | None = None
    """What the score of a token is compared with; the mean over all tokens where None."""
    threshold: float = Field(default=0.3, ge=0)
    """By how much a score must be beyond the baseline to end a message, in standard deviations."""


def message_scores(
    settings: MessageSettings,
    rows: Sequence[Row],
    path: Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    tokens_per_batch: int,
    device: str = "auto",
) -> list[Tensor]:
    """As `token_scores`, read from `path` if there, so that a resume does not load the scorer again.

    Raises:
        ModelError: The scorer cannot be asked token by token, or was not trained for a head that counts.
    """
    if not path.exists():
        model = load_weighed(settings.scorer, settings.reward_weight, settings.cost_weight, device)
        scores = token_scores(model, rows, settings, tokenizer=tokenizer, tokens_per_batch=tokens_per_batch)
        save_tensors(path, {"tokens": torch.cat(scores)})
    return _by_row(path, rows)


def _by_row(path: Path, rows: Sequence[Row]) -> list[Tensor]:
    """Read one number per response token, [tokens] of each row."""
    counts = [sum(map(len, row.responses)) for row in rows]
    return list(torch.split(load_tensors(path)["tokens"], counts))


@torch.no_grad()
def token_scores(
    model: ScorerModel,
    rows: Sequence[Row],
    settings: MessageSettings,
    *,
    tokenizer: PreTrainedTokenizerBase,
    tokens_per_batch: int = 4096,
) -> list[Tensor]:
    """By how much each response token changes the score of what stands before it, [tokens] of each row.

    Raises:
        ModelError: The scorer reads more than a last token, or has other tokens than the rows.
    """
    if model.card.trunk != "last":
        raise ModelError(f"{settings.scorer}: reads whole responses, trunk {model.card.trunk}; expected last")
    if model.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ModelError(f"{settings.scorer}: has another tokenizer than the policy; expected the same")
    model.eval()
    device = next(model.parameters()).device
    out: list[Tensor] = [torch.empty(0)] * len(rows)
    for group in track(token_budget_batches([row.length for row in rows], tokens_per_batch), "token scores"):
        batch = lay_out(model.trunk, [rows[i] for i in group]).to(device)
        rewards, costs = model.heads(hidden_states(model.trunk, batch).float())
        scores = settings.reward_weight * rewards - settings.cost_weight * costs  # [B, T]
        at = (batch.segments > 0).nonzero(as_tuple=True)  # in the order of the batch's response tokens
        is_first = torch.cat([batch.slots.new_ones(1), batch.slots.diff()]) > 0
        before = scores[batch.rows, batch.predictors][is_first]
        found = score_increments(scores[at], batch.slots, before).cpu()
        counts = [sum(map(len, rows[i].responses)) for i in group]
        for i, mine in zip(group, torch.split(found, counts), strict=True):
            out[i] = mine
    return out


def kept_tokens(
    scores: Sequence[Tensor], rows: Sequence[Row], settings: MessageSettings, chosen: Sequence[bool]
) -> list[Tensor]:
    """Which response tokens of each row count, bool; `chosen` says of each response of a row what it is.

    For pairs it is (True, False).
    """
    lengths = torch.tensor([len(response) for row in rows for response in row.responses])
    slots = torch.arange(len(lengths)).repeat_interleave(lengths)
    kept = message_mask(
        torch.cat(list(scores)),
        slots,
        torch.tensor([*chosen] * len(rows)),
        baseline=settings.baseline,
        threshold=settings.threshold,
    )
    return list(torch.split(kept, [len(row_scores) for row_scores in scores]))


class MessageLosses(PairLosses):
    """The policy under training: one message-wise loss per pair."""

    def __init__(self, policy: nn.Module, loss: Callable[[TokenPairs], Tensor], beta: float) -> None:
        """Wrap the policy and the objective; `beta` scales the implicit reward that is logged."""
        super().__init__(policy, beta)
        self.loss = loss

    def forward(self, batch: PolicyBatch) -> Tensor:
        """Loss of each pair times its weight, [B].

        The extras are the reference's log-probabilities and the mask, [N] each, and the weights, [B].
        """
        found = response_logps(self.policy, batch.rows)
        reference, kept, weight = batch.extras
        slots = torch.arange(len(found.lengths), device=kept.device).repeat_interleave(found.lengths)
        tokens = TokenPairs(found.tokens, reference, slots, kept, len(weight))
        pair = masked_pairs(tokens)
        self.see(implicit_reward_margin(pair, beta=self.beta), implicit_accuracy(pair))
        return self.loss(tokens) * weight


def message_task(
    losses: MessageLosses,
    pairs: Sequence[OrderedPair],
    reference: Sequence[Tensor],
    kept: Sequence[Tensor],
) -> Task:
    """Return what to train on pairs; `reference` and `kept` tell of the tokens of chosen and rejected."""
    weight = torch.tensor([one.weight for one in pairs])

    def collate(chosen: Sequence[int]) -> PolicyBatch:
        tokens = (torch.cat([known[i] for i in chosen]) for known in (reference, kept))
        return PolicyBatch(tuple(pairs[i].row for i in chosen), (*tokens, weight[list(chosen)]))

    return task_on_pairs(losses, pairs, collate)
