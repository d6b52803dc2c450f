"""Align a policy on pairs: `equipoise train preference --set pairs=[FILE] --set objective=safe_dpo`.

A pair is one row: the prompt once, both responses behind it. The reference is the model as it was
loaded, so its log-probabilities are computed once, before the first step, and kept for a resume.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from equipoise.config import Config, InputPath, ModelRef, bind
from equipoise.data.io import read_records
from equipoise.errors import DataError
from equipoise.lineage import Run, Step
from equipoise.models.backbone import load_causal
from equipoise.models.checkpoints import load_tensors, save_tensors
from equipoise.models.layout import Row, response_logps, token_budget_batches
from equipoise.objectives.preference import (
    PREFERENCE_LOSSES,
    PairLogps,
    implicit_accuracy,
    implicit_reward_margin,
    safe_dpo_order,
)
from equipoise.progress import track
from equipoise.records import Pair
from equipoise.training.cards import model_card
from equipoise.training.policy import LoraSettings, Tune, prepare, save_policy
from equipoise.training.policy_rows import PolicyBatch, make_row
from equipoise.training.trainer import OptimSettings, Task, fit


class PreferenceOptim(OptimSettings):
    """How a policy is optimised on pairs, unless said otherwise."""

    lr: float = Field(default=5e-5, gt=0)
    tokens_per_micro_batch: int = Field(default=2048, ge=1)


class PreferenceConfig(Config):
    """Settings of `train preference`."""

    pairs: tuple[InputPath, ...] = Field(min_length=1)
    model: ModelRef = "smollm2-135m"
    objective: str = "safe_dpo"
    objective_params: dict[str, float] = {}
    """Keyword parameters of the objective, for example beta."""
    preference: Literal["better", "safer", "overall"] = "better"
    """Which label says who is chosen; SafeDPO reorders it by safety."""
    tune: Tune = "lora"
    lora: LoraSettings = LoraSettings()
    max_pairs: int | None = Field(default=None, ge=1)
    """Take only this many pairs, in a seeded order."""
    max_tokens: int = Field(default=512, ge=8)
    """Pairs with more tokens (prompt and both responses) are left out and counted; none is cut."""
    optim: PreferenceOptim = PreferenceOptim()


class OrderedPair(NamedTuple):
    """A pair as the loss sees it."""

    row: Row
    """Responses are [chosen, rejected]."""
    chosen_unsafe: bool
    rejected_unsafe: bool


class PreferenceLosses(nn.Module):
    """The policy under training: one loss per pair."""

    def __init__(self, policy: nn.Module, loss: Callable[[PairLogps], Tensor], beta: float) -> None:
        """Wrap the policy and the objective; `beta` scales the implicit reward that is logged."""
        super().__init__()
        self.policy = policy
        self.loss = loss
        self.beta = beta
        self.seen: list[Tensor] = []

    def forward(self, batch: PolicyBatch) -> Tensor:
        """Loss of each pair, [B]."""
        pair = self.logps(batch)
        margin = implicit_reward_margin(pair, beta=self.beta)
        self.seen.append(torch.stack([margin, implicit_accuracy(pair)]).detach())
        return self.loss(pair)

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
        reference, unsafe = batch.extras
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
        )


def train_preference(
    config: PreferenceConfig, run: Run, loss: Callable[[PairLogps], Tensor] | None = None
) -> None:
    """Align a policy into `run.out`; `loss` replaces the configured objective by a function of yours."""
    objective = loss or bind(PREFERENCE_LOSSES, config.objective, config.objective_params)
    pairs = [record for path in config.pairs for record in read_records(path, Pair)]
    run.licences |= {pair.licence for pair in pairs}
    backbone = load_causal(config.model, device=config.optim.device, merge=True)
    ordered, left_out = order_pairs(backbone.tokenizer, pairs, config)
    if not ordered:
        raise DataError(f"pairs: none is left to train on ({_told(left_out)})")
    policy = prepare(backbone, config.tune, config.lora, config.optim.seed)
    losses = PreferenceLosses(policy, objective, config.objective_params.get("beta", 0.1))
    unsafe = torch.tensor([float(u) for pair in ordered for u in (pair.chosen_unsafe, pair.rejected_unsafe)])
    reference = _reference_logps(policy, ordered, run.scratch, config.optim.tokens_per_micro_batch)

    def collate(chosen: Sequence[int]) -> PolicyBatch:
        both = torch.tensor([2 * i + k for i in chosen for k in (0, 1)])
        return PolicyBatch(tuple(ordered[i].row for i in chosen), (reference[both], unsafe[both]))

    lengths = [pair.row.length for pair in ordered]
    task = Task(losses, lengths, [1] * len(ordered), collate, losses.metrics)
    fit(task, config.optim, run, label=f"training policy ({config.objective})")
    save_policy(backbone, policy, run.out)
    run.notes |= {"rows": len(ordered), "left_out": dict(left_out), "tokens": sum(lengths)}
    model_card(run, "Policy", config.model, f"aligned by {config.objective} on {len(ordered)} pairs")


def order_pairs(
    tokenizer: Any, pairs: Sequence[Pair], config: PreferenceConfig
) -> tuple[list[OrderedPair], Counter[str]]:
    """Choose and order pairs for the objective; what is left out is counted by its reason."""
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(config.optim.seed)).tolist()
    kept: list[OrderedPair] = []
    left_out: Counter[str] = Counter()
    for index in order:
        if config.max_pairs is not None and len(kept) == config.max_pairs:
            break
        pair = pairs[index]
        unsafe = [None if answer.is_safe is None else not answer.is_safe for answer in pair.answers]
        preferred = getattr(pair, config.preference)
        if config.objective == "safe_dpo":
            chosen = safe_dpo_order(preferred, unsafe[0], unsafe[1])
            reason = "both unsafe" if unsafe == [True, True] else "no preference or safety label"
        else:
            chosen = preferred if preferred in (0, 1) else None
            reason = "no preference, or a tie"
        if chosen is None:
            left_out[reason] += 1
            continue
        answers = (pair.answers[chosen], pair.answers[1 - chosen])
        row = make_row(tokenizer, pair.prompt, [answer.response for answer in answers])
        if row.length > config.max_tokens:
            left_out[f"over {config.max_tokens} tokens"] += 1
            continue
        kept.append(OrderedPair(row, bool(unsafe[chosen]), bool(unsafe[1 - chosen])))
    return kept, left_out


def _reference_logps(policy: nn.Module, pairs: Sequence[OrderedPair], scratch: Path, budget: int) -> Tensor:
    """Log-probabilities of [chosen, rejected] of each pair under the model as loaded, [2N]."""
    path = scratch / "reference.safetensors"
    if path.exists():
        return load_tensors(path)["logps"]
    lengths = [pair.row.length for pair in pairs]
    out = torch.zeros(len(pairs), 2)
    policy.eval()
    with torch.no_grad():
        for group in track(token_budget_batches(lengths, budget), "reference"):
            out[group] = response_logps(policy, [pairs[i].row for i in group]).sums.float().cpu().view(-1, 2)
    save_tensors(path, {"logps": out.flatten()})
    return out.flatten()


def _told(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "the files are empty"


TRAIN_PREFERENCE = Step("train.preference", 1, train_preference, config=PreferenceConfig)
