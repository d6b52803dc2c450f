"""The guard model: an encoder's features, and heads for severity, categories and refusal."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from equipoise.models.backbone import Backbone, load_encoder
from equipoise.models.checkpoints import (
    load_card,
    load_into,
    load_tensors,
    save_card,
    save_tensors,
    trainable,
)
from equipoise.models.features import EncoderFeatures, PairBatch
from equipoise.models.heads import GuardHeads, GuardLogits
from equipoise.taxonomy import Taxonomy

Target = Literal["prompt", "response"]


class GuardCard(BaseModel):
    """What a guard folder says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["equipoise-guard"] = "equipoise-guard"
    version: Literal[1] = 1
    taxonomy: Taxonomy
    """The guard's own copy: a changed file elsewhere changes nothing here."""
    backbone: str
    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    dropout: float = 0.0
    targets: tuple[Target, ...]
    """What it was trained to judge."""
    knows_refusals: bool
    unsafe_threshold: float = Field(default=0.5, ge=0, le=1)
    category_threshold: float = Field(default=0.5, ge=0, le=1)


class GuardModel(nn.Module):
    """Encoder, pooling and heads in one module."""

    def __init__(self, card: GuardCard, backbone: Backbone) -> None:
        """Put fresh heads for the card's taxonomy on `backbone`."""
        super().__init__()
        self.card = card
        self.tokenizer: Any = backbone.tokenizer
        self.trunk = EncoderFeatures(backbone.model, card.layers)
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
        logits: GuardLogits = self.heads(features)
        return logits

    def save(self, folder: Path) -> None:
        """Write what was trained, and the card."""
        save_tensors(folder / "weights.safetensors", trainable(self))
        save_card(folder, self.card)


def load_guard_model(folder: Path, device: str = "auto") -> GuardModel:
    """Load a guard that `train guard` wrote; anything else raises ModelError."""
    card = load_card(folder, GuardCard)
    model = GuardModel(card, load_encoder(card.backbone, device=device))
    weights = folder / "weights.safetensors"
    load_into(model, load_tensors(weights), str(weights))
    return model.to(next(model.trunk.parameters()).device).eval()
