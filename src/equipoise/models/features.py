"""One vector per question and answer, from a model's layers: what the guard and the small scorer read.

Prompt and response are pooled apart, so that a head can weigh a harmless answer against a harmful
question, and from layers of every depth, because the last one has forgotten much: an encoder's is tuned
for similarity of topic, a language model's for the next word.

An encoder reads a tokenizer pair. A language model, which has no such thing, reads the two as question
and answer.

Shapes: B batch, T tokens, H width of the model, L pooled layers, F = 2 * L * H features.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from equipoise.errors import ModelError
from equipoise.progress import bar

MAX_PROMPT_TOKENS = 96
MAX_TOKENS = 256

PROMPT, RESPONSE = 1, 2


class TextPair(NamedTuple):
    """A prompt, and a response in its context; `response` None judges the prompt by itself."""

    prompt: str
    response: str | None


class PairIds(NamedTuple):
    """Token ids of one pair, and for each token whether it is prompt, response or neither (0)."""

    ids: list[int]
    parts: list[int]
    truncated: bool


class PairBatch(NamedTuple):
    """Padded pairs, each [B, T]; a position past the end has mask 0."""

    ids: Tensor
    mask: Tensor
    parts: Tensor

    def to(self, device: torch.device) -> "PairBatch":
        """Return the batch on another device."""
        return PairBatch(*(tensor.to(device) for tensor in self))


def encode_pair(tokenizer: Any, pair: TextPair) -> PairIds:
    """Tokenize one pair; a long prompt keeps its head and its tail, a long response its head."""
    frame = _frame(tokenizer)
    limit = min(MAX_TOKENS, tokenizer.model_max_length)
    room = limit - len(frame.before) - len(frame.between)
    most = room if pair.response is None else MAX_PROMPT_TOKENS * limit // MAX_TOKENS
    prompt = _ids(tokenizer, frame.space + pair.prompt)
    truncated = len(prompt) > most
    if truncated:
        half = most // 2
        prompt = prompt[:half] + prompt[-half:]
    head = [*frame.before, *prompt]
    parts = [0] * len(frame.before) + [PROMPT] * len(prompt)
    if pair.response is None:
        return PairIds(head + frame.after, parts + [0] * len(frame.after), truncated)
    response = _ids(tokenizer, frame.space + pair.response)
    kept = response[: room - len(prompt) - len(frame.after)]
    ids = [*head, *frame.between, *kept, *frame.after]
    parts += [0] * len(frame.between) + [RESPONSE] * len(kept) + [0] * len(frame.after)
    return PairIds(ids, parts, truncated or len(kept) < len(response))


class _Frame(NamedTuple):
    """What stands around the two texts, as token ids; `space` comes before each text."""

    before: list[int]
    between: list[int]
    after: list[int]
    space: str


def _frame(tokenizer: Any) -> _Frame:
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    if start is not None and end is not None:
        return _Frame([start], [end], [end], "")
    first = [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]
    return _Frame([*first, *_ids(tokenizer, "Question:")], _ids(tokenizer, "\nAnswer:"), [], " ")


def _ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def pad_pairs(pairs: Sequence[PairIds]) -> PairBatch:
    """Stack pairs of different length; masks come from lengths."""
    longest = max(len(pair.ids) for pair in pairs)
    ids, mask, parts = (torch.zeros(len(pairs), longest, dtype=torch.long) for _ in range(3))
    for row, pair in enumerate(pairs):
        n = len(pair.ids)
        ids[row, :n] = torch.tensor(pair.ids)
        parts[row, :n] = torch.tensor(pair.parts)
        mask[row, :n] = 1
    return PairBatch(ids, mask, parts)


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
        segments = (batch.parts == RESPONSE).long() if self._takes_segments else None
        out = self.encoder(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            output_hidden_states=True,
            **({"token_type_ids": segments} if segments is not None else {}),
        )
        states = torch.stack([out.hidden_states[layer] for layer in self.layers])  # [L, B, T, H]
        pooled = []
        for part in (PROMPT, RESPONSE):
            weight = (batch.parts == part).to(states.dtype)  # [B, T]
            total = weight.sum(-1).clamp(min=1.0)[None, :, None]
            pooled.append(torch.einsum("lbth,bt->lbh", states, weight) / total)  # [L, B, H]
        return torch.cat(pooled).transpose(0, 1).flatten(1)  # [B, F]

    @property
    def _takes_segments(self) -> bool:
        return getattr(self.encoder.config, "type_vocab_size", 0) > 1


@torch.no_grad()
def embed(
    model: PooledFeatures,
    pairs: Sequence[PairIds],
    *,
    tokens_per_batch: int = 8192,
    label: str = "embedding",
) -> Tensor:
    """Features of many pairs, [N, F] in fp32 on the CPU; batches hold pairs of like length."""
    device = next(model.parameters()).device
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].ids))
    out = torch.zeros(len(pairs), model.width)
    model.eval()
    done = 0
    with bar(label, len(pairs)) as advance:
        while done < len(order):
            size = max(1, tokens_per_batch // MAX_TOKENS)
            while (
                done + size < len(order)
                and (size + 1) * len(pairs[order[done + size]].ids) <= tokens_per_batch
            ):
                size += 1
            rows = order[done : done + size]
            out[rows] = model(pad_pairs([pairs[i] for i in rows]).to(device)).float().cpu()
            done += len(rows)
            for _ in rows:
                advance()
    return out
