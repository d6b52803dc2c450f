"""Which of the responses to a prompt are kept: the default one, and others that are good and unlike it.

As PKU-SafeRLHF made its pairs: one answer at the default decoding and some at a raised temperature, from
one or several models; gibberish is dropped, and what is left is taken greedily by quality less its
similarity to what was taken before (maximal marginal relevance, Carbonell and Goldstein 1998).
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.curation.filters import BatchFilter, Filter, first_reasons
from equipoise.curation.gibberish import Likelihood
from equipoise.curation.minhash import normalise
from equipoise.data.io import parse_record
from equipoise.data.rows import read_rows
from equipoise.errors import DataError
from equipoise.protocols import Embedder
from equipoise.records import Answer, Exchange, Pair, Prompt

Floats = NDArray[np.float64]

Similarity = Callable[[Sequence[str]], Floats]
"""How alike some texts are, [texts, texts], 0..1."""

_SHINGLE = 5
_ADDED = ("response", "model", "sample")


class Response(NamedTuple):
    """One response on its way."""

    text: str
    model: str
    sample: int
    is_default: bool
    """At the model's default decoding."""


class Chosen(NamedTuple):
    """A response that is kept."""

    response: Response
    quality: float
    similarity: float
    """To the most similar one taken before it; 0 for the first."""


class Asked(NamedTuple):
    """A prompt with its responses."""

    prompt: Prompt
    responses: list[Response]


