"""Reward and cost that two aligned policies imply: beta (log pi - log pi_ref) of each.

A policy that DPO aligned with a preference is, but for a term of the prompt alone, a reward for it (Rafailov
et al. 2023). One aligned for help and one aligned for safety, from the same model, therefore score as a
scorer does, and none has to be trained (PeCAN; Huang et al. 2024).
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from equipoise.config import Config, ModelRef
from equipoise.errors import DataError, ModelError
from equipoise.models.backbone import Backbone, load_causal, positions_of
from equipoise.models.chat import chat_ids, encode_response
from equipoise.models.layout import Row, response_logps, token_budget_batches
from equipoise.objectives.multi_objective import implicit_rewards
from equipoise.progress import track
from equipoise.records import Exchange, Score, messages_of
from equipoise.rewards.learned import RewardCost

_TOKENS_PER_BATCH = 2048


class PolicySettings(Config):
    """Two policies, and the model that both were aligned from."""

    reference: ModelRef
    helpful: ModelRef
    """Its implicit reward is the reward."""
    safe: ModelRef
    """Its implicit reward is the cost, with the other sign."""
    beta: float = Field(default=0.1, gt=0)
    """Of both trainings."""


class ImplicitScorer:
    """Calling it gives the implicit reward and cost of each response; three models are in memory.

    A score is known up to a constant of its prompt: it compares responses to one prompt, and a cost of 0 is
    no border of what is unsafe. The models compute in 32 bits unless told otherwise: a score is a small
    difference of two large numbers.
    """

    def __init__(self, settings: PolicySettings, device: str = "auto", dtype: str = "auto") -> None:
        """Load the three models; adapters are folded into their base.

        Raises:
            ModelError: They do not have the same tokenizer.
        """
        self.beta = settings.beta
        number = "float32" if dtype == "auto" else dtype
        refs = {name: getattr(settings, name) for name in ("reference", "helpful", "safe")}
        self.models = {
            name: load_causal(ref, dtype=number, device=device, merge=True) for name, ref in refs.items()
        }
        first = self.models["reference"].tokenizer
        for name, backbone in self.models.items():
            if backbone.tokenizer.get_vocab() != first.get_vocab():
                raise ModelError(f"policies.{name}: {refs[name]}: has another tokenizer than the reference")

    def require(self, exchange: Exchange) -> None:
        """Raise DataError where a prompt and its response are longer than what a model takes."""
        row = self._row(exchange)
        for name, backbone in self.models.items():
            most = positions_of(backbone.model)
            if most is not None and row.length > most:
                raise DataError(
                    f"response: has {row.length} tokens with its prompt; expected at most the {most} that"
                    f" policies.{name} takes"
                )

    @torch.no_grad()
    def __call__(self, exchanges: Sequence[Exchange]) -> list[RewardCost]:
        """Score each response in the context of its prompt."""
        if not exchanges:
            return []
        rows = [self._row(exchange) for exchange in exchanges]
        reference, helpful, safe = (_logps(backbone, rows, name) for name, backbone in self.models.items())
        rewards, safety = (implicit_rewards(own, reference, beta=self.beta) for own in (helpful, safe))
        if not all(torch.isfinite(part).all() for part in (rewards, safety)):
            raise ModelError("policies: a log-probability is not finite")
        return [
            RewardCost(Score(reward, "higher_is_better"), Score(-safe, "higher_is_worse"))
            for reward, safe in zip(rewards.tolist(), safety.tolist(), strict=True)
        ]

    def _row(self, exchange: Exchange) -> Row:
        tokenizer = self.models["reference"].tokenizer
        prompt = chat_ids(tokenizer, messages_of(exchange.prompt))
        return Row(prompt, [encode_response(tokenizer, exchange.response)])


def _logps(backbone: Backbone, rows: Sequence[Row], name: str) -> Tensor:
    """Log-probability of each response, nats, [R] in float64 on the CPU."""
    out = torch.zeros(len(rows), dtype=torch.float64)
    for group in track(token_budget_batches([row.length for row in rows], _TOKENS_PER_BATCH), name):
        out[group] = response_logps(backbone.model, [rows[i] for i in group]).sums.double().cpu()
    return out
