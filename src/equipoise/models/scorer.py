"""The scorer: reward and cost of a response from one pass over one backbone.

Polarity is part of the checkpoint: reward is higher is better, cost is higher is worse and above 0
means unsafe. A folder that says otherwise does not load.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from equipoise.errors import ModelError
from equipoise.models.backbone import Backbone, add_lora, load_causal, load_encoder
from equipoise.models.checkpoints import (
    kind_of,
    load_card,
    load_into,
    load_tensors,
    require_all,
    save_card,
    save_tensors,
    trainable,
)
from equipoise.models.features import PairBatch, PooledFeatures
from equipoise.models.heads import ScorerHeads, Scores
from equipoise.models.layout import Row, response_hidden
from equipoise.models.top import top_names
from equipoise.taxonomy import Taxonomy

Trunk = Literal["pooled", "last"]
"""What a head reads of a response: the mean of its tokens over several layers of any model, or a
language model's state at its last token, as Safe RLHF does."""


_ENSEMBLE = "equipoise-scorer-ensemble"


class ScorerCard(BaseModel):
    """What a scorer folder says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["equipoise-scorer"] = "equipoise-scorer"
    version: Literal[2] = 2
    backbone: str
    trunk: Trunk
    layers: int = Field(ge=1)
    depth: int | None = None
    hidden: int = Field(ge=0)
    dropout: float = 0.0
    top_layers: int = Field(default=0, ge=0)
    """Highest layers of the trunk that were tuned; they lie with the heads."""
    lora_rank: int = Field(default=0, ge=0)
    own_trunk: bool = False
    """True where the backbone's own weights were tuned; they then lie with the heads."""
    reward_polarity: Literal["higher_is_better"] = "higher_is_better"
    cost_polarity: Literal["higher_is_worse"] = "higher_is_worse"
    trained: tuple[Literal["reward", "cost"], ...]
    """Heads that saw labels; the others are random and refuse to score."""
    taxonomy: Taxonomy | None = None
    """Of the categories that have a cost of their own, the scorer's own copy; None where none has."""


class Units(BaseModel):
    """What makes a scorer's numbers comparable with those of others: (number - middle) / deviation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    middle: float = Field(allow_inf_nan=False)
    deviation: float = Field(gt=0, allow_inf_nan=False)
    """Over the mean deviation of all the scorers, so that joint numbers keep the size of single ones."""


class EnsembleCard(BaseModel):
    """What a folder of several scorers, which speak as one, says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["equipoise-scorer-ensemble"] = "equipoise-scorer-ensemble"
    version: Literal[1] = 1
    reward: Literal["mean", "worst"]
    cost: Literal["mean", "worst"]
    rewards: tuple[Units, ...]
    """Of each scorer, in the order of their folders `0`, `1`, ...; none where one of them has no reward."""
    costs: tuple[Units, ...]
    """Likewise; their middle is 0, so that the sign of a cost stays."""
    reward_polarity: Literal["higher_is_better"] = "higher_is_better"
    cost_polarity: Literal["higher_is_worse"] = "higher_is_worse"
    taxonomy: None = None
    """The costs of single categories are not joined."""

    @model_validator(mode="after")
    def _fits_together(self) -> "EnsembleCard":
        if {len(self.rewards), len(self.costs)} not in (
            {0, self.members},
            {self.members},
        ) or self.members < 2:
            raise ValueError(
                f"rewards, costs: got {len(self.rewards)} and {len(self.costs)};"
                " expected two or more, as many of each or none of one"
            )
        if any(unit.middle for unit in self.costs):
            raise ValueError("costs: got a middle that is not 0; expected 0, which keeps the sign")
        return self

    @property
    def members(self) -> int:
        """How many scorers there are."""
        return max(len(self.rewards), len(self.costs))

    @property
    def trained(self) -> tuple[Literal["reward", "cost"], ...]:
        """The heads that all of them have."""
        return (*(("reward",) if self.rewards else ()), *(("cost",) if self.costs else ()))


class RowBatch(NamedTuple):
    """Token rows for a decoder: each prompt with its responses side by side."""

    rows: tuple[Row, ...]

    def to(self, device: torch.device) -> "RowBatch":
        """Return itself; rows become tensors where the model is."""
        return self


