"""The highest layers of a language model on what the frozen layers below made once of packed rows.

Inside `top_alone` the model holds its top layers only. What goes into the lowest of them is found by the
ids and positions of each row, so the layout, the losses and the reference ask the model as they ever do;
a row that was not computed before is a KeyError. Under the mask of a packed row nothing depends on what
else is in the batch, so a row may be read in any company.

Shapes: B rows, T tokens of the longest row, H width of the model.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.models.layout import Row, hidden_states, lay_out, token_budget_batches
from equipoise.models.masks import unwrapped
from equipoise.models.top import only_layers, split_layers
from equipoise.progress import say, track


@contextmanager
def top_alone(
    model: nn.Module,
    rows: Sequence[Row],
    top: int,
    folder: Path,
    *,
    tokens_per_batch: int,
    bf16: bool = False,
) -> Iterator[int]:
    """Run the layers below the `top` highest over all rows, then leave them out of the model until the end.

    What they make lies in a file of `folder` that has no name: a run that was killed leaves none behind,
    and makes it again. Yields the bytes of the layers that are left out.

    Args:
        model: A causal model; nothing of it is trained yet.
        rows: All that it will be asked for.
        top: Layers that stay.
        folder: For the file, of a number for each token and width of the model.
        tokens_per_batch: Tokens of one pass over the layers below, padding counted.
        bf16: Compute the layers below in bfloat16 autocast, and keep what they make in 16 bits.

    Raises:
        ModelError: No layer stays, or none is left out.
    """
    decoder: Any = unwrapped(model).get_decoder()
    stack, split = split_layers(decoder, top)
    number = torch.bfloat16 if bf16 else decoder.dtype
    lengths = [row.length for row in rows]
    gib = sum(lengths) * decoder.config.hidden_size * number.itemsize / 1024**3
    say(f"layers below the top {top}: computed once for {sum(lengths):,} tokens, {gib:.2f} GiB on disk")
    with tempfile.TemporaryFile(dir=folder) as file:
        kept = _Kept(file, number)
        with decoder.register_forward_pre_hook(kept.arrive, with_kwargs=True):
            with only_layers(decoder, stack, slice(split)), stack[-1].register_forward_hook(kept.write):
                _run(model, rows, token_budget_batches(lengths, tokens_per_batch), bf16=bf16)
            with (
                only_layers(decoder, stack, slice(split, None)) as out,
                stack[0].register_forward_pre_hook(kept.read),
            ):
                yield out


@torch.no_grad()
def _run(model: nn.Module, rows: Sequence[Row], groups: Sequence[Sequence[int]], *, bf16: bool) -> None:
    device = next(model.parameters()).device
    model.eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for group in track(groups, "lower layers"):
            hidden_states(model, lay_out(model, [rows[i] for i in group]).to(device))


class _Kept:
    """What rows are at one place between two layers, in a file; its methods are hooks."""

    def __init__(self, file: IO[bytes], number: torch.dtype) -> None:
        self.file = file
        self.number = number
        self.places: dict[bytes, int] = {}
        self.now: list[tuple[bytes, int]] = []
        """Key and tokens of each row of the batch that is in the decoder."""

    def arrive(self, _: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """See the batch before the decoder does: positions where rows are packed, else right-padded texts."""
        ids = (given["input_ids"] if "input_ids" in given else args[0]).cpu().numpy()
        positions, mask = given.get("position_ids"), given.get("attention_mask")
        if positions is not None:
            places = positions.cpu().numpy()
            lengths = 1 + (places > 0).sum(1)  # 0 is the first one, and all padding
        else:
            places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
            lengths = np.full(len(ids), ids.shape[1]) if mask is None else mask.sum(1).cpu().numpy()
        self.now = [
            (hashlib.blake2b(row[:n].tobytes() + place[:n].tobytes(), digest_size=16).digest(), int(n))
            for row, place, n in zip(ids, places, lengths, strict=True)
        ]

    def write(self, _: nn.Module, __: object, out: Tensor | tuple[Tensor, ...]) -> None:
        """Keep what comes out of the highest layer below; rows that are there already are not kept twice."""
        states = (out[0] if isinstance(out, tuple) else out).to("cpu", self.number)
        for row, (key, n) in zip(states, self.now, strict=True):
            if key not in self.places:
                self.places[key] = self.file.tell()
                self.file.write(_bytes(row[:n]))

    def read(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replace what goes into the lowest of the top layers, [B, T, H]; padding, which none sees, is 0."""
        states = torch.zeros(args[0].shape, dtype=self.number)
        for row, (key, n) in zip(states, self.now, strict=True):
            self.file.seek(self.places[key])
            self.file.readinto(_bytes(row[:n]))  # type: ignore[attr-defined]
        return (states.to(args[0].device, args[0].dtype), *args[1:])


def _bytes(states: Tensor) -> Any:
    """Return the memory of a tensor that lies in one piece."""
    return states.contiguous().view(torch.uint8).numpy()
