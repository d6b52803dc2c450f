"""Merging: the weights are the weighted sum, the ends are the inputs, and mistakes are named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from equipoise.config import parse_config
from equipoise.errors import ConfigError, ModelError
from equipoise.lineage import produce
from equipoise.models.backbone import add_lora, load_causal
from equipoise.models.checkpoints import load_tensors
from equipoise.models.merge import MERGE, MergeConfig, merge_models


def adapter(base: Path, out: Path, seed: int, rank: int = 4, alpha: float = 12.0, **config: object) -> Path:
    """A LoRA adapter of random weights."""
    backbone = load_causal(base, device="cpu")
    tuned = add_lora(backbone.model, rank=rank, alpha=alpha, targets=["q_proj", "down_proj"])
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    tuned.save_pretrained(out, save_embedding_layers=False)
    if config:
        path = out / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | config), "utf-8")
    return out


def whole(base: Path, out: Path, seed: int) -> Path:
    """A copy of a model with other weights."""
    backbone = load_causal(base, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for parameter in backbone.model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    backbone.model.save_pretrained(out)
    backbone.tokenizer.save_pretrained(out)
    return out


def weights_of(ref: Path) -> dict[str, Tensor]:
    model = load_causal(ref, device="cpu", merge=True).model
    return {name: value.detach() for name, value in model.named_parameters()}


def expect_sum(out: Path, parts: list[tuple[Path, float]]) -> None:
    found = weights_of(out)
    expected = {name: torch.zeros_like(value) for name, value in found.items()}
    for folder, weight in parts:
        for name, value in weights_of(folder).items():
            expected[name] += weight * value
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_adapters_of_one_base_become_an_adapter_whose_product_is_the_weighted_sum(
    tiny_llama: Path, tmp_path: Path
) -> None:
    one = adapter(tiny_llama, tmp_path / "one", seed=1)
    two = adapter(tiny_llama, tmp_path / "two", seed=2, rank=2, alpha=1.0)
    assert merge_models([one, two], [0.3, 0.7], tmp_path / "out") == "adapter"
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text("utf-8"))
    assert (config["r"], config["lora_alpha"]) == (6, 6)
    expect_sum(tmp_path / "out", [(one, 0.3), (two, 0.7)])


def test_the_mean_of_products_is_not_the_product_of_means(tiny_llama: Path, tmp_path: Path) -> None:
    one, two = (adapter(tiny_llama, tmp_path / name, seed) for seed, name in enumerate(("one", "two")))
    merge_models([one, two], [0.5, 0.5], tmp_path / "out")
    first, second, merged = (
        load_tensors(folder / "adapter_model.safetensors") for folder in (one, two, tmp_path / "out")
    )
    a = next(name for name in first if name.endswith("lora_A.weight"))
    b = a.replace("lora_A", "lora_B")
    scale = 12.0 / 4
    right = scale * (first[b] @ first[a] + second[b] @ second[a]) / 2
    torch.testing.assert_close(merged[b] @ merged[a], right, rtol=1e-5, atol=1e-6)
    wrong = scale * ((first[b] + second[b]) / 2) @ ((first[a] + second[a]) / 2)
    assert (right - wrong).abs().max() > 0.05 * right.abs().max()


@pytest.mark.parametrize("end", [0, 1])
def test_the_ends_are_the_adapters_themselves(tiny_llama: Path, tmp_path: Path, end: int) -> None:
    folders = [adapter(tiny_llama, tmp_path / str(seed), seed) for seed in (1, 2)]
    merge_models(folders, [1.0 - end, float(end)], tmp_path / "out")
    found, expected = (
        load_tensors(folder / "adapter_model.safetensors") for folder in (tmp_path / "out", folders[end])
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert weights_of(tmp_path / "out").keys() == weights_of(folders[end]).keys()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_whole_models_are_averaged_and_the_ends_are_the_models(
    tiny_llama: Path, tmp_path: Path, weights_have_usual_permissions: Callable[[Path], bool], share: float
) -> None:
    one, two = whole(tiny_llama, tmp_path / "one", 1), whole(tiny_llama, tmp_path / "two", 2)
    assert merge_models([one, two], [1 - share, share], tmp_path / "out") == "whole model"
    assert weights_have_usual_permissions(tmp_path / "out")
    if share in (0.0, 1.0):
        found, expected = weights_of(tmp_path / "out"), weights_of(two if share else one)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    else:
        expect_sum(tmp_path / "out", [(one, 0.75), (two, 0.25)])


def test_an_adapter_of_an_adapter_is_merged_as_a_whole_model(tiny_llama: Path, tmp_path: Path) -> None:
    first = adapter(tiny_llama, tmp_path / "first", seed=1)
    merged = load_causal(first, device="cpu", merge=True)
    (tmp_path / "step").mkdir()
    merged.model.save_pretrained(tmp_path / "step")
    merged.tokenizer.save_pretrained(tmp_path / "step")
    second = adapter(tmp_path / "step", tmp_path / "second", seed=2)
    assert merge_models([first, second], [0.5, 0.5], tmp_path / "out") == "whole model"
    expect_sum(tmp_path / "out", [(first, 0.5), (second, 0.5)])


def test_an_adapter_that_is_more_than_a_product_is_merged_as_a_whole_model(
    tiny_llama: Path, tmp_path: Path
) -> None:
    one = adapter(tiny_llama, tmp_path / "one", seed=1)
    two = adapter(tiny_llama, tmp_path / "two", seed=2, use_rslora=True)
    assert merge_models([one, two], [0.5, 0.5], tmp_path / "out") == "whole model"
    expect_sum(tmp_path / "out", [(one, 0.5), (two, 0.5)])


def test_models_that_cannot_have_one_start_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    backbone = load_causal(tiny_llama, device="cpu")
    config = backbone.model.config
    config.intermediate_size = 48
    wider = AutoModelForCausalLM.from_config(config)
    wider.save_pretrained(tmp_path / "wider")
    backbone.tokenizer.save_pretrained(tmp_path / "wider")
    with pytest.raises(ModelError, match=r"wider: does not fit .* only models of the same start"):
        merge_models([tiny_llama, tmp_path / "wider"], [0.5, 0.5], tmp_path / "out")

    other = whole(tiny_llama, tmp_path / "other", 1)
    tokenizer = json.loads((other / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    last, before = sorted(vocabulary, key=vocabulary.__getitem__)[-1:-3:-1]
    vocabulary[last], vocabulary[before] = vocabulary[before], vocabulary[last]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(ModelError, match=r"other: has another tokenizer than .*tiny-llama"):
        merge_models([tiny_llama, other], [0.5, 0.5], tmp_path / "out")


def test_a_broken_adapter_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    one, two = (adapter(tiny_llama, tmp_path / name, seed) for seed, name in enumerate(("one", "two")))
    (two / "adapter_config.json").write_text("{", "utf-8")
    with pytest.raises(ModelError, match=r"two.adapter_config.json: not JSON"):
        merge_models([one, two], [0.5, 0.5], tmp_path / "out")


def test_the_step_writes_a_run_that_says_what_it_is(tiny_llama: Path, tmp_path: Path) -> None:
    one, two = (adapter(tiny_llama, tmp_path / name, seed) for seed, name in enumerate(("one", "two")))
    config = MergeConfig(models=(str(one), str(two)), weights=(0.5, 0.5))
    outcome = produce(tmp_path / "out", MERGE, config)
    assert outcome.manifest.notes["form"] == "adapter"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= outcome.manifest.outputs.keys()
    assert outcome.manifest.inputs.keys() == {"models.0", "models.1"}
    assert produce(tmp_path / "out", MERGE, config).skipped


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5], "weights: got 1; expected one for each of 2 models"),
        ([0.5, 0.6], "weights: sum to 1.1; expected 1"),
        ([float("nan"), 1.0], "weights: sum to nan; expected 1"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(MergeConfig, {"models": ["a", "b"], "weights": weights}, "merge.yaml")
