"""Margin rewards of pairs: what else is wished for, from a scorer or from a policy aligned with it.

`multi_objective.py` says what they are for: MODPO weighs them against the label of a pair, and `soft_dpo`
learns from them alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from equipoise.config import Config, InputPath, ModelRef
from equipoise.errors import ModelError
from equipoise.models.backbone import load_causal
from equipoise.models.features import TextPair, embed, encode_pair
from equipoise.models.layout import Row, token_budget_batches
from equipoise.models.scorer import RowBatch, ScorerModel, load_scorer_model
from equipoise.objectives.multi_objective import implicit_rewards
from equipoise.progress import track
from equipoise.records import Conversation, text_of
from equipoise.training.policy_rows import make_row
from equipoise.training.reference import reference_logps


class MarginSettings(Config):
    """Where margin rewards come from: a scorer, or a policy and its implicit reward."""

    scorer: InputPath | None = None
    """Margin = reward_weight reward - cost_weight cost; for `soft_dpo` the latter is the multiplier."""
    reward_weight: float = 0.0
    cost_weight: float = Field(default=1.0, ge=0)
    policy: ModelRef | None = None
    """Aligned from the very model that is trained here, for example by DPO on `safer`."""
    policy_beta: float = Field(default=0.1, gt=0)
    """beta of that policy's training."""

    @model_validator(mode="after")
    def _one_source(self) -> "MarginSettings":
        if (self.scorer is None) == (self.policy is None):
            got = "none" if self.scorer is None else "both"
            raise ValueError(f"margin: expected a scorer or a policy, got {got}")
        return self


class ScorerWeights(Config):
    """A scorer that is asked for one number: reward_weight reward - cost_weight cost."""

    scorer: InputPath
    reward_weight: float = Field(default=1.0, ge=0)
    cost_weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _has_a_score(self) -> "ScorerWeights":
        if not self.reward_weight and not self.cost_weight:
            raise ValueError("reward_weight and cost_weight are 0; expected one above 0")
        return self


class Answered(NamedTuple):
    """A prompt and responses to it; of a pair, chosen and rejected."""

    prompt: Conversation
    responses: tuple[str, ...]


def scorer_margins(settings: MarginSettings, pairs: Sequence[Answered], device: str = "auto") -> Tensor:
    """Margin reward of each pair from a scorer, [B] on the CPU.

    Raises:
        ModelError: The scorer was not trained for a head that is asked for.
    """
    if settings.scorer is None:
        raise ModelError("margin.scorer: got none; expected a folder of `equipoise train scorer`")
    model = load_weighed(settings.scorer, settings.reward_weight, settings.cost_weight, device)
    total = weighed_scores(model, pairs, settings.reward_weight, settings.cost_weight)
    return total[0::2] - total[1::2]


def load_weighed(folder: Path, reward_weight: float, cost_weight: float, device: str) -> ScorerModel:
    """Load a scorer; one that was not trained for a head whose weight is not 0 raises ModelError."""
    model = load_scorer_model(folder, device)
    wanted: dict[Literal["reward", "cost"], float] = {"reward": reward_weight, "cost": cost_weight}
    for head, weight in wanted.items():
        if weight and head not in model.card.trained:
            raise ModelError(f"{folder}: was not trained for {head}; its heads: {model.card.trained}")
    return model


@torch.no_grad()
def weighed_scores(
    model: ScorerModel, asked: Sequence[Answered], reward_weight: float, cost_weight: float
) -> Tensor:
    """reward_weight reward - cost_weight cost of every response in turn, flat, on the CPU.

    Each prompt has as many responses as the first.
    """
    model.eval()
    if model.card.trunk == "pooled":
        texts = [TextPair(text_of(one.prompt), text) for one in asked for text in one.responses]
        features = embed(model.trunk, [encode_pair(model.tokenizer, text) for text in texts])  # type: ignore[arg-type]
        rewards, costs = model(features.to(next(model.heads.parameters()).device))
        total: Tensor = reward_weight * rewards - cost_weight * costs
        return total.cpu()
    rows = [make_row(model.tokenizer, one.prompt, one.responses) for one in asked]
    groups = token_budget_batches([row.length for row in rows], 4096)
    parts: list[Tensor] = []
    for group in track(groups, "scoring responses"):
        rewards, costs = model(RowBatch(tuple(rows[i] for i in group)))
        parts.append((reward_weight * rewards - cost_weight * costs).view(len(group), -1).cpu())
    place = torch.tensor([i for group in groups for i in group]).argsort()
    return torch.cat(parts)[place].flatten()


def policy_margins(
    settings: MarginSettings,
    rows: Sequence[Row],
    reference: Sequence[Tensor],
    path: Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    tokens_per_batch: int,
    device: str = "auto",
) -> Tensor:
    """Margin reward of each pair from a policy: beta (log pi - log pi_ref), chosen less rejected, [B].

    Args:
        settings: Name the policy.
        rows: Responses are [chosen, rejected].
        reference: [chosen, rejected] log-probabilities of each row under the reference, nats.
        path: Keeps the policy's log-probabilities for a resume.
        tokenizer: That the rows were made with; the policy's has to be the same.
        tokens_per_batch: Tokens of one forward pass.
        device: Where to compute.
    """
    if settings.policy is None:
        raise ModelError("margin.policy: got none; expected a policy aligned from the same model")
    backbone = load_causal(settings.policy, device=device, merge=True)
    if backbone.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"margin.policy: {settings.policy}: has another tokenizer than the model trained here"
        )
    logps = torch.stack(reference_logps(backbone.model, rows, path, tokens_per_batch=tokens_per_batch))
    implicit = implicit_rewards(logps, torch.stack(list(reference)), beta=settings.policy_beta)
    return implicit[:, 0] - implicit[:, 1]
