"""Rows that come and go, of models with and without windows, against plain passes over the whole text."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from equipoise.errors import ModelError
from equipoise.generation.decoding import decode
from equipoise.generation.slots import Slots, require_slots
from equipoise.protocols import Sampling

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.4,
    "pad_token_id": 0,
}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SIZES, head_dim=8, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_positions=200, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4)
    ),
}
PROMPTS = [[1 + (7 * i + 3 * j) % 96 for j in range(n)] for i, n in enumerate((3, 14, 1, 9, 11, 2))]
STOPS = frozenset(range(1, 12))


def written_alone(model: Any, prompt: list[int], limit: int) -> tuple[list[int], int | None]:
    """The greedy response, by a pass over the whole text for every token."""
    ids: list[int] = []
    with torch.inference_mode():
        while len(ids) < limit:
            token = int(model(torch.tensor([prompt + ids]), use_cache=False).logits[0, -1].argmax())
            if token in STOPS:
                return ids, token
            ids.append(token)
    return ids, None


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", list(MODELS))
def test_rows_that_come_and_go_are_written_as_if_alone(name: str, kernel: str) -> None:
    torch.manual_seed(2)
    model = MODELS[name]().eval()
    model.set_attn_implementation(kernel)
    expected = [written_alone(model, prompt, 30) for prompt in PROMPTS]
    assert len({len(ids) for ids, _ in expected}) > 1
    keys = [str(i) for i in range(len(PROMPTS))]
    for batch_size in (2, 3):
        found = decode(
            model,
            PROMPTS,
            keys,
            Sampling(max_new_tokens=30),
            stop_ids=STOPS,
            pad_id=0,
            batch_size=batch_size,
        )
        assert [(w[0].ids, w[0].stop) for w in found] == expected


def kept(cache: Slots) -> list[list[float]]:
    """What the first layer keeps, row by row."""
    layer: Any = cache.layers[0]
    return layer.keys[: layer.rows, 0, layer.first : layer.last, 0].tolist()


def test_a_row_that_left_is_overwritten_and_the_store_grows() -> None:
    def states(*rows: list[float]) -> torch.Tensor:
        return torch.tensor(rows)[:, None, :, None]

    read = DynamicCache()
    read.update(states([1.0, 2.0, 3.0], [0.0, 4.0, 5.0]), states([0.0] * 3, [0.0] * 3), 0)
    cache = Slots(read, 2)
    cache.put(read, 0, 3)
    cache.put(read, 1, 2)
    assert cache.get_seq_length() == 3
    keys, values = cache.update(states([6.0], [7.0]), states([8.0], [9.0]), 0)
    assert keys.tolist() == states([1, 2, 3, 6], [0, 4, 5, 7]).tolist()
    assert values[:, 0, -1, 0].tolist() == [8, 9]
    cache.drop(0)
    cache.narrow(3)
    assert kept(cache) == [[4, 5, 7]]
    cache.put(read, 1, 2)
    assert (kept(cache)[0], kept(cache)[1][1:]) == ([4, 5, 7], [4, 5])
    for step in range(200):  # past the room that was there at first
        cache.update(states([10.0 + step], [20.0 + step]), states([0.0], [0.0]), 0)
    assert kept(cache)[0] == [4, 5, 7, *(10.0 + step for step in range(200))]
    assert kept(cache)[1][1:] == [4, 5, *(20.0 + step for step in range(200))]
    cache.drop(1)
    cache.drop(0)
    cache.put(read, 0, 3)
    assert kept(cache) == [[1, 2, 3]]


def test_a_model_with_a_state_of_another_kind_is_refused() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(ModelError, match="whose rows cannot come and go; expected attention"):
        require_slots(model)
