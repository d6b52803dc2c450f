"""The decode loop: prompts of ids in, responses of ids out, the same ones however they are batched.

transformers' own `generate` seeds a whole batch at once and computes rows that ended long ago. Here
every response has its own random numbers, rows leave the batch as they end, and the responses to one
prompt share its prefill. Shapes: P prompts, R responses (rows), T tokens, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from equipoise.errors import RunStoppedError
from equipoise.progress import track
from equipoise.protocols import Sampling

_HEAD = 256
"""The nucleus is looked for among this many likeliest tokens first: sorting the whole vocabulary at each
step costs more than a small model's forward pass."""


class Written(NamedTuple):
    """One response in token ids, without the token that ended it."""

    ids: list[int]
    stop: int | None
    """The token that ended it; None where it reached the limit."""


class Part(NamedTuple):
    """Some of the responses to one prompt: samples first .. first + samples - 1."""

    prompt: int
    first: int
    samples: int


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

    Raises:
        RunStoppedError: the model gives a logit that is no number.
    """
    written: list[list[Written]] = [[] for _ in prompts]
    batches = plan([len(p) for p in prompts], sampling.samples, batch_size)
    for batch in track(batches, label):
        rows = [(part.prompt, part.first + k) for part in batch for k in range(part.samples)]
        sources = [_generator(sampling, keys[prompt], k, model.device) for prompt, k in rows]
        responses = _decode_batch(
            model,
            [prompts[part.prompt] for part in batch],
            [part.samples for part in batch],
            sampling,
            generators=sources,
            stop_ids=stop_ids,
            pad_id=pad_id,
        )
        for (prompt, _), response in zip(rows, responses, strict=True):
            written[prompt].append(response)
    return written


def plan(lengths: Sequence[int], samples: int, batch_size: int) -> list[list[Part]]:
    """Group responses into batches of prompts of like length, the longest first.

    The samples of a prompt stay together where they fit, and stay in order where they do not.

    >>> plan([3, 9], samples=2, batch_size=3)
    [[Part(prompt=1, first=0, samples=2)], [Part(prompt=0, first=0, samples=2)]]
    """
    batches: list[list[Part]] = []
    room = 0  # responses that the last batch can still take
    for prompt in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for first in range(0, samples, batch_size):
            part = Part(prompt, first, min(batch_size, samples - first))
            if part.samples > room:
                batches.append([])
                room = batch_size
            batches[-1].append(part)
            room -= part.samples
    return batches


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


@torch.inference_mode()
def _decode_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    counts: Sequence[int],
    sampling: Sampling,
    *,
    generators: list[torch.Generator],
    stop_ids: frozenset[int],
    pad_id: int,
) -> list[Written]:
    device = model.device
    width = max(len(p) for p in prompts)
    tokens = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)  # [P, T]
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    logits = _forward(model, tokens, mask, positions, cache)  # [P, V]

    share = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(counts)).to(device)  # [R]
    logits, mask, positions = logits[share], mask[share], positions[share, -1:]
    if len(share) > len(prompts):
        cache.batch_select_indices(share)

    ids: list[list[int]] = [[] for _ in range(len(share))]
    stops: list[int | None] = [None] * len(share)
    alive = list(range(len(share)))
    for step in range(sampling.max_new_tokens):
        noise = _noise(logits, generators) if sampling.temperature > 0 else None
        chosen = choose(logits, sampling, noise)  # [R]
        going = []
        for at, (row, token) in enumerate(zip(alive, chosen.tolist(), strict=True)):
            if token in stop_ids:
                stops[row] = token
            else:
                ids[row].append(token)
                going.append(at)
        if not going or step + 1 == sampling.max_new_tokens:
            break
        if len(going) < len(alive):
            alive = [alive[at] for at in going]
            kept = torch.tensor(going, device=device)
            cache.batch_select_indices(kept)
            chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
            generators = [generators[at] for at in going]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
        positions = positions + 1
        logits = _forward(model, chosen[:, None], mask, positions, cache)
    return [Written(i, s) for i, s in zip(ids, stops, strict=True)]


def _forward(
    model: PreTrainedModel, tokens: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache
) -> Tensor:
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
