"""Reward and cost of responses from a trained scorer."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.errors import ModelError
from equipoise.models.chat import chat_ids, encode_response
from equipoise.models.features import PooledFeatures, TextPair, embed, encode_pair
from equipoise.models.layout import Row, token_budget_batches
from equipoise.models.scorer import RowBatch, ScorerModel, load_scorer_model
from equipoise.progress import track
from equipoise.records import Exchange, Score, messages_of, text_of

_TOKENS_PER_BATCH = 4096


class RewardCost(NamedTuple):
    """Both scores of one response; None where the scorer was not trained for it."""

    reward: Score | None
    """Higher is better."""
    cost: Score | None
    """Higher is worse; above 0 means unsafe."""


class Scorer:
    """A trained scorer; calling it gives reward and cost of each response."""

    def __init__(self, model: ScorerModel) -> None:
        """Use a loaded model; it is put in evaluation mode."""
        self.model = model.eval()
        self.card = model.card

    @torch.no_grad()
    def __call__(self, exchanges: Sequence[Exchange]) -> list[RewardCost]:
        """Score each response in the context of its prompt."""
        if not exchanges:
            return []
        features = self._features(exchanges)
        rewards, costs = self.model(features.to(next(self.model.heads.parameters()).device))
        if not (torch.isfinite(rewards).all() and torch.isfinite(costs).all()):
            raise ModelError("the scorer's answer is not finite")
        return [self._pair(r, c) for r, c in zip(rewards.tolist(), costs.tolist(), strict=True)]

    def _pair(self, reward: float, cost: float) -> RewardCost:
        return RewardCost(
            Score(reward, self.card.reward_polarity) if "reward" in self.card.trained else None,
            Score(cost, self.card.cost_polarity) if "cost" in self.card.trained else None,
        )

    def _features(self, exchanges: Sequence[Exchange]) -> Tensor:
        trunk, tokenizer = self.model.trunk, self.model.tokenizer
        if isinstance(trunk, PooledFeatures):
            texts = [TextPair(text_of(e.prompt), e.response) for e in exchanges]
            return embed(trunk, [encode_pair(tokenizer, text) for text in texts], label="scoring")
        rows = [
            Row(chat_ids(tokenizer, messages_of(e.prompt)), [encode_response(tokenizer, e.response)])
            for e in exchanges
        ]
        lengths = [row.length for row in rows]
        out = torch.zeros(len(rows), self.model.heads.norm.normalized_shape[0])
        for group in track(token_budget_batches(lengths, _TOKENS_PER_BATCH), "scoring"):
            found = self.model.features(RowBatch(tuple(rows[i] for i in group)))
            out[group] = found.float().cpu()
        return out


def load_scorer(folder: Path, device: str = "auto") -> Scorer:
    """Load a scorer folder written by `equipoise train scorer`."""
    return Scorer(load_scorer_model(folder, device))
