"""The decode loop: prompts of ids in, responses of ids out, the same ones however they are batched.

transformers' own `generate` seeds a whole batch at once and computes rows that ended long ago. Here
every response has its own random numbers, the next one takes the place of a row that ended, and the
responses to one prompt share its prefill. Shapes: P prompts, R responses (rows), T tokens, V vocabulary.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from equipoise.errors import RunStoppedError
from equipoise.generation.slots import Slots, require_slots
from equipoise.progress import bar
from equipoise.protocols import Sampling

_HEAD = 256
"""The nucleus is looked for among this many likeliest tokens first: sorting the whole vocabulary at each
step costs more than a small model's forward pass."""

_PREFILL_TOKENS = 2048
"""Prompt tokens that are read at a time, padding counted."""


class Written(NamedTuple):
    """One response in token ids, without the token that ended it."""

    ids: list[int]
    stop: int | None
    """The token that ended it; None where it reached the limit."""
    logps: tuple[float, ...] = ()
    """Log-probability in nats of each token, the one that ended it last, where asked for; of the model as it
    is, whatever the temperature and the nucleus it was drawn with."""


class _Prefix(NamedTuple):
    """A prompt that was read: its place in a cache, and the logits after it, [V]."""

    prompt: int
    cache: DynamicCache
    row: int
    length: int
    logits: Tensor


@dataclass
class _Row:
    """A response under way."""

    prompt: int
    sample: int
    length: int
    """Tokens of it in the cache, those of the prompt counted."""
    source: torch.Generator
    ids: list[int] = field(default_factory=list)
    stop: int | None = None
    logps: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Drawer:
    """Draws the next token of rows, and says which of them go on."""

    sampling: Sampling
    stop_ids: frozenset[int]
    with_logps: bool

    def __call__(self, logits: Tensor, rows: Sequence[_Row]) -> list[bool]:
        noise = _noise(logits, [row.source for row in rows]) if self.sampling.temperature > 0 else None
        tokens = choose(logits, self.sampling, noise)  # [R]
        if self.with_logps:
            drawn = logits.float().log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
            for row, logp in zip(rows, drawn.tolist(), strict=True):
                row.logps.append(logp)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if token in self.stop_ids:
                row.stop = token
            else:
                row.ids.append(token)
        return [row.stop is None and len(row.ids) < self.sampling.max_new_tokens for row in rows]


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    sampling: Sampling,
    *,
    stop_ids: frozenset[int],
    pad_id: int,
    batch_size: int = 32,
    label: str = "generating",
    with_logps: bool = False,
) -> list[list[Written]]:
    """Return `sampling.samples` responses per prompt.

    Args:
        model: A causal language model in evaluation mode.
        prompts: Token ids, none empty.
        keys: Names of the prompts; sampling is seeded per (seed, key, sample).
        sampling: How to decode.
        stop_ids: Tokens that end a response.
        pad_id: Any id inside the vocabulary; padded positions are masked.
        batch_size: Responses at a time.
        label: What the progress line says.
        with_logps: Also return the log-probabilities of the tokens.

    Raises:
        RunStoppedError: the model gives a logit that is no number.
        ModelError: the model keeps more of a text than keys and values.
    """
    require_slots(model)
    written: list[dict[int, Written]] = [{} for _ in prompts]

    def arrivals() -> Iterator[tuple[_Row, _Prefix]]:
        for prefix in _read(model, prompts, pad_id, batch_size):
            for k in range(sampling.samples):
                source = _generator(sampling, keys[prefix.prompt], k, model.device)
                yield _Row(prefix.prompt, k, prefix.length, source), prefix

    with bar(label, len(prompts) * sampling.samples) as advance:
        for row in _finished(model, arrivals(), _Drawer(sampling, stop_ids, with_logps), batch_size):
            written[row.prompt][row.sample] = Written(row.ids, row.stop, tuple(row.logps))
            advance()
    return [[responses[k] for k in range(sampling.samples)] for responses in written]


def _finished(
    model: PreTrainedModel, arrivals: Iterator[tuple[_Row, _Prefix]], draw: _Drawer, batch_size: int
) -> Iterator[_Row]:
    """Write the rows that arrive, up to `batch_size` at a time, and yield each as it ends."""
    rows: list[_Row] = []
    cache: Slots | None = None
    while True:
        while new := list(islice(arrivals, batch_size - len(rows))):
            goes_on = draw(torch.stack([prefix.logits for _, prefix in new]), [row for row, _ in new])
            for (row, prefix), going in zip(new, goes_on, strict=True):
                if not going:
                    yield row
                    continue
                if cache is None:
                    cache = Slots(prefix.cache, batch_size)
                cache.put(prefix.cache, prefix.row, prefix.length)
                rows.append(row)
        if cache is None or not rows:
            return
        goes_on = draw(_next_logits(model, rows, cache), rows)
        for place in reversed(range(len(rows))):  # what takes a row's place was looked at before
            if not goes_on[place]:
                yield rows[place]
                cache.drop(place)
                rows[place] = rows[-1]
                rows.pop()


