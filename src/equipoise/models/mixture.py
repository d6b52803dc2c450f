"""Rewards of several groups from one frozen backbone: what `train mixture` saves and a policy is given.

A reward of a group is the product of its head with the pooled features of prompt and response; it is better
when higher, and says something in differences between responses to one prompt only.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from equipoise.errors import ModelError
from equipoise.models.backbone import Backbone, load_encoder
from equipoise.models.checkpoints import load_card, load_tensors, save_card, save_tensors
from equipoise.models.features import PooledFeatures, TextPair, embed, encode_pair


class MixtureCard(BaseModel):
    """What a mixture folder says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["equipoise-mixture"] = "equipoise-mixture"
    version: Literal[1] = 1
    backbone: str
    layers: int = Field(ge=1)
    unit: str
    """What belongs to a group: an annotator, a source, ..."""
    shares: tuple[float, ...]
    """Of the units, by group, largest first."""
    reward_polarity: Literal["higher_is_better"] = "higher_is_better"


class MixtureModel:
    """A frozen backbone with one linear head for each group; calling it gives every group's rewards."""

    def __init__(self, card: MixtureCard, backbone: Backbone, heads: Tensor) -> None:
        """Use heads [K, F]; ones that do not fit the backbone raise ModelError."""
        self.card = card
        self.tokenizer: Any = backbone.tokenizer
        self.trunk = PooledFeatures(backbone.model, card.layers)
        self.heads = heads
        expected = [len(card.shares), self.trunk.width]
        if list(heads.shape) != expected:
            raise ModelError(f"{card.backbone}: heads have shape {list(heads.shape)}, expected {expected}")

    def __call__(self, texts: Sequence[TextPair]) -> Tensor:
        """Rewards of responses in each group's eyes, [N, K] on the CPU."""
        return self.features(texts) @ self.heads.T

    def features(self, texts: Sequence[TextPair]) -> Tensor:
        """Pooled features of prompts and responses, [N, F] on the CPU."""
        return embed(self.trunk, [encode_pair(self.tokenizer, text) for text in texts])

    def save(self, folder: Path) -> None:
        """Write the heads and the card."""
        save_tensors(folder / "weights.safetensors", {"heads": self.heads})
        save_card(folder, self.card)


def load_mixture(folder: Path, device: str = "auto") -> MixtureModel:
    """Load what `train mixture` wrote."""
    card = load_card(folder, MixtureCard)
    path = folder / "weights.safetensors"
    tensors = load_tensors(path)
    if tensors.keys() != {"heads"}:
        raise ModelError(f"{path}: holds {sorted(tensors)}; expected heads")
    return MixtureModel(card, load_encoder(card.backbone, device=device), tensors["heads"].to(torch.float32))
