"""The local generator: chats in, texts out."""

import shutil
from pathlib import Path

import pytest
import torch

from equipoise.errors import DataError
from equipoise.generation.local import LocalGenerator, load_generator
from equipoise.models.backbone import add_lora, load_causal
from equipoise.models.chat import chat_ids
from equipoise.protocols import Generator, Messages, Sampling

CHATS: list[Messages] = [
    [{"role": "user", "content": "How do I bake bread?"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "?"},
    ],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Explain the tides."}],
]


@pytest.fixture(scope="module")
def generator(tiny_llama: Path) -> LocalGenerator:
    return load_generator(tiny_llama, device="cpu")


def test_texts_are_those_of_transformers(generator: LocalGenerator) -> None:
    as_protocol: Generator = generator
    texts = as_protocol(CHATS, Sampling(max_new_tokens=16))
    for chat, text in zip(CHATS, texts, strict=True):
        ids = torch.tensor([chat_ids(generator.tokenizer, chat)])
        out = generator.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False
        )
        assert text == [generator.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)]
        assert text != [""]


def test_as_many_responses_as_asked_for_in_order(generator: LocalGenerator) -> None:
    sampling = Sampling(max_new_tokens=8, temperature=1.0, samples=3)
    texts = generator(CHATS, sampling, ["x", "y", "z"])
    assert [len(t) for t in texts] == [3, 3, 3]
    assert generator([CHATS[1]], sampling, ["y"]) == [texts[1]]
    assert generator([], sampling) == []


def test_without_ids_prompts_are_numbered(generator: LocalGenerator) -> None:
    sampling = Sampling(max_new_tokens=8, temperature=1.0)
    assert generator(CHATS, sampling) == generator(CHATS, sampling, ["0", "1", "2"])


def test_what_ends_a_response_comes_from_the_model_and_the_template(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}<|endoftext|>{% endfor %}"
    )
    assert load_generator(folder).stop_ids == {0, 2, 5, 6}


def test_a_prompt_that_does_not_fit_is_refused(generator: LocalGenerator) -> None:
    chat = [{"role": "user", "content": "bread " * 300}]
    with pytest.raises(DataError, match=r"prompt: too long, \d+ tokens and 16 new ones.*at most 256"):
        generator.encode(chat, Sampling(max_new_tokens=16))
    with pytest.raises(DataError, match="too long"):
        generator([chat], Sampling(max_new_tokens=16))


def test_an_adapter_writes_what_its_model_writes(tiny_llama: Path, tmp_path: Path) -> None:
    backbone = load_causal(tiny_llama, device="cpu")
    adapted = add_lora(backbone.model, rank=2)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted.eval().save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    sampling = Sampling(max_new_tokens=12)
    unmerged = LocalGenerator(backbone._replace(model=adapted))(CHATS, sampling)
    assert load_generator(tmp_path / "adapter", device="cpu")(CHATS, sampling) == unmerged
    assert load_generator(tiny_llama, device="cpu")(CHATS, sampling) != unmerged
