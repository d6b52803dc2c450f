"""Rows in which several responses share one prompt, and what a causal model says of them.

A preference pair is one row: prompt, chosen, rejected. Both responses continue the same prompt (their
positions restart at its end) and cannot see each other, so the prompt is computed once and the result
is that of separate passes. A model that cannot be told so gets one row per response instead, with the
same numbers. Masks come from lengths: an id is never compared with the padding id, which is often also
the end of a sequence.

Shapes: B rows, T tokens of the longest row, N response tokens of the batch, R its responses (those of
row 0, then those of row 1, ...), H width, V vocabulary.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from equipoise.errors import DataError, ModelError
from equipoise.models.masks import SHARING, attention_mask, shares_prefix, unwrapped
from equipoise.objectives.sequence import logit_logps, segment_sums, token_logps

__all__ = [
    "PackedBatch",
    "ResponseLogps",
    "Row",
    "attention_mask",
    "hidden_states",
    "lay_out",
    "pack",
    "response_hidden",
    "response_logps",
    "response_states",
    "shares_prefix",
    "split_rows",
    "token_budget_batches",
]


class Row(NamedTuple):
    """Token ids of one prompt and of the responses that continue it; none of them is empty."""

    prompt: list[int]
    responses: list[list[int]]

    @property
    def length(self) -> int:
        """Tokens of the row, prompt counted once."""
        return len(self.prompt) + sum(map(len, self.responses))


@dataclass(frozen=True)
class PackedBatch:
    """Rows as tensors, and where their response tokens are predicted."""

    input_ids: Tensor
    """[B, T]"""
    position_ids: Tensor
    """[B, T] each response starts at the length of its prompt; 0 on padding."""
    segments: Tensor
    """[B, T] 0 prompt, k >= 1 the k-th response of the row, -1 padding."""
    rows: Tensor
    """[N] row of each response token."""
    predictors: Tensor
    """[N] place in the row of the token before it: the last of the prompt, or of the same response."""
    targets: Tensor
    """[N] id of the response token."""
    slots: Tensor
    """[N] response 0..R-1 of the batch that the token belongs to."""
    end_rows: Tensor
    """[R] row of each response."""
    end_positions: Tensor
    """[R] place in the row of the last token of each response."""
    has_siblings: bool
    """Whether any row has more than one response."""
    is_padded: bool
    """Whether any row is shorter than T."""

    def to(self, device: torch.device) -> "PackedBatch":
        """Return the batch on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each response, [R]."""
        return torch.bincount(self.slots, minlength=len(self.end_rows))


class ResponseLogps(NamedTuple):
    """Log-probabilities in nats of responses, given their prompts."""

    sums: Tensor
    """[R] of the whole response."""
    lengths: Tensor
    """[R] tokens."""
    tokens: Tensor
    """[N] of each token, response after response."""


def pack(rows: Sequence[Row], *, pad_id: int = 0) -> PackedBatch:
    """Lay rows out as tensors, the responses of a row side by side, padded on the right.

    Raises:
        DataError: A prompt or a response has no tokens, or a row has no responses.
    """
    width = max((row.length for row in rows), default=0)
    ids: list[list[int]] = []
    positions: list[list[int]] = []
    segments: list[list[int]] = []
    token_rows: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    slots: list[int] = []
    end_rows: list[int] = []
    end_positions: list[int] = []
    for number, row in enumerate(rows):
        if not row.prompt or not row.responses or not all(row.responses):
            empty = "prompt" if not row.prompt else "response" if row.responses else "list of responses"
            raise DataError(f"row {number} of the batch: empty {empty}; expected at least one token in each")
        start = len(row.prompt)
        row_ids, row_positions, row_segments = list(row.prompt), list(range(start)), [0] * start
        for segment, response in enumerate(row.responses, start=1):
            first = len(row_ids)
            last = first + len(response) - 1
            predictors += [start - 1, *range(first, last)]  # the first token follows the prompt
            targets += response
            token_rows += [number] * len(response)
            slots += [len(end_rows)] * len(response)
            end_rows.append(number)
            end_positions.append(last)
            row_ids += response
            row_positions += range(start, start + len(response))
            row_segments += [segment] * len(response)
        padding = width - len(row_ids)
        ids.append(row_ids + [pad_id] * padding)
        positions.append(row_positions + [0] * padding)
        segments.append(row_segments + [-1] * padding)
    return PackedBatch(
        input_ids=torch.tensor(ids, dtype=torch.long),
        position_ids=torch.tensor(positions, dtype=torch.long),
        segments=torch.tensor(segments, dtype=torch.long),
        rows=torch.tensor(token_rows, dtype=torch.long),
        predictors=torch.tensor(predictors, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        slots=torch.tensor(slots, dtype=torch.long),
        end_rows=torch.tensor(end_rows, dtype=torch.long),
        end_positions=torch.tensor(end_positions, dtype=torch.long),
        has_siblings=any(len(row.responses) > 1 for row in rows),
        is_padded=any(row.length < width for row in rows),
    )


def split_rows(rows: Sequence[Row], *, pad_id: int = 0) -> PackedBatch:
    """Lay each response out as a row of its own after a copy of its prompt; responses keep their order."""
    return pack([Row(row.prompt, [response]) for row in rows for response in row.responses], pad_id=pad_id)


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group the indices of rows, shortest first, so that rows times the longest stays within `budget`.

    A row that is longer than the budget is a batch of its own. Ties keep their order.

    >>> token_budget_batches([5, 1, 4, 9], 10)
    [[1, 2], [0], [3]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def lay_out(model: nn.Module, rows: Sequence[Row]) -> PackedBatch:
    """Lay rows out as this model can read them: prompts shared, or else copied with one warning."""
    reason = shares_prefix(model)
    if reason is None:
        return pack(rows)
    if any(len(row.responses) > 1 for row in rows):
        _warn_once(reason)
    return split_rows(rows)


@lru_cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"{reason}: every response is computed with its own copy of the prompt (same numbers, slower)",
        stacklevel=3,
    )


def hidden_states(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Last hidden state at every position of a batch, [B, T, H], through the decoder alone.

    Args:
        model: A causal model or its decoder, bare or with LoRA adapters; gradients flow, and gradient
            checkpointing works as it is set.
        batch: As `lay_out` makes it for this model.

    Raises:
        ModelError: The batch has several responses in a row and the model cannot keep them apart, or
            the model has learned prompts, which its decoder alone would miss.
    """
    return _decode(_decoder_of(model), model, batch).last_hidden_state  # type: ignore[no-any-return]