def prefill_groups(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Group prompts of like length, the longest first, to be read at a time.

    >>> prefill_groups([3, 9, 4], batch_size=2)
    [[1, 2], [0]]
    """
    groups: list[list[int]] = []
    for prompt in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        most = min(batch_size, max(1, _PREFILL_TOKENS // lengths[groups[-1][0]])) if groups else 0
        if not groups or len(groups[-1]) >= most:
            groups.append([])
        groups[-1].append(prompt)
    return groups


def choose(logits: Tensor, sampling: Sampling, noise: Tensor | None = None) -> Tensor:
    """Pick a token per row: [R, V] -> [R]; where it samples, `noise` holds unit exponentials, [R, V].

    The largest p / e is a draw from p (the Gumbel trick). It is used because the rounding of a logit,
    which depends on the batch, changes such a draw far more rarely than one by cumulative sums.
    """
    if noise is None:
        return logits.argmax(-1)
    probabilities = (logits.float() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        return _nucleus(probabilities, sampling.top_p, noise)
    return (probabilities / noise).argmax(-1)


def _nucleus(probabilities: Tensor, top_p: float, noise: Tensor) -> Tensor:
    """Draw from the smallest set of likeliest tokens whose mass reaches `top_p`. Holtzman et al. 2020."""
    head = min(_HEAD, probabilities.shape[-1])
    mass, order = probabilities.topk(head)  # [R, head]
    tokens = _from_sorted(mass, order, top_p, noise)
    wide = (mass.sum(-1) < top_p).nonzero().flatten()  # rows whose nucleus is larger than the head
    if len(wide):
        mass, order = probabilities[wide].sort(descending=True, stable=True)
        tokens[wide] = _from_sorted(mass, order, top_p, noise[wide])
    return tokens


def _from_sorted(mass: Tensor, order: Tensor, top_p: float, noise: Tensor) -> Tensor:
    inside = mass.cumsum(-1) - mass < top_p
    keys = (mass / noise.gather(-1, order)).where(inside, -1.0)
    return order.gather(-1, keys.argmax(-1, keepdim=True)).squeeze(-1)


def _generator(sampling: Sampling, key: str, sample: int, device: torch.device) -> torch.Generator:
    """Return the random numbers of one response; kinds of devices draw differently."""
    digest = hashlib.sha256(f"{sampling.seed}\0{key}\0{sample}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def _noise(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Return unit exponentials, [R, V], each row from its own generator.

    -log u of 24-bit u is four times as fast as `exponential_`; only tokens rarer than 1e-7 feel the grain.
    """
    noise = torch.empty_like(logits, dtype=torch.float32)
    for row, generator in zip(noise, generators, strict=True):
        row.uniform_(generator=generator)
    return noise.log_().neg_()  # 0 gives infinity, and its token is not drawn


def _read(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int, batch_size: int
) -> Iterator[_Prefix]:
    """Read the prompts, the longest first, as they are asked for."""
    for group in prefill_groups([len(p) for p in prompts], batch_size):
        lengths = [len(prompts[i]) for i in group]
        width = lengths[0]
        padded = [[pad_id] * (width - len(prompts[i])) + list(prompts[i]) for i in group]
        tokens = torch.tensor(padded, device=model.device)  # [P, T]
        place = torch.arange(width, device=model.device)
        positions = place - (width - torch.tensor(lengths, device=model.device)[:, None])  # [P, T]
        # without a config no layer forgets what is outside its window; masks hide it, and rows can be copied
        cache = DynamicCache()
        logits = _forward(model, tokens, (positions >= 0).long(), positions.clamp(min=0), cache)
        for row, prompt in enumerate(group):
            yield _Prefix(prompt, cache, row, lengths[row], logits[row])


def _next_logits(model: PreTrainedModel, rows: Sequence[_Row], cache: Slots) -> Tensor:
    """Feed the last token of each row, and return the logits after it, [R, V]."""
    lengths = torch.tensor([row.length for row in rows], device=model.device)
    width = max(row.length for row in rows)
    cache.narrow(width)
    columns = torch.arange(width + 1, device=model.device)
    mask = (columns >= width - lengths[:, None]).long()  # [R, T + 1]
    tokens = torch.tensor([[row.ids[-1]] for row in rows], device=model.device)
    for row in rows:
        row.length += 1
    return _forward(model, tokens, mask, lengths[:, None], cache)


def _forward(model: PreTrainedModel, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
    """Return the logits after the last token, [R, V], and put the tokens into the cache."""
    out = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: Tensor = out.logits[:, -1]
    if logits.isnan().any():
        raise RunStoppedError(f"{model.name_or_path}: the model gives logits that are no numbers (NaN)")
    return logits
