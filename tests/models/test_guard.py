"""The guard model: heads as the taxonomy says, and a folder that gives the same model back."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from equipoise.errors import ModelError
from equipoise.models.backbone import load_encoder
from equipoise.models.checkpoints import load_tensors, save_tensors
from equipoise.models.features import TextPair, encode_pair, pad_pairs
from equipoise.models.guard import (
    ENCODER,
    GuardCard,
    GuardModel,
    adapt,
    load_guard_model,
    tuned_names,
)
from equipoise.taxonomy import load_taxonomy

TEXTS = [TextPair("how do i bake bread", "mix flour and water"), TextPair("take a warm coat", None)]


def fresh(encoder: Path, taxonomy: str = "pku19", **more: int) -> GuardModel:
    torch.manual_seed(3)
    card = GuardCard(
        taxonomy=load_taxonomy(taxonomy),
        backbone=str(encoder),
        layers=2,
        hidden=8,
        dropout=0.5,
        targets=("prompt", "response"),
        knows_refusals=True,
        **more,
    )
    backbone = load_encoder(encoder, device="cpu")
    if card.lora_rank:
        adapt(backbone.model, card.lora_rank)
    return GuardModel(card, backbone).eval()


@torch.no_grad()
def logits(model: GuardModel) -> torch.Tensor:
    batch = pad_pairs([encode_pair(model.tokenizer, text) for text in TEXTS])
    return torch.cat(list(model(batch)), dim=1)


@pytest.mark.parametrize("taxonomy", ["pku19", "beavertails14"])
def test_the_heads_are_as_large_as_the_taxonomy(tiny_encoder: Path, taxonomy: str) -> None:
    model, kinds = fresh(tiny_encoder, taxonomy), load_taxonomy(taxonomy)
    assert model.heads.categories.out_features == len(kinds.categories)
    assert model.heads.severity.out_features == len(kinds.severities) - 1


@torch.no_grad()
def test_features_computed_before_give_the_same_logits(tiny_encoder: Path) -> None:
    model = fresh(tiny_encoder)
    batch = pad_pairs([encode_pair(model.tokenizer, text) for text in TEXTS])
    for ours, theirs in zip(model(batch), model(model.trunk(batch)), strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_an_encoder_in_half_the_bits_is_read_by_heads_in_full(tiny_encoder: Path) -> None:
    whole = fresh(tiny_encoder)
    half = GuardModel(whole.card, load_encoder(tiny_encoder, device="cpu", dtype="bfloat16")).eval()
    half.heads.load_state_dict(whole.heads.state_dict())
    torch.testing.assert_close(logits(half), logits(whole), rtol=0, atol=0.05)


def test_a_guard_on_a_frozen_encoder_comes_back_and_names_its_backbone(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    model = fresh(tiny_encoder)
    model.trunk.requires_grad_(False)
    model.save(tmp_path)
    again = load_guard_model(tmp_path, "cpu")
    assert torch.equal(logits(again), logits(model))
    assert again.card == model.card
    assert not again.training
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.json", "weights.safetensors"]


def test_a_tuned_encoder_goes_with_the_guard(
    tiny_encoder: Path, tmp_path: Path, weights_have_usual_permissions: Callable[[Path], bool]
) -> None:
    model = fresh(tiny_encoder)
    before = logits(model)
    with torch.no_grad():
        for parameter in model.trunk.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save(tmp_path)
    again = load_guard_model(tmp_path, "cpu")
    assert again.card.own_encoder
    assert torch.equal(logits(again), logits(model))
    assert not torch.allclose(logits(again), before, atol=1e-3)
    assert load_encoder(tmp_path / ENCODER, device="cpu").model.config.hidden_size == 32
    assert weights_have_usual_permissions(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("more", [{"lora_rank": 2}, {"top_layers": 1}])
def test_what_was_tuned_comes_back_from_beside_the_heads(
    more: dict[str, int], tiny_encoder: Path, tmp_path: Path
) -> None:
    model = fresh(tiny_encoder, **more)
    before = logits(model)
    model.trunk.requires_grad_(False)
    for name in tuned_names(model.trunk, model.card):
        parameter = model.trunk.get_parameter(name).requires_grad_(True)
        parameter.add_(0.2 * torch.randn_like(parameter))
    model.save(tmp_path)
    again = load_guard_model(tmp_path, "cpu")
    assert not torch.allclose(logits(again), before, atol=1e-2)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-5)
    assert not any("lora" in name for name, _ in again.named_modules())
    assert again.card == model.card
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.json", "weights.safetensors"]


@pytest.mark.parametrize("more", [{"lora_rank": 2}, {"top_layers": 1}])
def test_a_guard_without_some_of_what_was_tuned_does_not_load(
    more: dict[str, int], tiny_encoder: Path, tmp_path: Path
) -> None:
    model = fresh(tiny_encoder, **more)
    names = tuned_names(model.trunk, model.card)
    for name, parameter in model.trunk.named_parameters():
        parameter.requires_grad_(name in names)
    model.save(tmp_path)
    path = tmp_path / "weights.safetensors"
    tensors = load_tensors(path)
    lost = f"trunk.{names[0]}"
    save_tensors(path, {name: t for name, t in tensors.items() if name != lost})
    with pytest.raises(ModelError, match=f"1 tensors are missing, the first is {names[0]}"):
        load_guard_model(tmp_path, "cpu")
    card = tmp_path / "model.json"
    plain = model.card.model_copy(update={"lora_rank": 0, "top_layers": 0})
    card.write_text(plain.model_dump_json())
    save_tensors(path, tensors)
    with pytest.raises(ModelError, match=r"has no place in this model|was not tuned by what"):
        load_guard_model(tmp_path, "cpu")


def test_weights_that_lack_a_head_do_not_load(tiny_encoder: Path, tmp_path: Path) -> None:
    model = fresh(tiny_encoder)
    model.trunk.requires_grad_(False)
    model.save(tmp_path)
    path = tmp_path / "weights.safetensors"
    tensors = load_tensors(path)
    save_tensors(path, {name: t for name, t in tensors.items() if not name.startswith("severity")})
    with pytest.raises(ModelError, match=r"2 tensors are missing, the first is severity\.bias"):
        load_guard_model(tmp_path, "cpu")


def test_a_folder_that_is_no_guard_does_not_load(tiny_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model\.json"):
        load_guard_model(tiny_encoder, "cpu")
    model = fresh(tiny_encoder)
    model.save(tmp_path)
    text = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(text.replace("equipoise-guard", "equipoise-scorer"))
    with pytest.raises(ModelError, match=r"model\.json: kind: ") as caught:
        load_guard_model(tmp_path, "cpu")
    assert "\n" not in str(caught.value)
