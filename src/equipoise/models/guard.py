"""The guard model: an encoder's features, and heads for severity, categories and refusal."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from equipoise.models.backbone import Backbone, load_encoder, quiet
from equipoise.models.checkpoints import (
    load_card,
    load_into,
    load_tensors,
    require_all,
    save_card,
    save_tensors,
)
from equipoise.models.features import PairBatch, PooledFeatures
from equipoise.models.heads import GuardHeads, GuardLogits
from equipoise.taxonomy import Taxonomy

Target = Literal["prompt", "response"]

ENCODER = "encoder"
"""Folder of a tuned encoder inside a guard's."""


class GuardCard(BaseModel):
    """What a guard folder says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["equipoise-guard"] = "equipoise-guard"
    version: Literal[2] = 2
    taxonomy: Taxonomy
    """The guard's own copy: a changed file elsewhere changes nothing here."""
    backbone: str
    """What it was built on."""
    own_encoder: bool = False
    """True where the encoder was tuned too; it then lies in `encoder/`, a model folder like any other."""
    layers: int = Field(ge=1)
    depth: int | None = None
    hidden: int = Field(ge=1)
    dropout: float = 0.0
    targets: tuple[Target, ...]
    """What it was trained to judge."""
    knows_refusals: bool
    unsafe_threshold: float = Field(default=0.5, ge=0, le=1)
    category_threshold: float = Field(default=0.5, ge=0, le=1)
    refusal_threshold: float = Field(default=0.5, ge=0, le=1)


class GuardModel(nn.Module):
    """Encoder, pooling and heads in one module."""

    def __init__(self, card: GuardCard, backbone: Backbone) -> None:
        """Put fresh heads for the card's taxonomy on `backbone`."""
        super().__init__()
        self.card = card
        self.tokenizer: Any = backbone.tokenizer
        self.trunk = PooledFeatures(backbone.model, card.layers)
        self.heads = GuardHeads(
            self.trunk.width,
            card.hidden,
            categories=len(card.taxonomy.categories),
            thresholds=len(card.taxonomy.severities) - 1,
            dropout=card.dropout,
        )

    def forward(self, inputs: PairBatch | Tensor) -> GuardLogits:
        """Logits for padded pairs, or for features [B, F] that were computed before."""
        features = inputs if isinstance(inputs, Tensor) else self.trunk(inputs)
        logits: GuardLogits = self.heads(features.float())
        return logits

    def save(self, folder: Path) -> None:
        """Write what was trained, and the card; a tuned encoder serves as a backbone elsewhere too."""
        tuned = any(parameter.requires_grad for parameter in self.trunk.parameters())
        if tuned:
            encoder: Any = self.trunk.encoder
            with quiet():
                encoder.save_pretrained(folder / ENCODER)
            self.tokenizer.save_pretrained(folder / ENCODER)
        save_tensors(folder / "weights.safetensors", self.heads.state_dict())
        save_card(folder, self.card.model_copy(update={"own_encoder": tuned}))


def load_guard_model(folder: Path, device: str = "auto") -> GuardModel:
    """Load a guard that `train guard` wrote; anything else raises ModelError."""
    card = load_card(folder, GuardCard)
    backbone = folder / ENCODER if card.own_encoder else card.backbone
    model = GuardModel(card, load_encoder(backbone, device=device, depth=card.depth))
    weights = folder / "weights.safetensors"
    tensors = load_tensors(weights)
    load_into(model.heads, tensors, str(weights))
    require_all(tensors, model.heads.state_dict(), str(weights))
    return model.to(next(model.trunk.parameters()).device).eval()