def by_shingles(texts: Sequence[str]) -> Floats:
    """Return the Jaccard index of the texts' runs of five characters, [N, N].

    >>> by_shingles(["the same", "The same"]).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    sets = [_shingles(normalise(text)) for text in texts]
    return np.array([[len(a & b) / max(1, len(a | b)) for b in sets] for a in sets])


def by_embeddings(embed: Embedder) -> Similarity:
    """Return a similarity that is the cosine of the texts' vectors, no less than 0."""

    def similarity(texts: Sequence[str]) -> Floats:
        vectors = np.asarray(embed(texts), dtype=np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return np.clip(vectors @ vectors.T, 0.0, 1.0)

    return similarity


def select(
    responses: Sequence[Response],
    quality: Sequence[float],
    similarity: Floats,
    *,
    keep: int,
    weight: float = 0.5,
    most: float = 0.7,
) -> list[Chosen]:
    """Return up to `keep` responses in the order in which they were taken, a default one first.

    Args:
        responses: To one prompt.
        quality: One value each; only their order counts.
        similarity: [N, N], 0..1.
        keep: How many are taken.
        weight: Of the quality's rank (0..1) against the similarity.
        most: Similarity to one that is taken from which on a response is left out.
    """
    count = len(responses)
    order = np.argsort(np.argsort(np.asarray(quality), kind="stable"), kind="stable")
    rank = order / max(1, count - 1)
    taken: list[int] = []
    chosen: list[Chosen] = []
    while len(taken) < keep:
        nearest = similarity[:, taken].max(axis=1) if taken else np.zeros(count)
        value = weight * rank - (1 - weight) * nearest
        value[taken] = -np.inf
        value[nearest >= most] = -np.inf
        if not taken and any(r.is_default for r in responses):
            value[[not r.is_default for r in responses]] = -np.inf
        if count == 0 or np.isneginf(value).all():
            break
        best = int(value.argmax())
        taken.append(best)
        chosen.append(Chosen(responses[best], float(quality[best]), float(nearest[best])))
    return chosen


def read_responses(path: Path, *, greedy_first: bool, dropped: Counter[str]) -> Iterator[Asked]:
    """Yield the prompts of a file of `generate` with their responses, in order of the prompts.

    Args:
        path: Rows of a prompt's fields with `response`, `model` and `sample`; a row with `error` is dropped.
        greedy_first: The first sample of each model is its default answer.
        dropped: Counts what is left out.

    Raises:
        DataError: a row is no prompt with a response.
    """
    asked: dict[str, Asked] = {}
    firsts: dict[tuple[str, str], Any] = {}
    for row in read_rows(path):
        if row.values.get("error") is not None:
            dropped["error"] += 1
            owner = (str(row.values.get("id")), str(row.values.get("model")))
            firsts.setdefault(owner, row.values.get("sample"))  # a default that failed: none takes its place
            continue
        values: dict[str, Any] = dict(row.values)
        text, model, sample = (values.pop(name, None) for name in _ADDED)
        if not isinstance(text, str) or not isinstance(model, str) or not isinstance(sample, int):
            where = f"{path}:{row.line}"
            raise DataError(f"{where}: expected a prompt with response, model and sample, as generate writes")
        prompt = parse_record(row._replace(values=values), Prompt)
        first = firsts.setdefault((prompt.id, model), sample)
        response = Response(text.strip(), model, sample, greedy_first and sample == first)
        asked.setdefault(prompt.id, Asked(prompt, [])).responses.append(response)
    yield from asked.values()


def sound(
    asked: Sequence[Asked], filters: Sequence[Filter | BatchFilter], dropped: Counter[str]
) -> list[Asked]:
    """Leave out empty responses, those that a filter refuses and repetitions; reasons are counted."""
    texts = [r.text for a in asked for r in a.responses if r.text]
    reasons = iter(first_reasons(texts, filters))
    left = []
    for prompt, responses in asked:
        kept: list[Response] = []
        for response in responses:
            reason = next(reasons) if response.text else "empty"
            if reason is None and any(response.text == other.text for other in kept):
                reason = "again"
            if reason is None:
                kept.append(response)
            else:
                dropped[reason] += 1
        left.append(Asked(prompt, kept))
    return left


def qualities(asked: Sequence[Asked], likelihood: Likelihood | None) -> list[list[float]]:
    """Return one value per response: mean log-likelihood in nats per token, 0 without a language model.

    Raises:
        DataError: A response is empty, which is neither likely nor unlikely.
    """
    texts = [r.text for a in asked for r in a.responses]
    empty = next((a.prompt for a in asked if not all(r.text.strip() for r in a.responses)), None)
    if likelihood and empty:
        raise DataError(f"{empty.source}: {empty.id}: an empty response; expected min_chars 1 at least")
    values = iter(likelihood(texts) if likelihood and texts else [0.0] * len(texts))
    return [[next(values) for _ in a.responses] for a in asked]


def exchanges_of(prompt: Prompt, chosen: Sequence[Chosen]) -> list[Exchange]:
    """Return the chosen responses as exchanges that are yet to be judged."""
    return [
        Exchange(
            id=f"{prompt.id}-r{number}",
            prompt=prompt.prompt,
            prompt_is_harmful=prompt.is_harmful,
            response=one.response.text,
            source=prompt.source,
            licence=prompt.licence,
            taxonomy=prompt.taxonomy,
            provenance={**_about(prompt), **_origin(one)},
        )
        for number, one in enumerate(chosen)
    ]


def pairs_of(prompt: Prompt, chosen: Sequence[Chosen], seed: int) -> list[Pair]:
    """Return the first response with each of the others as pairs, in a random order of the two."""
    pairs = []
    for number, other in enumerate(chosen[1:]):
        two = [chosen[0], other]
        random.Random(f"{seed}/{prompt.id}/{number}").shuffle(two)
        first, second = two
        pairs.append(
            Pair(
                id=f"{prompt.id}-p{number}",
                prompt=prompt.prompt,
                answers=(Answer(response=first.response.text), Answer(response=second.response.text)),
                source=prompt.source,
                licence=prompt.licence,
                taxonomy=prompt.taxonomy,
                provenance={**_about(prompt), "answers": [_origin(first), _origin(second)]},
            )
        )
    return pairs


def _about(prompt: Prompt) -> dict[str, Any]:
    """Return what is known of the prompt, which an exchange has no field for."""
    about: dict[str, Any] = {"id": prompt.id, "label_origin": prompt.label_origin, "twin": prompt.twin}
    if prompt.is_harmful:
        about |= {"categories": sorted(prompt.categories or ()), "severity": prompt.severity}
    return {"prompt": {key: value for key, value in about.items() if value is not None}}


def _origin(one: Chosen) -> dict[str, Any]:
    return {
        "response_source": one.response.model,
        "sample": one.response.sample,
        "decoding": "default" if one.response.is_default else "raised",
        "quality": round(one.quality, 4),
        "similarity": round(one.similarity, 4),
    }


def _shingles(text: str) -> set[str]:
    return {text[i : i + _SHINGLE] for i in range(max(1, len(text) - _SHINGLE + 1))}
