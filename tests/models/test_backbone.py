"""Loading models, LoRA, and chats as token ids."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertModel, LlamaForCausalLM, PreTrainedTokenizerFast

from equipoise.errors import DataError, ModelError
from equipoise.models.backbone import add_lora, load_causal, load_encoder, pick_device, pick_dtype
from equipoise.models.chat import chat_ids, decode_response, encode_response, end_of_turn

CHAT = [{"role": "user", "content": "How do I bake bread?"}]
ANSWER = "Mix flour and water, then wait 10 hours."


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A llama folder that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a folder must not be looked up on the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes one."""
    data = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}), "utf-8")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([[1, 7, 30, 9, 2]])).logits


@pytest.mark.usefixtures("no_network")
def test_a_folder_loads_quietly_without_the_network(
    tiny_llama: Path, tiny_encoder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    causal, encoder = load_causal(tiny_llama, device="cpu"), load_encoder(str(tiny_encoder))
    assert isinstance(causal.model, LlamaForCausalLM)
    assert isinstance(encoder.model, BertModel)
    assert not causal.model.training
    assert causal.model.dtype == torch.float32
    assert encoder.model.dtype == pick_dtype("auto", pick_device())
    assert (causal.ref, encoder.ref) == (str(tiny_llama), str(tiny_encoder))
    assert capfd.readouterr() == ("", "")


def test_bfloat16_is_taken_when_asked_for(tiny_llama: Path) -> None:
    assert load_causal(tiny_llama, dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="no number format 'bfloat'"):
        pick_dtype("bfloat")
    with pytest.raises(ModelError, match=r"device 'tpu' is not available here; available: auto, .*cpu"):
        pick_device("tpu")
    assert pick_device("cpu").type == "cpu"
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32


def test_pickled_weights_are_not_read(copy: Path) -> None:
    model = load_causal(copy).model
    (copy / "model.safetensors").unlink()
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot load this folder"):
        load_causal(copy)


@pytest.mark.parametrize("damage", ["empty", "cut", "unknown", "code"])
def test_a_folder_that_is_no_model_is_one_line(copy: Path, damage: str) -> None:
    if damage == "empty":
        shutil.rmtree(copy)
        copy.mkdir()
    elif damage == "cut":
        weights = copy / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "unknown":
        edit(copy / "config.json", model_type="nothing-of-the-kind", architectures=None)
    else:
        edit(copy / "config.json", model_type="mine", auto_map={"AutoConfig": "code.MyConfig"})
        (copy / "code.py").write_text("raise RuntimeError('this code must not run')")
    with pytest.raises(ModelError) as caught:
        load_causal(copy)
    assert str(caught.value).startswith(f"{copy}: cannot load this folder: ")
    assert "\n" not in str(caught.value)


def test_an_encoder_is_no_language_model(tiny_encoder: Path) -> None:
    with pytest.raises(ModelError, match=r"weights are missing, the first is cls\."):
        load_causal(tiny_encoder)


def test_a_missing_pad_token_does_not_grow_the_embedding(copy: Path) -> None:
    edit(copy / "tokenizer_config.json", pad_token=None)
    assert AutoTokenizer.from_pretrained(copy).pad_token_id is None
    backbone = load_causal(copy)
    assert backbone.tokenizer.pad_token_id == backbone.tokenizer.eos_token_id == 2
    assert backbone.model.get_input_embeddings().num_embeddings == len(backbone.tokenizer)


def test_special_tokens_outside_the_embedding_are_named(copy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    tokenizer.save_pretrained(copy)
    with pytest.raises(ModelError, match=r"outside the embedding of 400 rows: <\|new\|> = 400$"):
        load_causal(copy)


def test_lora_trains_the_adapters_of_the_linear_layers_only(tiny_llama: Path) -> None:
    base = load_causal(tiny_llama, device="cpu").model
    before = logits(base)
    model = add_lora(base, rank=4, alpha=8)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * 7 * 2  # layers x linear layers x (A, B)
    assert all("lora_" in name for name in trainable)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)  # B starts at zero
    only = add_lora(load_causal(tiny_llama).model, targets=["q_proj"])
    assert sum("lora_A" in name for name, _ in only.named_parameters()) == 2


def test_lora_on_an_encoder(tiny_encoder: Path) -> None:
    model = add_lora(load_encoder(tiny_encoder, device="cpu").model, rank=2)
    assert model(torch.tensor([[2, 5, 3]])).last_hidden_state.shape == (1, 3, 32)


def test_layers_that_are_not_there_cannot_be_adapted(tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match="cannot add LoRA"):
        add_lora(load_causal(tiny_llama).model, targets=["no_such_layer"])


@pytest.fixture
def adapter(tiny_llama: Path, tmp_path: Path) -> Path:
    """A saved adapter with random weights."""
    model = add_lora(load_causal(tiny_llama, device="cpu").model, rank=4)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    torch.save(logits(model), tmp_path / "logits.pt")
    return tmp_path / "adapter"


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_is_loaded_on_its_base(adapter: Path, tiny_llama: Path, merge: bool) -> None:
    backbone = load_causal(adapter, device="cpu", merge=merge)
    expected = torch.load(adapter.parent / "logits.pt", weights_only=True)
    torch.testing.assert_close(logits(backbone.model), expected, rtol=1e-5, atol=1e-5)
    assert (logits(load_causal(tiny_llama, device="cpu").model) - expected).abs().max() > 0.1
    assert not any(p.requires_grad for name, p in backbone.model.named_parameters() if "lora" in name)
    assert isinstance(backbone.model, LlamaForCausalLM) == merge
    assert backbone.ref == str(adapter)


def test_an_adapter_can_be_trained_further(adapter: Path) -> None:
    model = load_causal(adapter, trainable=True).model
    assert {"lora_" in name for name, p in model.named_parameters() if p.requires_grad} == {True}


def test_the_adapters_base_is_stored_as_the_reference(adapter: Path, tiny_llama: Path) -> None:
    stored = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    assert stored["base_model_name_or_path"] == str(tiny_llama)


def test_an_adapter_whose_base_is_gone_names_both(adapter: Path) -> None:
    edit(adapter / "adapter_config.json", base_model_name_or_path="gone-model")
    with pytest.raises(ModelError, match=r"adapter: the base of the adapter: no model 'gone-model'"):
        load_causal(adapter)


def test_an_adapter_that_does_not_fit_is_refused(adapter: Path) -> None:
    edit(adapter / "adapter_config.json", r=8)
    with pytest.raises(ModelError, match="does not fit its base"):
        load_causal(adapter)
    edit(adapter / "adapter_config.json", r=4, target_modules=["q_proj", "lm_head"])
    with pytest.raises(ModelError, match="does not fit its base"):
        load_causal(adapter)


def test_a_pickled_adapter_is_not_read(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"an adapter without adapter_model\.safetensors"):
        load_causal(adapter)


def test_prompt_and_response_are_the_whole_chat(tiny_llama: Path) -> None:
    tokenizer = load_causal(tiny_llama).tokenizer
    prompt, response = chat_ids(tokenizer, CHAT), encode_response(tokenizer, ANSWER)
    whole = chat_ids(
        tokenizer, [*CHAT, {"role": "assistant", "content": ANSWER}], add_generation_prompt=False
    )
    newline = tokenizer("\n")["input_ids"]
    assert prompt + response + newline == whole
    assert response[-1] == end_of_turn(tokenizer) == 2
    assert decode_response(tokenizer, response) == ANSWER


def test_the_end_of_a_turn_is_read_from_the_template(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '<|endoftext|>' }}{% endfor %}"
    assert end_of_turn(tokenizer) == 0
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    assert end_of_turn(tokenizer) == 2  # nothing special follows: end-of-sequence


