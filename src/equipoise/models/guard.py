"""The guard model: an encoder's features, and heads for severity, categories and refusal."""

from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from equipoise.errors import ModelError
from equipoise.files import usual_permissions
from equipoise.models.backbone import Backbone, add_lora, load_encoder, pick_dtype, quiet
from equipoise.models.checkpoints import (
    load_card,
    load_into,
    load_tensors,
    require_all,
    save_card,
    save_tensors,
    trainable,
)
from equipoise.models.features import PooledFeatures, batch_tokens
from equipoise.models.heads import GuardHeads, GuardLogits
from equipoise.models.top import top_names
from equipoise.models.windows import MAX_WINDOWS, PairBatch
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
    top_layers: int = Field(default=0, ge=0)
    """Highest layers that were tuned; they lie with the heads."""
    lora_rank: int = Field(default=0, ge=0)
    """Rank of the adapters of all linear layers; they lie with the heads and are merged at load."""
    max_windows: int = Field(default=MAX_WINDOWS, ge=1)
    """Windows of a long text that are read; see `models.windows`."""
    targets: tuple[Target, ...]
    """What it was trained to judge."""
    knows_refusals: bool
    unsafe_threshold: float = Field(default=0.5, ge=0, le=1)
    category_threshold: float = Field(default=0.5, ge=0, le=1)
    refusal_threshold: float = Field(default=0.5, ge=0, le=1)


class GuardReader(Protocol):
    """Whatever turns padded token ids into a guard's logits: the model below, or an exported one."""

    card: GuardCard
    tokenizer: Any

    @property
    def batch_tokens(self) -> int:
        """Padded tokens that are best given at a time."""
        ...

    def __call__(self, batch: PairBatch, /) -> GuardLogits:
        """Logits of padded pairs, on any device."""
        ...


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
        self.eval()  # a trainer says train() itself

    def forward(self, inputs: PairBatch | Tensor) -> GuardLogits:
        """Logits for padded pairs, or for features [B, F] that were computed before."""
        features = inputs if isinstance(inputs, Tensor) else self.trunk(inputs.to(self._device))
        logits: GuardLogits = self.heads(features.float())
        return logits

    @property
    def batch_tokens(self) -> int:
        """Padded tokens that are best given at a time."""
        return batch_tokens(self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.trunk.parameters()).device

    def save(self, folder: Path) -> None:
        """Write what was trained, here or before, and the card; a tuned encoder serves as a backbone too."""
        beside = tuned_names(self.trunk, self.card)
        whole = bool(trainable(self.trunk)) and not beside
        if whole:
            encoder: Any = self.trunk.encoder
            with quiet():
                encoder.save_pretrained(folder / ENCODER)
            usual_permissions(folder / ENCODER)
            self.tokenizer.save_pretrained(folder / ENCODER)
        tuned = {_TRUNK + name: self.trunk.get_parameter(name).detach() for name in beside}
        save_tensors(folder / "weights.safetensors", self.heads.state_dict() | tuned)
        save_card(folder, self.card.model_copy(update={"own_encoder": whole}))


_TRUNK = "trunk."
"""Before the name of a tensor that is not of the heads."""


def adapt(encoder: Any, rank: int) -> Any:
    """Put fresh adapters into an encoder, in place; return what merges them again."""
    return add_lora(encoder, rank=rank, alpha=2.0 * rank)


def tuned_names(trunk: PooledFeatures, card: GuardCard) -> list[str]:
    """Names of the trunk's tensors that are tuned and lie with the heads: top layers, or adapters.

    Raises:
        ModelError: So many layers that nothing stays below, or layers that are no one list.
    """
    if card.lora_rank:
        return [name for name, _ in trunk.named_parameters() if ".lora_" in name]
    if not card.top_layers:
        return []
    return top_names(trunk, card.top_layers)


def take_start(model: GuardModel, folder: Path) -> None:
    """Give `model` all that the guard in `folder` learned: its heads, and the top layers that it tuned.

    Raises:
        ModelError: It has adapters or an encoder of its own, or was built otherwise.
    """
    card = load_card(folder, GuardCard)
    if card.own_encoder or card.lora_rank:
        raise ModelError(
            f"{folder}: a guard with adapters or an encoder of its own; expected one of heads and top layers"
        )
    for name in ("taxonomy", "backbone", "layers", "depth", "hidden", "top_layers"):
        theirs, ours = getattr(card, name), getattr(model.card, name)
        if theirs != ours and (name, theirs) != ("top_layers", 0):
            what = ("another", "this one") if name == "taxonomy" else (theirs, ours)
            raise ModelError(f"{folder}: {name}: got {what[0]}; expected {what[1]}, as in these settings")
    _fill(model, folder, card)


def load_guard_model(folder: Path, device: str = "auto") -> GuardModel:
    """Load a guard that `train guard` wrote; anything else raises ModelError."""
    card = load_card(folder, GuardCard)
    source = folder / ENCODER if card.own_encoder else card.backbone
    dtype = "float32" if card.lora_rank else "auto"  # a small change is lost where few bits are added to
    backbone = load_encoder(source, dtype=dtype, device=device, depth=card.depth)
    adapted = adapt(backbone.model, card.lora_rank) if card.lora_rank else None
    model = GuardModel(card, backbone)
    _fill(model, folder, card)
    where = next(model.trunk.parameters()).device
    if adapted is not None:
        adapted.merge_and_unload()
        model.trunk.to(pick_dtype("auto", where))
    return model.to(where)


def _fill(model: GuardModel, folder: Path, card: GuardCard) -> None:
    """Copy a guard's tensors to where `model` has them: all that its card speaks of, and no other."""
    weights = folder / "weights.safetensors"
    tensors = load_tensors(weights)
    heads = {name: tensor for name, tensor in tensors.items() if not name.startswith(_TRUNK)}
    tuned = {name.removeprefix(_TRUNK): tensors[name] for name in tensors.keys() - heads.keys()}
    for part, given, names in (
        (model.heads, heads, model.heads.state_dict()),
        (model.trunk, tuned, tuned_names(model.trunk, card)),
    ):
        load_into(part, given, str(weights))
        require_all(given, names, str(weights))
        if strange := sorted(given.keys() - set(names)):
            raise ModelError(f"{weights}: tensor '{strange[0]}' was not tuned by what model.json says")
