"""A prompt and its response as token windows that a small encoder can read, and their logits made one.

The text under judgement is read whole: a long response goes in overlapping windows, each with the
prompt, which is context and keeps its head and its tail; a long prompt that is judged by itself goes in
windows of its own. A harmful part counts wherever it stands, so the windows of one text are pooled by the
maximum.

An encoder reads a tokenizer pair. A language model, which has no such thing, reads the two as question
and answer.

Shapes: B rows, N windows of all rows, W windows of a row, T tokens, K severity thresholds, C categories.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from equipoise.models.heads import GuardLogits

MAX_PROMPT_TOKENS = 96
MAX_TOKENS = 256
"""Tokens of a window, prompt and special tokens counted."""
MAX_WINDOWS = 16
"""Windows of one text; of a longer one the first and the last are read."""

PROMPT, RESPONSE = 1, 2


class TextPair(NamedTuple):
    """A prompt, and a response in its context; `response` None judges the prompt by itself."""

    prompt: str
    response: str | None


class PairIds(NamedTuple):
    """Token ids of one window, and for each token whether it is prompt, response or neither (0)."""

    ids: list[int]
    parts: list[int]
    truncated: bool
    """Whether some of the text under judgement is in no window at all."""
    context_truncated: bool = False
    """Whether the prompt before a response has lost its middle."""


class PairBatch(NamedTuple):
    """Padded windows, each [N, T]; a position past the end has mask 0."""

    ids: Tensor
    mask: Tensor
    parts: Tensor

    def to(self, device: torch.device) -> "PairBatch":
        """Return the batch on another device."""
        return PairBatch(*(tensor.to(device) for tensor in self))


def encode_pair(tokenizer: Any, pair: TextPair) -> PairIds:
    """Tokenize one pair into one window; a long prompt keeps its head and its tail, a response its head."""
    return encode_windows(tokenizer, pair, most=1)[0]


def encode_windows(tokenizer: Any, pair: TextPair, most: int = MAX_WINDOWS) -> list[PairIds]:
    """Tokenize one pair into windows of at most 256 tokens, or what the model takes where that is less.

    A prompt of more than 96 tokens before a response keeps its head and its tail. Windows of a response, or
    of a prompt that is judged by itself, start half a window apart, so that every token has at least a
    quarter of a window around it in one of them, unless the text ends there. Where `most` windows do not
    reach, those in the middle are left out; the one window of a prompt has its head and its tail.
    """
    return encode_all(tokenizer, [pair], most)[0]


def encode_all(tokenizer: Any, pairs: Sequence[TextPair], most: int = MAX_WINDOWS) -> list[list[PairIds]]:
    """Windows of many pairs, each as `encode_windows` gives them; texts are quicker tokenized together."""
    frame = _frame(tokenizer)
    limit = min(MAX_TOKENS, tokenizer.model_max_length)
    prompts = _ids(tokenizer, [frame.space + pair.prompt for pair in pairs])
    answered = [frame.space + pair.response for pair in pairs if pair.response is not None]
    responses = iter(_ids(tokenizer, answered))
    return [
        _windows(frame, limit, prompt, None if pair.response is None else next(responses), most)
        for pair, prompt in zip(pairs, prompts, strict=True)
    ]


def _windows(
    frame: "_Frame", limit: int, prompt: list[int], response: list[int] | None, most: int
) -> list[PairIds]:
    room = limit - len(frame.before) - len(frame.between)
    longest = room if response is None else MAX_PROMPT_TOKENS * limit // MAX_TOKENS
    is_long = len(prompt) > longest
    head, is_context = frame.before, response is not None
    if is_long and (is_context or most == 1):
        prompt = prompt[: longest // 2] + prompt[-(longest // 2) :]
    if response is None:
        pieces, is_cut = ([prompt], is_long) if most == 1 else _pieces(prompt, room, most)
        which, before = PROMPT, [0] * len(head)
    else:
        pieces, is_cut = _pieces(response, room - len(prompt) - len(frame.after), most)
        which, before = RESPONSE, [0] * len(head) + [PROMPT] * len(prompt) + [0] * len(frame.between)
        head = [*head, *prompt, *frame.between]
    after = [0] * len(frame.after)
    return [
        PairIds(
            [*head, *piece, *frame.after],
            [*before, *[which] * len(piece), *after],
            is_cut,
            is_long and is_context,
        )
        for piece in pieces
    ]


def _pieces(text: list[int], size: int, most: int) -> tuple[list[list[int]], bool]:
    """Cut a text into overlapping pieces, and say whether some of it is in none."""
    starts = window_starts(len(text), size)
    kept = starts if len(starts) <= most else starts[: most - most // 2] + starts[len(starts) - most // 2 :]
    return [text[start : start + size] for start in kept], len(kept) < len(starts)


def window_starts(length: int, size: int) -> list[int]:
    """Where windows of `size` tokens over a text of `length` begin; the last one ends with the text.

    >>> window_starts(4, 4), window_starts(8, 4), window_starts(9, 4)
    ([0], [0, 2, 4], [0, 2, 4, 5])
    """
    if length <= size:
        return [0]
    return [*range(0, length - size, max(1, size // 2)), length - size]


def pad_pairs(pairs: Sequence[PairIds]) -> PairBatch:
    """Stack windows of different length; masks come from lengths."""
    longest = max(len(pair.ids) for pair in pairs)
    ids, mask, parts = (torch.zeros(len(pairs), longest, dtype=torch.long) for _ in range(3))
    for row, pair in enumerate(pairs):
        n = len(pair.ids)
        ids[row, :n] = torch.tensor(pair.ids)
        parts[row, :n] = torch.tensor(pair.parts)
        mask[row, :n] = 1
    return PairBatch(ids, mask, parts)


def pool_windows(logits: GuardLogits, counts: Sequence[int]) -> GuardLogits:
    """Logits of windows, the windows of each row side by side, [N, ...] -> logits of rows [B, ...].

    P(severity >= k) is the largest of any window, for each k by itself: a maximum of what falls with k
    falls with k. The marginal P(unsafe and category) is the largest of any window too; it cannot exceed
    P(unsafe). Both are turned back into log-odds given the step before. A refusal is that of the first
    window, where a response says whether it declines. A row with one window keeps its logits bit by bit.

    Args:
        logits: Of all windows.
        counts: Windows of each row, at least 1; they add up to N.
    """
    if all(count == 1 for count in counts):
        return logits
    device = logits.severity.device
    sizes = torch.tensor(counts, device=device)
    first = sizes.cumsum(0) - sizes  # [B]
    rows = (sizes > 1).nonzero().squeeze(-1)
    places = torch.arange(max(counts), device=device).minimum(sizes[rows, None] - 1)
    index = first[rows, None] + places  # [rows, W], the last window again where a row has fewer
    exact = torch.float32 if device.type == "mps" else torch.float64  # which has no 64 bits
    severity, categories = logits.severity[index].to(exact), logits.categories[index].to(exact)
    reached = F.logsigmoid(severity).cumsum(-1).amax(1)  # log P(severity >= k), [rows, K]
    marginal = (F.logsigmoid(severity[..., :1]) + F.logsigmoid(categories)).amax(1)  # [rows, C]
    at_least = torch.cat([severity[..., 0].amax(1, keepdim=True), _log_odds(reached.diff(dim=-1))], dim=-1)
    given_unsafe = _log_odds(marginal - reached[:, :1])
    return GuardLogits(
        logits.severity[first].index_copy(0, rows, at_least.to(logits.severity.dtype)),
        logits.categories[first].index_copy(0, rows, given_unsafe.to(logits.categories.dtype)),
        logits.refusal[first],
    )


_ALMOST_ONE = -1e-12
"""Logarithm of a probability that rounding has made 1; its log-odds are 27.6."""


def _log_odds(log_probability: Tensor) -> Tensor:
    """Log p -> log(p / (1 - p)); finite also where p rounds to 1."""
    bounded = log_probability.clamp(max=_ALMOST_ONE)
    return bounded - torch.log(-torch.expm1(bounded))


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
    question, answer = _ids(tokenizer, ["Question:", "\nAnswer:"])
    return _Frame([*first, *question], answer, [], " ")


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    if not texts:
        return []
    options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, **options)["input_ids"]
    return found
