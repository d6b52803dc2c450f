"""Packed rows on what was kept of the layers below: log-probabilities and gradients of the whole model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from equipoise.errors import ModelError
from equipoise.models.backbone import layer_stack
from equipoise.models.layout import Row, response_hidden, response_logps
from equipoise.models.top import top_names
from equipoise.models.top_rows import top_alone

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
LAYERED = {"sliding_window": 3, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}
GEMMA: dict[str, Any] = {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 4.0}

MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, **LAYERED, head_dim=8, use_sliding_window=True)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, **LAYERED, **GEMMA)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=61, n_embd=16, n_layer=3, n_head=2, n_positions=64, initializer_range=0.3)
    ),
}
CASES = [("llama", 1), ("llama", 2), ("qwen3", 1), ("qwen3", 2), ("gemma2", 1), ("gpt2", 1)]

ROWS = [
    Row([1, 5, 9, 14, 22, 31, 8], [[7, 11, 2, 40, 3, 33, 19, 2], [50, 2]]),
    Row([1, 6, 44], [[12, 13, 14, 15, 16, 17, 18, 2]]),
    Row([1, 30, 29, 28, 27], [[9, 2], [10, 20, 30, 40, 50, 60, 4, 2], [9, 8, 2]]),
    Row([1, 5, 9, 14, 22, 31, 8], [[50, 2], [7, 11, 2]]),  # the first prompt with other responses
]


def make(name: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]()
    model.set_attn_implementation("eager" if name == "gemma2" else "sdpa")
    return model.eval()


def loss_of(model: Any, rows: list[Row]) -> Tensor:
    return response_logps(model, rows).tokens.square().mean() + response_hidden(model, rows).square().mean()


@pytest.mark.filterwarnings("ignore:model type 'gpt2' was not verified")
@pytest.mark.parametrize(("name", "top"), CASES)
def test_log_probabilities_and_states_are_those_of_the_whole_model(
    name: str, top: int, tmp_path: Path
) -> None:
    model = make(name)
    companies = ([0, 1, 2, 3], [2, 0], [1], [3])

    @torch.no_grad()
    def asked() -> list[tuple[Tensor, Tensor]]:
        found = []
        for places in companies:
            rows = [ROWS[i] for i in places]
            found.append((response_logps(model, rows).tokens, response_hidden(model, rows)))
        return found

    whole = asked()
    with top_alone(model, [*ROWS, ROWS[0]], top, tmp_path, tokens_per_batch=40) as out:
        stack = layer_stack(model.get_decoder())
        assert stack is not None
        assert len(stack) == top
        assert out == 4 * sum(p.numel() for p in stack[0].parameters()) * (3 - top)
        kept = asked()
        assert not list(tmp_path.iterdir())  # the file has no name
    for mine, others in zip(kept, whole, strict=True):
        torch.testing.assert_close(mine, others, rtol=0, atol=2e-6)
    for mine, others in zip(asked(), whole, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, others, strict=True))


@pytest.mark.filterwarnings("ignore:model type 'gpt2' was not verified")
@pytest.mark.parametrize(("name", "top"), CASES)
def test_gradients_are_those_of_the_whole_model(name: str, top: int, tmp_path: Path) -> None:
    model = make(name)
    names = top_names(model, top)
    model.requires_grad_(False)
    for one in names:
        model.get_parameter(one).requires_grad_(True)
    own = {one: model.get_parameter(one) for one in names}
    with top_alone(model, ROWS, top, tmp_path, tokens_per_batch=40):
        loss_of(model, ROWS[:3]).backward()  # type: ignore[no-untyped-call]
    found = {one: parameter.grad.clone() for one, parameter in own.items() if parameter.grad is not None}
    model.zero_grad()
    loss_of(model, ROWS[:3]).backward()  # type: ignore[no-untyped-call]
    assert len(found) == len(names) > 5
    for one, gradient in found.items():
        torch.testing.assert_close(gradient, own[one].grad, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_fewer_bits_below_give_nearly_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make("llama")
    whole = response_logps(model, ROWS).sums
    with top_alone(model, ROWS, 1, tmp_path, tokens_per_batch=40, bf16=True):
        rounded = response_logps(model, ROWS).sums
    assert not torch.equal(rounded, whole)
    torch.testing.assert_close(rounded, whole, rtol=0.05, atol=0.2)
    tokens = sum(row.length for row in ROWS)
    says = f"layers below the top 1: computed once for {tokens} tokens, 0.00 GiB on disk"
    assert says in capsys.readouterr().err.splitlines()


def test_the_layers_come_back_when_the_training_stops(tmp_path: Path) -> None:
    model = make("qwen3")
    before = [name for name, _ in model.named_parameters()]
    settings = model.config.to_dict()

    def stops() -> None:
        with top_alone(model, ROWS, 1, tmp_path, tokens_per_batch=40):
            assert model.config.layer_types == ["full_attention"]
            assert len(list(model.parameters())) < len(before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stops()
    assert [name for name, _ in model.named_parameters()] == before
    assert model.config.to_dict() == settings
    assert not model.model._forward_pre_hooks
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in model.model.layers)


def test_a_row_that_was_not_computed_is_not_made_up(tmp_path: Path) -> None:
    model = make("llama")
    with top_alone(model, ROWS[:2], 1, tmp_path, tokens_per_batch=40):
        response_logps(model, ROWS[:2])
        with pytest.raises(KeyError):
            response_logps(model, ROWS[1:3])


@pytest.mark.parametrize(("top", "says"), [(0, "1 or more"), (3, "fewer, or tune: full")])
def test_something_must_stay_and_something_go(top: int, says: str, tmp_path: Path) -> None:
    with (
        pytest.raises(ModelError, match=f"^top_layers: got {top} of a model with 3 layers; expected {says}$"),
        top_alone(make("llama"), ROWS, top, tmp_path, tokens_per_batch=40),
    ):
        pass
