"""The highest layers of a trunk on what the frozen layers below made once of the same tokens.

Between `cut` and its end the trunk's model holds its top layers only: what goes into the lowest of
them is replaced by what was kept. The model's own code runs around it, so masks, positions and the last
norm are its own.

Shapes: N windows, T tokens, H width of the model, L pooled layers.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.errors import ModelError
from equipoise.models.backbone import layer_stack
from equipoise.models.features import PooledFeatures, batch_tokens, length_batches, pool_parts
from equipoise.models.windows import PairBatch, PairIds, pad_pairs
from equipoise.progress import bar


def split_layers(model: Any, top: int) -> tuple[nn.ModuleList, int]:
    """Return the layers of a model without a language-model head, and how many lie below the `top` highest.

    Raises:
        ModelError: No layer is asked for, or so many that nothing stays below, or they are no one list.
    """
    stack = layer_stack(model)
    if stack is None or not 1 <= top < len(stack):
        has = "no one list of layers" if stack is None else f"{len(stack)} layers"
        wanted = "1 or more" if top < 1 else "fewer, or tune: full"
        raise ModelError(f"top_layers: got {top} of a model with {has}; expected {wanted}")
    return stack, len(stack) - top


def top_names(trunk: Any, top: int) -> list[str]:
    """Names of the tensors of the `top` highest layers of a trunk, a pooled one or a language model.

    Raises:
        ModelError: As `split_layers`.
    """
    model = trunk.encoder if isinstance(trunk, PooledFeatures) else trunk.get_decoder()
    stack, split = split_layers(model, top)
    own = {id(parameter) for layer in stack[split:] for parameter in layer.parameters()}
    return [name for name, parameter in trunk.named_parameters() if id(parameter) in own]


@contextmanager
def only_layers(model: Any, stack: nn.ModuleList, kept: slice) -> Iterator[int]:
    """Leave these of its layers in a model, and yield the bytes of the others; all are back at the end."""
    config = model.config
    whole, before = list(stack), dict(vars(config))
    size = sum(p.numel() * p.element_size() for p in stack.parameters())
    del stack[:]
    stack.extend(whole[kept])
    config.num_hidden_layers = len(stack)
    if before.get("layer_types"):
        config.layer_types = before["layer_types"][kept]
    config.use_cache = False  # its layers would be counted from the lowest
    try:
        yield size - sum(p.numel() * p.element_size() for p in stack.parameters())
    finally:
        del stack[:]
        stack.extend(whole)
        vars(config).clear()
        vars(config).update(before)


class TopBatch(NamedTuple):
    """Windows with what the layers below made of them."""

    windows: PairBatch
    states: Tensor
    """[N, T, H] what goes into the first of the top layers; not looked at past the end of a window."""
    pooled: Tensor
    """[N, 2, L, H] of the pooled layers below."""

    def to(self, device: torch.device) -> "TopBatch":
        """Return the batch on another device."""
        return TopBatch(self.windows.to(device), self.states.to(device), self.pooled.to(device))


class Below(NamedTuple):
    """What the frozen layers made of all windows; states lie in a file that has no name."""

    windows: Sequence[PairIds]
    states: Any
    """[tokens of all windows, H], a memory map."""
    first: Sequence[int]
    """Where each window begins in it."""
    pooled: Tensor
    """[N, 2, L, H]."""

    def batch(self, rows: Sequence[int]) -> TopBatch:
        """Stack some windows."""
        windows = pad_pairs([self.windows[row] for row in rows])
        states = torch.zeros(*windows.ids.shape, self.states.shape[1])
        for place, row in enumerate(rows):
            n = len(self.windows[row].ids)
            states[place, :n] = torch.from_numpy(self.states[self.first[row] : self.first[row] + n])
        return TopBatch(windows, states, self.pooled[list(rows)])


class TopLayers(nn.Module):
    """The trunk's `top` highest layers and its pooling: what was kept in, the trunk's features out."""

    def __init__(self, trunk: PooledFeatures, top: int) -> None:
        """Split `trunk`, which keeps its layers, below its `top` highest ones."""
        super().__init__()
        self.trunk = trunk
        stack, self.split = split_layers(trunk.encoder, top)
        self._stack = [stack]  # in a list, a second name would save it twice
        self._given = torch.zeros(())

    @torch.no_grad()
    def below(self, windows: Sequence[PairIds], folder: Path, *, bf16: bool = False) -> Below:
        """Run the frozen layers over all windows; what they make of each token is kept in `folder`.

        With `bf16` they are computed in bfloat16 autocast.
        """
        encoder: Any = self.trunk.encoder
        device = next(encoder.parameters()).device
        low = [layer for layer in self.trunk.layers if layer <= self.split]
        first = [0, *np.cumsum([len(window.ids) for window in windows]).tolist()]
        pooled = torch.zeros(len(windows), 2, len(low), encoder.config.hidden_size)
        with tempfile.TemporaryFile(dir=folder) as file:  # the map keeps it
            states = np.memmap(file, np.float32, "w+", shape=(first[-1], encoder.config.hidden_size))
        self.trunk.eval()
        half = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
        with bar("lower layers", len(windows)) as advance, half:
            for rows in length_batches([len(window.ids) for window in windows], batch_tokens(device)):
                batch = pad_pairs([windows[row] for row in rows]).to(device)
                out = self.trunk.states(batch)
                if low:
                    found = pool_parts(torch.stack([out[layer] for layer in low]), batch.parts)
                    pooled[rows] = found.view(len(rows), 2, len(low), -1).float().cpu()
                entering = out[self.split].float().cpu().numpy()
                for place, row in enumerate(rows):
                    states[first[row] : first[row + 1]] = entering[place, : first[row + 1] - first[row]]
                    advance()
        return Below(windows, states, first, pooled)

    @contextmanager
    def cut(self) -> Iterator[int]:
        """Take the layers below out of the model, and yield their bytes; they are back at the end."""
        (stack,) = self._stack
        with (
            only_layers(self.trunk.encoder, stack, slice(self.split, None)) as out,
            stack[0].register_forward_pre_hook(lambda _, given: (self._given, *given[1:])),
        ):
            yield out

    def forward(self, batch: TopBatch) -> Tensor:
        """Features of windows, [N, F], as the whole trunk gives them; only inside `cut`."""
        self._given = batch.states
        out = self.trunk.states(batch.windows)
        layers = [out[layer - self.split] for layer in self.trunk.layers if layer > self.split]
        top = pool_parts(torch.stack(layers), batch.windows.parts)
        return torch.cat([batch.pooled, top.view(*batch.pooled.shape[:2], len(layers), -1)], dim=2).flatten(1)
