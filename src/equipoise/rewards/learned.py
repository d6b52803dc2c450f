"""Reward and cost of responses from a trained scorer, or from several that speak as one."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.errors import ModelError
from equipoise.models.chat import chat_ids, encode_response
from equipoise.models.features import PooledFeatures, TextPair, embed, encode_pair
from equipoise.models.layout import Row, token_budget_batches
from equipoise.models.scorer import (
    EnsembleCard,
    RowBatch,
    ScorerModel,
    Units,
    load_scorer_model,
    read_scorer_card,
)
from equipoise.progress import track
from equipoise.records import Exchange, Score, messages_of, text_of

_TOKENS_PER_BATCH = 4096


class RewardCost(NamedTuple):
    """Both scores of one response; None where the scorer was not trained for it."""

    reward: Score | None
    """Higher is better."""
    cost: Score | None
    """Higher is worse; above 0 means unsafe."""
    category_costs: dict[str, Score] | None = None
    """Category -> its cost, above 0 means of the category; None of a scorer without such heads."""
    truncated: bool = False
    """Whether the end of the response did not fit the scorer's window and was not read."""


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
        features, is_cut = self._features(exchanges)
        scores = self.model.every_score(features.to(next(self.model.heads.parameters()).device))
        if not all(torch.isfinite(part).all() for part in scores):
            raise ModelError("the scorer's answer is not finite")
        rows = zip(*(part.tolist() for part in scores), strict=True)
        return [self._of(*each)._replace(truncated=cut) for each, cut in zip(rows, is_cut, strict=True)]

    def _of(self, reward: float, cost: float, categories: Sequence[float]) -> RewardCost:
        card = self.card
        return RewardCost(
            Score(reward, card.reward_polarity) if "reward" in card.trained else None,
            Score(cost, card.cost_polarity) if "cost" in card.trained else None,
            {
                name: Score(c, card.cost_polarity)
                for name, c in zip(card.taxonomy.names, categories, strict=True)
            }
            if card.taxonomy
            else None,
        )

    def _features(self, exchanges: Sequence[Exchange]) -> tuple[Tensor, list[bool]]:
        """Features [R, F], and of each row whether the response was cut."""
        trunk, tokenizer = self.model.trunk, self.model.tokenizer
        if isinstance(trunk, PooledFeatures):
            texts = [TextPair(text_of(e.prompt), e.response) for e in exchanges]
            windows = [encode_pair(tokenizer, text) for text in texts]
            return embed(trunk, windows, label="scoring"), [window.truncated for window in windows]
        rows = [
            Row(chat_ids(tokenizer, messages_of(e.prompt)), [encode_response(tokenizer, e.response)])
            for e in exchanges
        ]
        lengths = [row.length for row in rows]
        out = torch.zeros(len(rows), self.model.heads.norm.normalized_shape[0])
        for group in track(token_budget_batches(lengths, _TOKENS_PER_BATCH), "scoring"):
            found = self.model.features(RowBatch(tuple(rows[i] for i in group)))
            out[group] = found.float().cpu()
        return out, [False] * len(rows)


class ScorerEnsemble:
    """Several scorers as one, which is harder to deceive than any of them (Coste et al. 2023).

    Each is measured by its own spread. Of reward and cost either the mean counts, or what the most
    severe of them says: the lowest reward, the highest cost.
    """

    def __init__(self, card: EnsembleCard, members: Sequence[Scorer]) -> None:
        """Use loaded scorers, in the order of the card."""
        self.card, self.members = card, tuple(members)

    def __call__(self, exchanges: Sequence[Exchange]) -> list[RewardCost]:
        """Score each response in the context of its prompt, by all of them."""
        said = [member(exchanges) for member in self.members]
        rewards = _in_units([[one.reward for one in each] for each in said], self.card.rewards)
        costs = _in_units([[one.cost for one in each] for each in said], self.card.costs)
        rewards = rewards.mean(dim=0) if self.card.reward == "mean" else rewards.amin(dim=0)
        costs = costs.mean(dim=0) if self.card.cost == "mean" else costs.amax(dim=0)
        has_reward, has_cost = (head in self.card.trained for head in ("reward", "cost"))
        return [
            RewardCost(
                Score(reward, self.card.reward_polarity) if has_reward else None,
                Score(cost, self.card.cost_polarity) if has_cost else None,
                truncated=any(one.truncated for one in row),
            )
            for reward, cost, row in zip(
                rewards.tolist(), costs.tolist(), zip(*said, strict=True), strict=True
            )
        ]


def _in_units(said: Sequence[Sequence[Score | None]], units: Sequence[Units]) -> Tensor:
    """What each scorer says in its own units, [K, R]; zeros where a head is not common to all."""
    if not units:
        return torch.zeros(len(said), len(said[0]))
    values = torch.tensor([[score.value for score in each if score is not None] for each in said])
    middle, deviation = (
        torch.tensor([[getattr(unit, name)] for unit in units]) for name in ("middle", "deviation")
    )
    return (values - middle) / deviation


def load_scorer(folder: Path, device: str = "auto", dtype: str = "auto") -> Scorer | ScorerEnsemble:
    """Load a folder of `equipoise train scorer`, or one of several by `equipoise models ensemble`.

    Args:
        folder: The scorer's.
        device: auto, cpu, cuda or mps.
        dtype: Number format of the trunk: auto (bfloat16 on a GPU that computes in it), float32 or bfloat16.
    """
    card = read_scorer_card(folder)
    if isinstance(card, EnsembleCard):
        members = [Scorer(load_scorer_model(folder / str(k), device, dtype)) for k in range(card.members)]
        for k, member in enumerate(members):
            if missing := set(card.trained) - set(member.card.trained):
                raise ModelError(f"{folder / str(k)}: was not trained for {', '.join(sorted(missing))}")
        return ScorerEnsemble(card, members)
    return Scorer(load_scorer_model(folder, device, dtype))
