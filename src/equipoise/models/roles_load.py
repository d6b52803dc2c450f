"""Roles from references and folders, what they will hold in memory, and the actor as a model of its own."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from equipoise.config import Config, InputPath, IsLater, ModelRef
from equipoise.errors import ModelError
from equipoise.files import usual_permissions
from equipoise.models.backbone import (
    Backbone,
    Device,
    DType,
    add_lora,
    load_causal,
    pick_device,
    pick_dtype,
    quiet,
)
from equipoise.models.builtin import resolve
from equipoise.models.checkpoints import load_into, load_tensors, require_all
from equipoise.models.heads import ScorerHeads
from equipoise.models.roles import Role, Roles, ValueHeads, is_of
from equipoise.models.scorer import ScorerCard, single_card
from equipoise.models.top import top_names
from equipoise.progress import say

ACTOR, REFERENCE, SCORER, CRITIC = "actor", "reference", "scorer", "critic"
"""Names of roles. Without a critic of its own the actor carries the value heads."""

_ADAPTERS = {ACTOR: "default", SCORER: "scorer", CRITIC: "critic"}
"""peft saves an adapter of this first name without a folder of its own."""

_GIB = 1024**3

Open = Callable[[str, bool], Backbone]
"""Loads a language model by its reference; True where its own weights are to learn."""


class RoleSettings(Config):
    """Who plays which role."""

    policy: ModelRef
    """The model that is aligned; an adapter is folded into its base."""
    tune: Literal["lora", "full"] = "lora"
    """Whether the actor is an adapter on the reference's weights, or has all weights to itself."""
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    reference: ModelRef | None = None
    """Another model, of the same tokens, to stay close to; the policy as it is loaded where None."""
    scorer: InputPath | None = None
    """Folder of a scorer that reads a language model's last token; others are called as rewards. It shares
    the reference's weights where it was trained on them, and is a model of its own elsewhere."""
    critic: Literal["heads", "adapter", "model"] = "heads"
    """Whether the critics read the actor's hidden states, those of an adapter, or of a model of their own."""
    critic_model: Annotated[ModelRef | None, IsLater()] = None
    """What critics of `model` begin as, of the policy's tokens; the policy where None."""
    critics_reach_trunk: bool = False
    """Let the critics' losses change the weights below their heads; always so where these are their own."""
    dtype: DType = "auto"
    device: Device = "auto"

    @model_validator(mode="after")
    def _critic_has_a_place(self) -> "RoleSettings":
        if self.critic == "adapter" and self.tune == "full":
            raise ValueError("critic: got 'adapter' where tune is 'full'; expected heads or model")
        if self.critic_model is not None and self.critic != "model":
            raise ValueError(f"critic_model: got one where critic is '{self.critic}'; expected critic=model")
        return self


class RolesFootprint(NamedTuple):
    """Bytes that roles hold, activations apart."""

    weights: int
    learning: int
    """Gradients and the two moments of AdamW."""


def load_roles(settings: RoleSettings, values: Sequence[str] = ("reward", "cost"), *, seed: int = 0) -> Roles:
    """Load the models that are needed, each once, and say before what they will hold.

    Args:
        settings: Who plays which role.
        values: Quantities that the critics foretell; none makes no critics.
        seed: Of the fresh adapters.

    Raises:
        ModelError: A model cannot be loaded, a scorer is of another kind, or the reference has other tokens.
    """
    found = roles_footprint(settings, values)
    if found is not None:
        say(
            f"{settings.policy}: all roles hold about {found.weights / _GIB:.2f} GiB of weights and"
            f" {found.learning / _GIB:.2f} GiB of gradients and optimiser state, and activations"
        )

    def load(ref: str, learns: bool) -> Backbone:
        return load_causal(
            ref, dtype="float32" if learns else settings.dtype, device=settings.device, merge=True
        )

    torch.manual_seed(seed)
    roles = _assemble(settings, values, load)
    actor = roles.roles[ACTOR].backbone.tokenizer
    for name in (REFERENCE, CRITIC):
        if name in roles.roles:
            other = roles.roles[name].backbone
            if actor is not other.tokenizer and actor.get_vocab() != other.tokenizer.get_vocab():
                raise ModelError(f"roles.{name}: {other.ref}: has another tokenizer than the policy")
    if settings.scorer is not None:
        _fill_scorer(roles, settings.scorer)
        roles.scorer_folder = settings.scorer
    return roles.to(pick_device(settings.device))


def roles_footprint(
    settings: RoleSettings, values: Sequence[str] = ("reward", "cost")
) -> RolesFootprint | None:
    """Return what roles will hold, from the configs in the folders; None where one is not on this disk."""

    no_tokenizer: Any = None

    def sketch(ref: str, learns: bool) -> Backbone:
        place: Any = resolve(ref)
        if isinstance(place, Path) and (place / "adapter_config.json").is_file():
            config = json.loads((place / "adapter_config.json").read_text("utf-8"))
            return sketch(config["base_model_name_or_path"], learns)
        if not isinstance(place, Path):
            raise OSError  # would have to be fetched
        number = pick_dtype("float32" if learns else settings.dtype, pick_device(settings.device))
        with quiet():
            config = AutoConfig.from_pretrained(place, trust_remote_code=False, local_files_only=True)
            return Backbone(AutoModelForCausalLM.from_config(config, dtype=number), no_tokenizer, ref)

    try:
        with torch.device("meta"):
            roles = _assemble(settings, values, sketch)
    except (OSError, ValueError, KeyError):
        return None  # who loads it says what is wrong
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in roles.parameters()]
    return RolesFootprint(sum(size for size, _ in sizes), 3 * sum(size for size, learns in sizes if learns))


