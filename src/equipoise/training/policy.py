"""What every policy training shares: which weights learn, and how the result is saved."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from equipoise.config import Config
from equipoise.files import usual_permissions
from equipoise.models.backbone import Backbone, add_lora, quiet
from equipoise.models.layout import Row
from equipoise.models.top import top_names
from equipoise.models.top_rows import top_alone
from equipoise.training.optim import OptimSettings

Tune = Literal["lora", "top", "full"]


class LoraSettings(Config):
    """Low-rank adapters (Hu et al. 2021) through peft."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


def weights_in(tune: Tune) -> str:
    """Return the number format to load a policy in: 32 bits where its own weights learn, in `auto` else.

    A step is often smaller than what 16 bits can add to a weight, and would be lost.
    """
    return "auto" if tune == "lora" else "float32"


def learn_top(model: nn.Module, top: int) -> None:
    """Let the `top` highest layers of a language model learn, and nothing else; too many raise ModelError."""
    names = top_names(model, top)
    model.requires_grad_(False)
    for name in names:
        model.get_parameter(name).requires_grad_(True)


def prepare(
    backbone: Backbone, tune: Tune, lora: LoraSettings, seed: int, *, top_layers: int = 0
) -> nn.Module:
    """Return the module to train: the model itself, or the model with fresh adapters."""
    torch.manual_seed(seed)
    model: Any = backbone.model
    if tune != "lora":
        model.requires_grad_(True)
        if tune == "top":
            learn_top(model, top_layers)
        return model  # type: ignore[no-any-return]
    tuned: nn.Module = add_lora(model, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)
    return tuned


def frozen_below(
    model: nn.Module, rows: Sequence[Row], top_layers: int, optim: OptimSettings, folder: Path
) -> AbstractContextManager[int]:
    """Give what a training of `top_layers` runs inside: see `top_alone`; with 0 the model stays whole."""
    if not top_layers:
        return nullcontext(0)
    budget = optim.micro_tokens
    return top_alone(model, rows, top_layers, folder, tokens_per_batch=budget, bf16=optim.bf16)


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
    usual_permissions(folder)