def response_hidden(model: nn.Module, rows: Sequence[Row] | PackedBatch) -> Tensor:
    """Hidden state at the last token of each response, [R, H]: what a scorer reads."""
    batch = _batch(model, rows)
    return hidden_states(model, batch)[batch.end_rows, batch.end_positions]


def response_logps(model: nn.Module, rows: Sequence[Row] | PackedBatch) -> ResponseLogps:
    """Log-probabilities of every response token given what comes before it.

    Logits are computed at response positions only, a chunk at a time. A model type whose logits are
    not known to be a plain product, or whose output embedding is adapted, computes them itself, all
    positions at once.
    """
    return _logps(model, _batch(model, rows), with_hidden=False)[0]


def response_states(model: nn.Module, rows: Sequence[Row] | PackedBatch) -> tuple[ResponseLogps, Tensor]:
    """What `response_logps` gives, and the last hidden state [N, H] that each token was predicted from."""
    logps, hidden = _logps(model, _batch(model, rows), with_hidden=True)
    assert hidden is not None
    return logps, hidden


def _logps(model: nn.Module, batch: PackedBatch, *, with_hidden: bool) -> tuple[ResponseLogps, Tensor | None]:
    decoder, causal = _decoder_of(model), unwrapped(model)
    head = causal.get_output_embeddings()
    if head is None:
        raise ModelError(
            f"{type(causal).__name__}: has no output embedding; expected a causal language model"
        )
    place = (batch.rows, batch.predictors)
    if decoder.config.model_type in SHARING and type(head) is nn.Linear:
        hidden = _decode(decoder, model, batch).last_hidden_state[place]
        cap = getattr(decoder.config, "final_logit_softcapping", None)
        tokens = token_logps(hidden, head.weight, batch.targets, bias=head.bias, softcap=cap)
    else:  # scaled, adapted or quantised logits
        out = _decode(causal, model, batch, output_hidden_states=with_hidden)
        hidden = out.hidden_states[-1][place] if with_hidden else None
        tokens = logit_logps(out.logits[place], batch.targets)
    sums = segment_sums(tokens, batch.slots, len(batch.end_rows))
    return ResponseLogps(sums, batch.lengths, tokens), hidden


def _batch(model: nn.Module, rows: Sequence[Row] | PackedBatch) -> PackedBatch:
    batch = rows if isinstance(rows, PackedBatch) else lay_out(model, rows)
    return batch.to(unwrapped(model).get_input_embeddings().weight.device)


def _decoder_of(model: Any) -> Any:
    if hasattr(model, "get_base_model") and model.active_peft_config.is_prompt_learning:
        kind = model.active_peft_config.peft_type.value
        raise ModelError(f"adapter of type {kind}: adds tokens of its own; expected one that changes weights")
    return unwrapped(model).get_decoder()


def _decode(module: Any, model: nn.Module, batch: PackedBatch, **options: Any) -> Any:
    """Run `module`, the decoder or the whole of `model`, on a batch."""
    reason = shares_prefix(model)
    if reason is not None and batch.has_siblings:
        raise ModelError(f"{reason}: cannot keep responses of one row apart; expected rows from split_rows")
    if reason is None and (batch.has_siblings or batch.is_padded):
        decoder = unwrapped(model).get_decoder()
        mask = attention_mask(batch, decoder.config, decoder.dtype)
        return module(
            input_ids=batch.input_ids,
            attention_mask=mask,
            position_ids=batch.position_ids,
            use_cache=False,
            **options,
        )
    # One response a row: an ordinary right-padded text, which every model reads by itself. No mask where
    # there is no padding, so that the causal kernels are used.
    plain = (batch.segments >= 0).long() if batch.is_padded else None
    return module(input_ids=batch.input_ids, attention_mask=plain, use_cache=False, **options)