def save_actor(roles: Roles, folder: Path) -> None:
    """Write the actor as a model that `load_causal` loads: an adapter on its base, or a whole model."""
    backbone, adapter, _ = roles.roles[ACTOR]
    model: Any = backbone.model
    if adapter is None:
        backbone.tokenizer.save_pretrained(folder)
        with quiet():
            model.save_pretrained(folder)
    else:
        model.peft_config[adapter].base_model_name_or_path = model.get_base_model().name_or_path
        # embeddings are not trained, and to find that out peft would ask the hub
        model.save_pretrained(folder, selected_adapters=[adapter], save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's blank card
    usual_permissions(folder)


def _assemble(settings: RoleSettings, values: Sequence[str], load: Open) -> Roles:
    """Put the roles together, with fresh adapters and heads."""
    heads: dict[str, nn.Module] = {}
    roles: dict[str, Role] = {}
    ref, other = settings.policy, settings.reference
    if settings.tune == "lora":
        trunk = _adapted(load(ref, False), ACTOR, settings.rank, settings.alpha)
        roles[ACTOR] = Role(trunk, _ADAPTERS[ACTOR], learns=True)
    else:
        roles[ACTOR] = Role(load(ref, True), learns=True)
        ref, other = other or ref, None
        trunk = load(ref, False)
    if settings.critic == "adapter" and values:
        trunk = _adapted(trunk, CRITIC, settings.rank, settings.alpha)
        roles[CRITIC] = Role(trunk, _ADAPTERS[CRITIC], learns=True)
    if settings.critic == "model" and values:
        roles[CRITIC] = Role(load(settings.critic_model or settings.policy, True), learns=True)
    if values:
        who = CRITIC if CRITIC in roles else ACTOR
        heads[who] = ValueHeads(_width(roles[who].backbone), values)
    if settings.scorer is not None:
        card = _scorer_card(settings.scorer)
        is_tuned = card.own_trunk or card.top_layers > 0
        shares = not is_tuned and _place(card.backbone) == _place(ref)
        own = trunk if shares else load(card.backbone, False)
        if card.lora_rank:
            own = _adapted(own, SCORER, card.lora_rank)
        trunk = own if shares else trunk
        roles[SCORER] = Role(own, _ADAPTERS[SCORER] if card.lora_rank else None)
        categories = 0 if card.taxonomy is None else len(card.taxonomy.names)
        heads[SCORER] = ScorerHeads(_width(own), card.hidden, card.dropout, categories)
    roles[REFERENCE] = Role(trunk if other is None else load(other, False))
    return Roles(roles, heads, attached=settings.critics_reach_trunk or CRITIC in roles)


def _place(ref: str) -> Path | str:
    """Where a model is read from, the same for every way to write it."""
    found = resolve(ref)
    return found.resolve() if isinstance(found, Path) else found


def _adapted(trunk: Backbone, role: str, rank: int, alpha: float = 32.0) -> Backbone:
    return trunk._replace(model=add_lora(trunk.model, rank=rank, alpha=alpha, name=_ADAPTERS[role]))


def _scorer_card(folder: Path) -> ScorerCard:
    card = single_card(folder)
    if card.trunk != "last":
        raise ModelError(
            f"{folder}: reads the mean of layers, which is no role; expected a scorer trained with trunk"
            " 'last' (this one can be called as a reward)"
        )
    return card


def _fill_scorer(roles: Roles, folder: Path) -> None:
    """Copy a scorer's weights to where its role has them."""
    path = folder / "weights.safetensors"
    card = single_card(folder)
    model, adapter, _ = roles.roles[SCORER]
    tensors = load_tensors(path)
    heads = {n.removeprefix("heads."): t for n, t in tensors.items() if n.startswith("heads.")}
    load_into(roles.heads[SCORER], heads, str(path))
    require_all(heads, roles.heads[SCORER].state_dict(), str(path))
    below = {n.removeprefix("trunk."): t for n, t in tensors.items() if n.startswith("trunk.")}
    if adapter is not None:
        below = {n.replace(".default.", f".{adapter}."): t for n, t in below.items()}
    load_into(model.model, below, str(path))
    names = [n for n, _ in model.model.named_parameters()]
    tuned = top_names(model.model, card.top_layers) if card.top_layers else []
    own = [n for n in names if card.own_trunk or n in tuned or (adapter and is_of(n, adapter))]
    require_all(below, own, str(path))


def _width(trunk: Backbone) -> int:
    return int(trunk.model.config.get_text_config().hidden_size)
