"""Roles of constrained RL on one set of weights: which adapter is on, who learns, and that none is mixed up.

By default the base weights alone are the reference, with the scorer's adapter they give reward and cost,
with the actor's they are the policy, and linear heads on the actor's hidden states are the critics. A role
may have an adapter or a model of its own.

peft's own switch is not used (0.21): it changes `requires_grad` as it goes; a switch inside one graph
leaves the first role without a gradient; and layers that are computed again on the way back are computed
with whatever adapter is on by then. None of these raises. So who learns is settled once, one role is in use
at a time, and its forward and backward passes end before the next one begins, or ModelError is raised.

Shapes: B rows, N response tokens, R responses, H width, K values.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from equipoise.errors import ModelError, near
from equipoise.models.backbone import Backbone
from equipoise.models.chat import chat_ids, encode_response
from equipoise.models.checkpoints import load_into, load_tensors, require_all, save_tensors, trainable
from equipoise.models.heads import Scores
from equipoise.models.layout import PackedBatch, ResponseLogps, Row, response_hidden, response_states
from equipoise.objectives.sequence import segment_sums
from equipoise.protocols import Messages


class Role(NamedTuple):
    """Who plays a role."""

    backbone: Backbone
    """Roles that share a model share its weights."""
    adapter: str | None = None
    """The model's adapter that is on in this role; None where its own weights stand alone."""
    learns: bool = False
    """Whether its adapter learns, or its model where it has none; and its head."""


class ValueHeads(nn.Module):
    """What is still to come of each of K quantities, after each token: the critics."""

    def __init__(self, features: int, names: Sequence[str]) -> None:
        """Make K heads on `features` inputs that say 0 until they are trained."""
        super().__init__()
        self.names = tuple(names)
        self.norm = nn.LayerNorm(features)
        self.values = nn.Linear(features, len(names))
        nn.init.zeros_(self.values.weight)
        nn.init.zeros_(self.values.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, H] -> [N, K]."""
        found: Tensor = self.values(self.norm(hidden))
        return found


class Said(NamedTuple):
    """What a role says of responses."""

    logps: ResponseLogps
    values: Tensor | None
    """[N, K] before each response token, in the order of `logps.tokens`; None of a role without critics."""


class Roles(nn.Module):
    """All roles, one of which is in use at a time; with none in use all adapters are off."""

    def __init__(
        self, roles: Mapping[str, Role], heads: Mapping[str, nn.Module], *, attached: bool = False
    ) -> None:
        """Settle who learns.

        Args:
            roles: Name -> who plays it.
            heads: Name of a role -> its `ValueHeads` or `ScorerHeads`.
            attached: Let what the critics learn reach the weights below their heads.
        """
        super().__init__()
        self.roles = dict(roles)
        self.attached = attached
        models = {id(role.backbone.model): role.backbone.model for role in self.roles.values()}
        self.trunks = nn.ModuleList(models.values())
        self.heads = nn.ModuleDict(heads)
        self.scorer_folder: Path | None = None
        """Where the scorer among the roles was read from, if from a folder; its card lies there."""
        self._use: object | None = None
        self._graphs: WeakSet[_Graph] = WeakSet()
        self.eval()
        self.requires_grad_(False)
        for name, role in self.roles.items():
            if role.learns:
                for parameter in self.weights(name):
                    parameter.requires_grad_(True)
        for name, head in self.heads.items():
            head.requires_grad_(self._role(name).learns)
        self._switch(None)

    @contextmanager
    def use(self, name: str, *, learning: bool = True) -> Iterator["InUse"]:
        """Switch a role on until the end of the block; forward and backward passes belong inside.

        No graph is kept of a role that does not learn, nor of one that is not `learning`, for example as
        it writes. Where a model is set to compute its layers again on the way back it does so.

        Raises:
            ModelError: A role is in use; or, at the end, a graph was made and not gone through; or, on
                the way back, the role of a graph is no longer in use.
        """
        role = self._role(name)
        if self._use is not None:
            raise ModelError(f"role '{name}': another role is in use; expected one at a time")
        use = self._use = object()
        recomputed: list[nn.Module] = []
        with ExitStack() as stack:
            stack.callback(self._stop, recomputed)
            self._switch(role)
            if role.learns and learning:
                # their own flag alone: dropout inside them stays off
                recomputed += [m for m in role.backbone.model.modules() if _is_recomputed(m)]
                for layer in recomputed:
                    layer.training = True
            else:
                stack.enter_context(torch.no_grad())
            yield InUse(self, name, use)
            if self._pending():
                gc.collect()  # a graph in a cycle of references
                if self._pending():
                    raise ModelError(
                        f"role '{name}': a graph is alive at the end of its use; expected its backward pass,"
                        " or `learning=False`, or no tensor of it to be kept"
                    )

    def save(self, path: Path) -> None:
        """Write all that learns, adapters and heads, to one safetensors file."""
        save_tensors(path, trainable(self))

    def restore(self, path: Path) -> None:
        """Read what `save` wrote for the same roles; anything else raises ModelError."""
        tensors = load_tensors(path)
        load_into(self, tensors, str(path))
        require_all(tensors, trainable(self), str(path))

    def _role(self, name: str) -> Role:
        if name not in self.roles:
            raise ModelError(
                f"no role '{name}'{near(name, self.roles)}; there are: {', '.join(sorted(self.roles))}"
            )
        return self.roles[name]

    def weights(self, name: str) -> list[nn.Parameter]:
        """Return a role's own weights, its head apart; those of another role raise ModelError."""
        model, adapter, _ = self._role(name)
        if adapter is None:
            others = [n for n, role in self.roles.items() if n != name and role.backbone.model is model.model]
            if others:
                raise ModelError(
                    f"role '{name}': its own weights learn, and are those of '{others[0]}' too; expected an"
                    " adapter, or a model of its own"
                )
            return list(model.model.parameters())
        found = [p for key, p in model.model.named_parameters() if is_of(key, adapter)]
        if not found:
            raise ModelError(f"role '{name}': {model.ref} has no adapter '{adapter}'")
        return found

    def _switch(self, role: Role | None) -> None:
        for trunk in self.trunks:
            adapter = role.adapter if role is not None and role.backbone.model is trunk else None
            for layer in trunk.modules():
                if isinstance(layer, BaseTunerLayer):
                    # not by `set_adapter` or `enable_adapters`: these change who learns
                    layer._disable_adapters = adapter is None
                    if adapter is not None:
                        layer._active_adapter = [adapter]

    def _stop(self, recomputed: Sequence[nn.Module]) -> None:
        for layer in recomputed:
            layer.training = False
        self._switch(None)
        self._use = None
        self._graphs.clear()

    def _pending(self) -> bool:
        return any(not graph.is_done for graph in self._graphs)


