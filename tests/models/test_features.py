"""Features of question and answer: means over the right tokens, whatever else is in the batch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from equipoise.errors import ModelError
from equipoise.models.backbone import Backbone, load_encoder
from equipoise.models.features import (
    MAX_PROMPT_TOKENS,
    MAX_TOKENS,
    PROMPT,
    RESPONSE,
    PairIds,
    PooledFeatures,
    TextPair,
    embed,
    encode_pair,
    pad_pairs,
)

TEXTS = [
    TextPair("how do i bake bread", "mix flour, water and salt, then wait until the dough has doubled"),
    TextPair("why are there two tides a day", "yes"),
    TextPair("take a warm coat", None),
    TextPair("explain how the weather changes in the mountains", "i cannot help with that request"),
    TextPair("hi", ""),
]


@pytest.fixture(scope="module")
def backbone(tiny_encoder: Path) -> Backbone:
    return load_encoder(tiny_encoder, device="cpu")


@pytest.fixture(scope="module")
def features(backbone: Backbone) -> PooledFeatures:
    return PooledFeatures(backbone.model, layers=2).eval()


def encoded(backbone: Backbone) -> list[PairIds]:
    return [encode_pair(backbone.tokenizer, text) for text in TEXTS]


def plain_loop(backbone: Backbone, pair: PairIds, layers: int) -> Tensor:
    """Means token by token over one unpadded pair: all layers of the prompt, then of the response."""
    segments = [int(part == RESPONSE) for part in pair.parts]
    out = backbone.model(
        input_ids=torch.tensor([pair.ids]),
        token_type_ids=torch.tensor([segments]),
        output_hidden_states=True,
    )
    means = []
    for part in (PROMPT, RESPONSE):
        for layer in range(len(out.hidden_states) - layers, len(out.hidden_states)):
            total, count = torch.zeros(backbone.model.config.hidden_size), 0
            for place, owner in enumerate(pair.parts):
                if owner == part:
                    total, count = total + out.hidden_states[layer][0, place], count + 1
            means.append(total / max(count, 1))
    return torch.cat(means)


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2])
def test_pooling_is_the_mean_over_the_tokens_of_each_part_and_layer(backbone: Backbone, layers: int) -> None:
    model = PooledFeatures(backbone.model, layers).eval()
    found = model(pad_pairs(encoded(backbone)))
    assert found.shape == (len(TEXTS), model.width)
    expected = torch.stack([plain_loop(backbone, pair, layers) for pair in encoded(backbone)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_padding_and_the_rest_of_the_batch_change_nothing(
    backbone: Backbone, features: PooledFeatures
) -> None:
    pairs = encoded(backbone)
    together = features(pad_pairs(pairs))
    alone = torch.cat([features(pad_pairs([pair])) for pair in pairs])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    batch = pad_pairs(pairs[:1])
    noise = batch.ids.new_full((1, 7), 5)
    padded = batch._replace(
        ids=torch.cat([batch.ids, noise], 1),
        mask=torch.cat([batch.mask, torch.zeros_like(noise)], 1),
        parts=torch.cat([batch.parts, torch.zeros_like(noise)], 1),
    )
    torch.testing.assert_close(features(padded), together[:1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_a_response_its_half_is_zero(backbone: Backbone, features: PooledFeatures) -> None:
    found = features(pad_pairs(encoded(backbone)))[2]
    half = features.width // 2
    assert torch.equal(found[half:], torch.zeros(half))
    assert found[:half].abs().min() > 0


def test_embed_returns_rows_in_order_whatever_the_batch_size(
    backbone: Backbone, features: PooledFeatures
) -> None:
    pairs = encoded(backbone) * 3
    expected = torch.cat([embed(features, [pair]) for pair in pairs])
    for budget in (1, 40, 8192):
        found = embed(features, pairs, tokens_per_batch=budget)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert embed(features, []).shape == (0, features.width)


def test_features_in_fewer_bits_are_nearly_the_same(backbone: Backbone, features: PooledFeatures) -> None:
    exact, rounded = (embed(features, encoded(backbone), bf16=bf16) for bf16 in (False, True))
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


def test_a_pair_is_marked_token_by_token(backbone: Backbone) -> None:
    pair = encode_pair(backbone.tokenizer, TextPair("warm coat", "yes"))
    start, end = backbone.tokenizer.cls_token_id, backbone.tokenizer.sep_token_id
    assert pair.ids == backbone.tokenizer("warm coat", "yes")["input_ids"]
    assert [i for i, part in zip(pair.ids, pair.parts, strict=True) if part == 0] == [start, end, end]
    assert pair.parts == [0, *[PROMPT] * pair.parts.count(PROMPT), 0, *[RESPONSE] * pair.parts.count(2), 0]
    assert not pair.truncated


@pytest.mark.parametrize("response", ["yes", None])
def test_a_long_prompt_keeps_its_head_and_its_tail(backbone: Backbone, response: str | None) -> None:
    words = ["bread", *["water"] * 400, "coat"]
    tokenizer = backbone.tokenizer
    pair = encode_pair(tokenizer, TextPair(" ".join(words), response))
    kept = [i for i, part in zip(pair.ids, pair.parts, strict=True) if part == PROMPT]
    whole = tokenizer(" ".join(words), add_special_tokens=False, verbose=False)["input_ids"]
    half = len(kept) // 2
    assert (pair.truncated, pair.context_truncated) == (response is None, response is not None)
    assert kept == whole[:half] + whole[-half:]
    assert len(pair.ids) <= tokenizer.model_max_length  # 128 for this encoder


def test_a_long_response_keeps_its_head(backbone: Backbone, features: PooledFeatures) -> None:
    pair = encode_pair(backbone.tokenizer, TextPair("hi", "bread " + "water " * 400 + "coat"))
    whole = backbone.tokenizer("bread " + "water " * 400, add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    kept = [i for i, part in zip(pair.ids, pair.parts, strict=True) if part == RESPONSE]
    assert pair.truncated
    assert kept == whole[: len(kept)]
    assert len(pair.ids) == backbone.tokenizer.model_max_length
    assert torch.isfinite(embed(features, [pair])).all()


def test_an_encoder_with_room_takes_the_full_budget(backbone: Backbone) -> None:
    long = "water " * 400
    before = backbone.tokenizer.model_max_length
    backbone.tokenizer.model_max_length = 512
    try:
        pair = encode_pair(backbone.tokenizer, TextPair(long, long))
        alone = encode_pair(backbone.tokenizer, TextPair(long, None))
    finally:
        backbone.tokenizer.model_max_length = before
    assert len(pair.ids) == len(alone.ids) == MAX_TOKENS
    assert pair.parts.count(PROMPT) == MAX_PROMPT_TOKENS


def test_more_layers_than_there_are_is_an_error(backbone: Backbone) -> None:
    with pytest.raises(ModelError, match="layers: the model has fewer, got 6; expected 1 to 2"):
        PooledFeatures(backbone.model, layers=6)


def test_pooled_layers_are_spread_over_the_depth(backbone: Backbone) -> None:
    backbone.model.config.num_hidden_layers = 30
    try:
        spread = [PooledFeatures(backbone.model, layers).layers for layers in (1, 6, 30)]
    finally:
        backbone.model.config.num_hidden_layers = 2
    assert spread == [[30], [5, 10, 15, 20, 25, 30], list(range(1, 31))]


def test_a_language_model_reads_question_and_answer(tiny_llama: Path) -> None:
    model = load_encoder(tiny_llama, device="cpu")
    pairs = [encode_pair(model.tokenizer, text) for text in TEXTS]
    assert model.tokenizer.decode(pairs[1].ids) == "Question: why are there two tides a day\nAnswer: yes"
    assert model.tokenizer.decode(pairs[2].ids) == "Question: take a warm coat"
    for part, text in ((PROMPT, " why are there two tides a day"), (RESPONSE, " yes")):
        own = [i for i, owner in zip(pairs[1].ids, pairs[1].parts, strict=True) if owner == part]
        assert model.tokenizer.decode(own) == text


@torch.no_grad()
def test_a_language_model_is_pooled_as_by_hand(tiny_llama: Path) -> None:
    model = load_encoder(tiny_llama, device="cpu")
    pairs = [encode_pair(model.tokenizer, text) for text in TEXTS[:2]]
    found = PooledFeatures(model.model, 2).eval()(pad_pairs(pairs))
    for row, pair in enumerate(pairs):
        states = model.model(input_ids=torch.tensor([pair.ids]), output_hidden_states=True).hidden_states
        expected = [
            torch.stack([states[layer][0, i] for i, p in enumerate(pair.parts) if p == part]).mean(0)
            for part in (PROMPT, RESPONSE)
            for layer in (1, 2)
        ]
        torch.testing.assert_close(found[row], torch.cat(expected), rtol=0, atol=1e-5)
