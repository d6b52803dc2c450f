"""One vector per question and answer, from a model's layers: what the guard and the small scorer read.

Prompt and response are pooled apart, so that a head can weigh a harmless answer against a harmful
question, and from layers of every depth, because the last one has forgotten much: an encoder's is tuned
for similarity of topic, a language model's for the next word.

Shapes: B batch, T tokens, H width of the model, L pooled layers, F = 2 * L * H features.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from equipoise.errors import ModelError
from equipoise.models.windows import (
    MAX_PROMPT_TOKENS,
    MAX_TOKENS,
    PROMPT,
    RESPONSE,
    PairBatch,
    PairIds,
    TextPair,
    encode_pair,
    pad_pairs,
)
from equipoise.progress import bar

__all__ = [
    "MAX_PROMPT_TOKENS",
    "MAX_TOKENS",
    "PROMPT",
    "RESPONSE",
    "PairBatch",
    "PairIds",
    "PooledFeatures",
    "TextPair",
    "batch_tokens",
    "embed",
    "encode_pair",
    "length_batches",
    "pad_pairs",
    "pool_parts",
]


class PooledFeatures(nn.Module):
    """A model without a language-model head, and its pooling: token ids of a pair in, one vector out."""

    def __init__(self, encoder: nn.Module, layers: int = 6) -> None:
        """Pool `layers` layers, the last and others at even steps below; too many raise ModelError."""
        super().__init__()
        has = int(encoder.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
        if layers > has:
            raise ModelError(f"layers: the model has fewer, got {layers}; expected 1 to {has}")
        self.encoder = encoder
        self.layers = [has * (i + 1) // layers for i in range(layers)]

    @property
    def width(self) -> int:
        """Number of features F."""
        return 2 * len(self.layers) * int(self.encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, batch: PairBatch) -> Tensor:
        """Mean over the prompt's and over the response's tokens of each pooled layer, [B, F].

        Where there is no response its half is zero.
        """
        states = self.states(batch)
        return pool_parts([states[layer] for layer in self.layers], batch.parts).flatten(1)

    def states(self, batch: PairBatch) -> Sequence[Tensor]:
        """What goes into the first layer, then what comes out of each, [B, T, H] each."""
        segments = (batch.parts == RESPONSE).long() if self._takes_segments else None
        out = self.encoder(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            output_hidden_states=True,
            **({"token_type_ids": segments} if segments is not None else {}),
        )
        found: Sequence[Tensor] = out.hidden_states
        return found

    @property
    def _takes_segments(self) -> bool:
        return getattr(self.encoder.config, "type_vocab_size", 0) > 1


def pool_parts(states: Iterable[Tensor], parts: Tensor) -> Tensor:
    """Mean over the tokens of the prompt, and over those of the response, of L layers.

    [B, T, H] of each layer and [B, T] -> [B, 2 * L, H]. Where a part has no tokens its mean is zero.
    """
    member = torch.stack([parts == PROMPT, parts == RESPONSE], dim=1)  # [B, 2, T]
    count = member.sum(-1, keepdim=True).clamp(min=1)
    means = [member.to(state.dtype) @ state / count for state in states]  # a product each: nothing is copied
    return torch.stack(means, dim=2).flatten(1, 2)


@torch.no_grad()
def embed(
    model: PooledFeatures,
    pairs: Sequence[PairIds],
    *,
    tokens_per_batch: int | None = None,
    label: str = "embedding",
    bf16: bool = False,
) -> Tensor:
    """Features of many pairs, [N, F] in fp32 on the CPU; batches hold pairs of like length.

    With `bf16` they are computed in bfloat16 autocast.
    """
    device = next(model.parameters()).device
    out = torch.zeros(len(pairs), model.width)
    tokens = tokens_per_batch or batch_tokens(device)
    model.eval()
    with bar(label, len(pairs)) as advance, torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for rows in length_batches([len(pair.ids) for pair in pairs], tokens):
            out[rows] = model(pad_pairs([pairs[i] for i in rows]).to(device)).float().cpu()
            for _ in rows:
                advance()
    return out


def batch_tokens(device: torch.device) -> int:
    """Padded tokens that are best read at a time: what stays in a cache, or what fills an accelerator."""
    return 1024 if device.type == "cpu" else 8192


def length_batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices of rows in batches of like length, shortest first; a padded batch has at most `tokens`."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