class InUse:
    """The role that is switched on."""

    def __init__(self, roles: Roles, name: str, use: object) -> None:
        """Belong to one use of a role."""
        self.name, self.backbone = name, roles.roles[name].backbone
        self._roles, self._use = roles, use

    def rows(self, chats: Sequence[Messages], responses: Sequence[Sequence[str]]) -> list[Row]:
        """Return chats and the responses to each in this role's own tokens."""
        tokenizer = self.backbone.tokenizer
        return [
            Row(chat_ids(tokenizer, chat), [encode_response(tokenizer, text) for text in texts])
            for chat, texts in zip(chats, responses, strict=True)
        ]

    def read(self, rows: Sequence[Row] | PackedBatch) -> Said:
        """Return log-probabilities of responses, and the critics' values where the role has critics."""
        self._require_on()
        logps, hidden = response_states(self.backbone.model, rows)
        tokens, hidden = self._watched(logps.tokens, hidden)
        sums = segment_sums(tokens, torch.repeat_interleave(logps.lengths), len(logps.lengths))
        values = None
        if self.name in self._roles.heads:
            below = hidden if self._roles.attached else hidden.detach()
            head = self._roles.heads[self.name]
            values = head(_as(head, below))
        return Said(ResponseLogps(sums, logps.lengths, tokens), values)

    def score(self, rows: Sequence[Row] | PackedBatch) -> Scores:
        """Return reward and cost of responses, of a role with the heads of a scorer."""
        self._require_on()
        if self.name not in self._roles.heads:
            raise ModelError(f"role '{self.name}': has no heads; expected those of a scorer")
        (hidden,) = self._watched(response_hidden(self.backbone.model, rows))
        head: Any = self._roles.heads[self.name]
        scores: Scores = head.every_score(_as(head, hidden))
        return scores

    def _require_on(self) -> None:
        if self._roles._use is not self._use:
            raise ModelError(f"role '{self.name}': its use has ended")

    def _watched(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors, and notice when their graph is gone through."""
        if not any(tensor.requires_grad for tensor in tensors):
            return tensors
        graph = _Graph(self)
        self._roles._graphs.add(graph)
        watched: tuple[Tensor, ...] = _Watch.apply(graph, *tensors)  # type: ignore[no-untyped-call]
        return watched


class _Graph:
    """One graph of a role: it lives as long as the graph, and knows whether it was gone through."""

    def __init__(self, role: InUse) -> None:
        self.role = role
        self.is_done = False


class _Watch(torch.autograd.Function):
    """Gives what it takes; on the way back its role must be in use, since layers may be computed again."""

    @staticmethod
    def forward(ctx: Any, graph: _Graph, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.graph = graph
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.graph.role._require_on()
        ctx.graph.is_done = True
        return (None, *gradients)


def _as(head: nn.Module, hidden: Tensor) -> Tensor:
    """Return hidden states in the number format of a head."""
    return hidden.to(next(head.parameters()).dtype)


def is_of(name: str, adapter: str) -> bool:
    """Whether a parameter is of an adapter: `...lora_A.NAME.weight`."""
    parts = name.split(".")
    return adapter in parts and any(part.startswith("lora_") for part in parts)


def _is_recomputed(module: nn.Module) -> bool:
    return isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