class ScorerModel(nn.Module):
    """Backbone and the two heads in one module."""

    def __init__(self, card: ScorerCard, backbone: Backbone) -> None:
        """Put fresh heads on `backbone`, and adapters where the card has a rank."""
        super().__init__()
        self.card = card
        self.tokenizer: Any = backbone.tokenizer
        if card.trunk == "pooled":
            self.trunk: nn.Module = PooledFeatures(backbone.model, card.layers)
            width = self.trunk.width
        else:
            tuned = add_lora(backbone.model, rank=card.lora_rank) if card.lora_rank else backbone.model
            self.trunk = tuned
            width = int(backbone.model.config.hidden_size)
        categories = 0 if card.taxonomy is None else len(card.taxonomy.names)
        self.heads = ScorerHeads(width, card.hidden, card.dropout, categories)

    def top_names(self) -> list[str]:
        """Names of the tensors of the trunk's tuned top layers, as the trunk has them."""
        return top_names(self.trunk, self.card.top_layers) if self.card.top_layers else []

    def features(self, inputs: PairBatch | RowBatch | Tensor) -> Tensor:
        """Features of each response, [R, F]; features computed before pass through."""
        if isinstance(inputs, Tensor):
            return inputs
        if isinstance(inputs, PairBatch):
            found: Tensor = self.trunk(inputs)
            return found
        return response_hidden(self.trunk, inputs.rows)

    def forward(self, inputs: PairBatch | RowBatch | Tensor) -> tuple[Tensor, Tensor]:
        """Reward [R] and cost [R] of each response."""
        scores: tuple[Tensor, Tensor] = self.heads(self.features(inputs).float())
        return scores

    def every_score(self, inputs: PairBatch | RowBatch | Tensor) -> Scores:
        """Reward [R], cost [R] and the costs of the categories [R, C] of each response."""
        return self.heads.every_score(self.features(inputs).float())

    def save(self, folder: Path) -> None:
        """Write what was trained, and the card."""
        save_tensors(folder / "weights.safetensors", trainable(self))
        in_part = self.card.lora_rank or self.card.top_layers
        tuned = not in_part and any(p.requires_grad for p in self.trunk.parameters())
        save_card(folder, self.card.model_copy(update={"own_trunk": tuned}))


def load_trunk(
    kind: Trunk, ref: str, device: str = "auto", depth: int | None = None, dtype: str = "auto"
) -> Backbone:
    """Load the backbone of a scorer, of pooled ones the first `depth` layers."""
    if kind == "pooled":
        return load_encoder(ref, dtype=dtype, device=device, depth=depth)
    return load_causal(ref, dtype=dtype, device=device, merge=True)


def read_scorer_card(folder: Path) -> ScorerCard | EnsembleCard:
    """Read what a folder of one scorer, or of several, says of itself; another kind raises ModelError."""
    if kind_of(folder) == _ENSEMBLE:
        return load_card(folder, EnsembleCard)
    return load_card(folder, ScorerCard)


def single_card(folder: Path) -> ScorerCard:
    """Read what a folder of one scorer says of itself; several, or another kind, raise ModelError."""
    card = read_scorer_card(folder)
    if isinstance(card, EnsembleCard):
        raise ModelError(
            f"{folder}: joins {card.members} scorers; expected a single one"
            " (for online training several go in scoring.scorer)"
        )
    return card


def load_scorer_model(folder: Path, device: str = "auto", dtype: str = "auto") -> ScorerModel:
    """Load a scorer that `train scorer` wrote; another polarity or kind raises ModelError."""
    card = single_card(folder)
    model = ScorerModel(card, load_trunk(card.trunk, card.backbone, device, card.depth, dtype))
    weights = folder / "weights.safetensors"
    tensors = load_tensors(weights)
    load_into(model, tensors, str(weights))
    own = [name for name, _ in model.named_parameters() if card.own_trunk or _is_ours(name)]
    own += [f"trunk.{name}" for name in model.top_names()]
    require_all(tensors, own, str(weights))
    return model.to(next(model.trunk.parameters()).device).eval()


def _is_ours(name: str) -> bool:
    """Whether a tensor is never the backbone's own, so that every scorer folder must hold it."""
    return name.startswith("heads.") or ".lora_" in name
