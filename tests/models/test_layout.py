"""The prefix-shared layout against separate passes of plain transformers, one response at a time.

Weights are drawn wide, so that attention is far from uniform and a wrong mask moves the numbers.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from equipoise.errors import ModelError
from equipoise.models import layout
from equipoise.models.layout import (
    Row,
    attention_mask,
    hidden_states,
    lay_out,
    pack,
    response_hidden,
    response_logps,
    shares_prefix,
)
from equipoise.models.masks import SHARING

VOCABULARY = 61
EOS = 2
WINDOW = 5  # shorter than the first prompt, and than two of its responses
MIXED = ["sliding_attention", "full_attention"]

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": EOS,  # as in SmolLM2: a mask made from ids would lose the end of each response
}
GEMMA: dict[str, Any] = {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 4.0}
LAYERED: dict[str, Any] = {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED}

MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=WINDOW)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, **LAYERED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, **LAYERED, head_dim=8)),
    "gemma3_text": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, **GEMMA, sliding_window=WINDOW, layer_types=MIXED)
    ),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, **GEMMA, sliding_window=WINDOW, layer_types=MIXED)
    ),
    "smollm3": lambda: SmolLM3ForCausalLM(SmolLM3Config(**SIZES, **LAYERED)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**SIZES)),
}
WINDOWED = ["mistral", "qwen2", "qwen3", "gemma3_text", "gemma2", "smollm3"]
KERNELS = [(name, kernel) for name in MODELS for kernel in ("sdpa", "eager")]
KERNELS.remove(("gemma2", "sdpa"))  # transformers does not offer it

ROWS = [
    Row([1, 5, 9, 14, 22, 31, 8], [[7, 11, EOS, 40, 3, 33, 19, EOS], [50, EOS]]),
    Row([1, 6, 44], [[12, 13, 14, 15, 16, 17, 18, EOS]]),
    Row([1, 30, 29, 28, 27], [[9, EOS], [10, 20, 30, 40, 50, 60, 4, EOS], [9, 8, EOS]]),
]
RESPONSES = sum(len(row.responses) for row in ROWS)


def make(name: str, kernel: str = "sdpa") -> Any:
    torch.manual_seed(0)
    model = MODELS[name]()
    model.set_attn_implementation(kernel)
    return model.train()


def separate_logps(model: Any, rows: list[Row]) -> list[Tensor]:
    """One pass per response over the whole text, logits of all positions: [tokens] per response."""
    found = []
    for prompt, response in ((row.prompt, response) for row in rows for response in row.responses):
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        before = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
        found.append(logits[before, torch.tensor(response)])
    return found


def gradients(model: nn.Module, sums: Tensor) -> dict[str, Tensor]:
    """Gradients of every parameter, each response with a weight of its own."""
    model.zero_grad()
    (sums * torch.linspace(-1, 1.5, len(sums))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_values_and_gradients_equal_separate_passes(name: str, kernel: str, checkpointing: bool) -> None:
    model = make(name, kernel)
    separate = separate_logps(model, ROWS)
    expected_sums = torch.stack([tokens.sum() for tokens in separate])
    expected = gradients(model, expected_sums)
    if checkpointing:
        model.activation_checkpointing_enable()

    result = response_logps(model, ROWS)
    found = gradients(model, result.sums)

    assert shares_prefix(model) is None
    torch.testing.assert_close(result.tokens, torch.cat(separate), rtol=0, atol=1e-4)
    torch.testing.assert_close(result.sums, expected_sums, rtol=0, atol=1e-4)
    assert result.lengths.tolist() == [len(r) for row in ROWS for r in row.responses]
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for parameter, gradient in expected.items():
        scale = gradient.abs().max().clamp(min=1)
        torch.testing.assert_close(found[parameter] / scale, gradient / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", WINDOWED)
def test_the_window_matters_in_these_rows(name: str) -> None:
    """Otherwise the test above would pass with a lost window."""
    model = make(name, "eager" if name == "gemma2" else "sdpa")
    before = response_logps(model, ROWS).sums
    model.config.sliding_window = 64
    assert (response_logps(model, ROWS).sums - before).abs().max() > 0.05


def test_every_verified_type_is_tested() -> None:
    assert MODELS.keys() == SHARING.keys()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "qwen3"])
def test_any_number_of_responses_shares_a_prompt(name: str, count: int) -> None:
    model = make(name)
    rows = [Row(ROWS[2].prompt, ROWS[2].responses[:count])]
    torch.testing.assert_close(
        response_logps(model, rows).tokens, torch.cat(separate_logps(model, rows)), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_a_response_does_not_see_its_sibling(name: str, kernel: str) -> None:
    model = make(name, kernel)
    prompt, (first, second) = ROWS[0]
    before = response_logps(model, [Row(prompt, [first, second])]).sums
    after = response_logps(model, [Row(prompt, [first, [33] * len(second)])]).sums
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-6)
    assert abs(after[1] - before[1]) > 0.01
    swapped = response_logps(model, [Row(prompt, [second, first])]).sums
    torch.testing.assert_close(swapped.flip(0), before, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_padding_and_other_rows_change_nothing(name: str, kernel: str) -> None:
    """A short row beside one that is far longer than the window, of one response and of three."""
    model = make(name, kernel)
    long = Row([1] + [7] * 20, [[3] * 12, [4] * 9])
    for row in ROWS:
        alone = response_logps(model, [row]).tokens
        for rows in ([row, long], [row, Row(long.prompt, long.responses[:1])]):
            beside = response_logps(model, rows).tokens
            assert torch.isfinite(beside).all()
            torch.testing.assert_close(beside[: len(alone)], alone, rtol=0, atol=1e-5)
    padded = [pack(ROWS, pad_id=pad) for pad in (0, EOS, 17)]
    results = [response_logps(model, batch).tokens for batch in padded]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_infinite_on_padding(dtype: torch.dtype) -> None:
    batch = pack([Row([1], [[3]]), Row([1] + [7] * 20, [[3] * 12, [4] * 9])])
    for name, kernel in KERNELS:
        hidden = hidden_states(make(name, kernel).to(dtype), batch)
        assert hidden.dtype is dtype
        assert torch.isfinite(hidden).all()


@pytest.mark.parametrize("name", MODELS)
def test_padding_sees_itself_only_and_is_seen_by_nothing_else(name: str) -> None:
    """Some kernels give NaN where a query sees nothing, and NaN times weight zero is NaN."""
    batch = pack([Row([1], [[3], [4]]), Row([1] + [7] * 9, [[3] * 12])])
    found = attention_mask(batch, make(name, "eager").config, torch.float32)
    for mask in found.values() if isinstance(found, dict) else [found]:
        seen = mask[0, 0] == 0  # [T, T]
        assert torch.equal(seen[3:], torch.eye(len(seen), dtype=torch.bool)[3:])
        assert not seen[:3, 3:].any()
        assert seen[:3, :3].tolist() == [[True, False, False], [True, True, False], [True, False, True]]


def test_the_end_of_a_sequence_counts_though_it_is_the_padding_id() -> None:
    model = make("llama")
    prompt = ROWS[0].prompt
    whole = response_logps(model, [Row(prompt, [[7, EOS, 9, EOS], [50, 51, 52, 53, 54]])])
    cut = response_logps(model, [Row(prompt, [[7, EOS, 9], [50, 51, 52, 53, 54]])])
    assert whole.lengths.tolist() == [4, 5]
    assert whole.sums[0] < cut.sums[0]  # one more token, less probable
    (expected,) = separate_logps(model, [Row(prompt, [[7, EOS, 9, EOS]])])
    torch.testing.assert_close(whole.sums[0], expected.sum())


def test_masks_have_the_type_that_the_kernel_reads() -> None:
    batch = pack(ROWS[:1])
    sdpa = attention_mask(batch, make("llama").config, torch.float32)
    eager = attention_mask(batch, make("llama", "eager").config, torch.float32)
    layered = attention_mask(batch, make("qwen3").config, torch.float32)
    assert isinstance(sdpa, Tensor)
    assert isinstance(eager, Tensor)
    assert isinstance(layered, dict)
    assert sdpa.dtype is torch.bool
    assert eager.dtype is torch.float32
    assert torch.equal(eager == 0, sdpa)
    assert layered.keys() == set(MIXED)
    assert (layered["sliding_attention"].sum(-1) <= WINDOW).all()


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_hidden_states_of_the_last_tokens_equal_separate_passes(name: str) -> None:
    model = make(name)
    decoder = model.get_decoder()
    expected = [
        decoder(input_ids=torch.tensor([row.prompt + response])).last_hidden_state[0, -1]
        for row in ROWS
        for response in row.responses
    ]
    torch.testing.assert_close(response_hidden(model, ROWS), torch.stack(expected), rtol=0, atol=1e-4)
    torch.testing.assert_close(response_hidden(decoder, ROWS), torch.stack(expected), rtol=0, atol=1e-4)


def lora(model: Any, **settings: Any) -> Any:
    """Wrap with LoRA whose second matrix is not zero, so that the adapter does something."""
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj", *settings.pop("more", [])], **settings)
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for parameter_name, parameter in wrapped.named_parameters():
            if "lora_B" in parameter_name or "modules_to_save" in parameter_name:
                parameter.normal_(std=0.3)
    return wrapped


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
@pytest.mark.parametrize(
    "settings",
    [{}, {"more": ["lm_head"]}, {"modules_to_save": ["lm_head"]}],
    ids=["inside", "on head", "new head"],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_are_used_also_on_the_output_embedding(
    settings: dict[str, Any], checkpointing: bool
) -> None:
    plain = make("qwen3")
    untuned = response_logps(plain, ROWS).sums.detach()
    model = lora(plain, **settings)
    separate = torch.stack([tokens.sum() for tokens in separate_logps(model, ROWS)])
    expected = gradients(model, separate)
    if checkpointing:
        plain.activation_checkpointing_enable()
    result = response_logps(model, ROWS)
    found = gradients(model, result.sums)
    assert (result.sums - untuned).abs().max() > 0.05
    torch.testing.assert_close(result.sums, separate, rtol=0, atol=1e-4)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_learned_prompts_are_refused() -> None:
    model = get_peft_model(make("llama"), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match="PROMPT_TUNING"):
        response_logps(model, ROWS)


def gpt2() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout, initializer_range=0.4)).train()


def granite() -> Any:
    """A model whose logits are not the plain product with the output embedding."""
    torch.manual_seed(0)
    return GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0)).train()


@pytest.mark.parametrize("build", [gpt2, granite])
def test_another_model_gets_copied_prompts_the_same_numbers_and_one_warning(build: Callable[[], Any]) -> None:
    layout._warn_once.cache_clear()
    model = build()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [response_logps(model, ROWS) for _ in range(2)]
        response_hidden(model, ROWS)
    assert [str(w.message).split(" was")[0] for w in caught] == [f"model type '{model.config.model_type}'"]
    separate = separate_logps(model, ROWS)
    expected = gradients(model, torch.stack([tokens.sum() for tokens in separate]))
    found = gradients(model, results[0].sums)
    torch.testing.assert_close(results[1].tokens, torch.cat(separate), rtol=0, atol=1e-4)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4)


def test_one_response_a_row_needs_no_copies_and_no_warning() -> None:
    layout._warn_once.cache_clear()
    model, rows = gpt2(), [ROWS[1], Row([1, 4], [[5, EOS]])]
    torch.testing.assert_close(
        response_logps(model, rows).tokens, torch.cat(separate_logps(model, rows)), rtol=0, atol=1e-4
    )


def test_siblings_are_never_given_to_a_model_that_would_mix_them() -> None:
    with pytest.raises(ModelError, match="gpt2"):
        hidden_states(gpt2(), pack(ROWS))


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flex_attention"])
def test_kernels_without_a_mask_do_not_share(kernel: str) -> None:
    layout._warn_once.cache_clear()
    model = make("llama")
    model.config._attn_implementation = kernel  # the package itself is not installed
    assert kernel in str(shares_prefix(model))
    with pytest.warns(UserWarning, match=f"'llama' runs with {kernel}"):
        batch = lay_out(model, ROWS)
    assert not batch.has_siblings
    assert len(batch.input_ids) == RESPONSES


def test_other_kinds_of_attention_do_not_share() -> None:
    model = make("qwen3")
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert "linear_attention" in str(shares_prefix(model))
    model = make("gemma3_text")
    model.config.use_bidirectional_attention = True
    assert "look ahead" in str(shares_prefix(model))


def test_a_model_without_an_output_embedding_gives_no_logps() -> None:
    with pytest.raises(ModelError, match="LlamaModel: has no output embedding"):
        response_logps(make("llama").get_decoder(), ROWS)