def test_a_tokenizer_without_template_is_plain_and_says_so_once(
    tiny_llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = None
    ids = chat_ids(tokenizer, CHAT)
    assert chat_ids(tokenizer, CHAT) == ids
    assert capfd.readouterr().err.count("no chat template") == 1
    response = encode_response(tokenizer, ANSWER)
    assert tokenizer.decode(ids + response[:-1]) == f"user: How do I bake bread?\nassistant: {ANSWER}"
    assert decode_response(tokenizer, response) == ANSWER


def test_a_chat_that_the_template_refuses_is_an_error_of_the_data(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="refused by the chat template of the model: roles must alternate"):
        chat_ids(tokenizer, CHAT)


def test_a_tokenizer_without_any_end_is_refused(tiny_llama: Path) -> None:
    bare = PreTrainedTokenizerFast(
        tokenizer_object=AutoTokenizer.from_pretrained(tiny_llama).backend_tokenizer
    )
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        end_of_turn(bare)


def test_depth_keeps_the_first_layers(tiny_llama: Path, tiny_encoder: Path) -> None:
    for ref in (tiny_llama, tiny_encoder):
        whole = load_encoder(ref, device="cpu").model
        cut = load_encoder(ref, device="cpu", depth=1).model
        ids = torch.tensor([[5, 6, 7]])
        with torch.no_grad():
            states = whole(input_ids=ids, output_hidden_states=True).hidden_states
            found = cut(input_ids=ids, output_hidden_states=True).hidden_states
        assert len(found) == 2
        assert torch.equal(found[0], states[0])
        expected = whole.norm(states[1]) if hasattr(whole, "norm") else states[1]
        torch.testing.assert_close(found[1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("depth", [0, 3])
def test_a_depth_that_the_model_has_not_is_an_error(tiny_llama: Path, depth: int) -> None:
    with pytest.raises(ModelError, match=f"depth: got {depth}; expected 1 to 2"):
        load_encoder(tiny_llama, device="cpu", depth=depth)
