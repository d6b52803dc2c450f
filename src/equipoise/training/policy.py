"""What every policy training shares: which weights learn, and how the result is saved."""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from equipoise.config import Config
from equipoise.models.backbone import Backbone, add_lora, quiet

Tune = Literal["lora", "full"]


class LoraSettings(Config):
    """Low-rank adapters (Hu et al. 2021) through peft."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


def weights_in(tune: Tune) -> str:
    """Return the number format to load a policy in: 32 bits where its own weights learn, in `auto` else.

    A step is often smaller than what 16 bits can add to a weight, and would be lost.
    """
    return "float32" if tune == "full" else "auto"


def prepare(backbone: Backbone, tune: Tune, lora: LoraSettings, seed: int) -> nn.Module:
    """Return the module to train: the model itself, or the model with fresh adapters."""
    torch.manual_seed(seed)
    model: Any = backbone.model
    if tune == "full":
        model.requires_grad_(True)
        return model  # type: ignore[no-any-return]
    tuned: nn.Module = add_lora(model, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)
    return tuned


def save_policy(backbone: Backbone, policy: nn.Module, folder: Path) -> None:
    """Write the adapter (which names its base), or the whole model with its tokenizer."""
    model: Any = policy
    if hasattr(model, "peft_config"):
        for config in model.peft_config.values():
            config.base_model_name_or_path = backbone.model.name_or_path  # a folder's is absolute
        # embeddings are not trained, and to find that out peft would ask the hub
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's blank card; ours is card.md
    else:
        backbone.tokenizer.save_pretrained(folder)
        with quiet():
            model.save_pretrained(folder)
