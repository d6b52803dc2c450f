"""Roles from references and folders: what is shared, what it holds, and what is published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from equipoise.config import load_config
from equipoise.errors import ConfigError, ModelError
from equipoise.models.backbone import load_causal
from equipoise.models.layout import Row, response_logps
from equipoise.models.roles_load import RoleSettings, load_roles, roles_footprint, save_actor
from equipoise.models.scorer import RowBatch, ScorerCard, ScorerModel

ROWS = [Row([1, 30, 31, 32], [[40, 41, 2], [50, 51, 52, 53]]), Row([1, 60], [[61, 62, 63, 64, 2]])]


def scorer(folder: Path, base: Path, **more: Any) -> tuple[Path, ScorerModel]:
    """A scorer with weights that are not those it started with, and its folder."""
    settings: dict[str, Any] = {"trunk": "last", "layers": 1, "hidden": 0, "lora_rank": 2} | more
    card = ScorerCard(backbone=str(base), trained=("reward", "cost"), **settings)
    torch.manual_seed(5)
    model = ScorerModel(card, load_causal(base, device="cpu")).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    model.save(folder)
    return folder, model


def test_a_scorer_on_the_same_base_shares_it_and_says_the_same(tiny_llama: Path, tmp_path: Path) -> None:
    folder, model = scorer(tmp_path / "scorer", tiny_llama)
    settings = RoleSettings(policy=str(tiny_llama), scorer=folder, rank=3, device="cpu")
    roles = load_roles(settings)
    assert len(roles.trunks) == 1
    assert set(roles.roles) == {"actor", "reference", "scorer"}
    with roles.use("scorer") as role, torch.no_grad():
        scores = role.score(ROWS)
        expected = model.every_score(RowBatch(tuple(ROWS)))
    torch.testing.assert_close(scores.reward, expected.reward)
    torch.testing.assert_close(scores.cost, expected.cost)
    base = response_logps(load_causal(tiny_llama, device="cpu").model, ROWS).tokens
    for name in ("reference", "actor"):  # a fresh adapter changes nothing
        with roles.use(name, learning=False) as role:
            torch.testing.assert_close(role.read(ROWS).logps.tokens, base)
    learnt = {n for n, p in roles.named_parameters() if p.requires_grad}
    assert learnt == {n for n, _ in roles.named_parameters() if ".default." in n or "heads.actor" in n}


def test_a_base_is_shared_however_its_place_is_written(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = scorer(tmp_path / "scorer", tiny_llama)
    monkeypatch.chdir(tiny_llama.parent)
    roles = load_roles(RoleSettings(policy=tiny_llama.name, scorer=folder, rank=3, device="cpu"))
    assert len(roles.trunks) == 1


def test_what_is_trained_on_an_adapter_names_its_base_from_anywhere(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = load_roles(RoleSettings(policy=str(tiny_llama), rank=2, device="cpu"))
    save_actor(roles, tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    save_actor(load_roles(RoleSettings(policy="first", rank=2, device="cpu")), tmp_path / "second")
    monkeypatch.chdir("/")
    assert load_causal(tmp_path / "second", device="cpu", merge=True).tokenizer is not None


def test_a_reference_of_other_tokens_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    backbone = load_causal(tiny_llama, device="cpu")
    backbone.model.save_pretrained(other)
    backbone.tokenizer.add_tokens(["Doppelgänger"])
    backbone.tokenizer.save_pretrained(other)
    with pytest.raises(ModelError, match=r"reference: .*other: has another tokenizer than the policy"):
        load_roles(RoleSettings(policy=str(tiny_llama), reference=str(other), device="cpu"))


def test_what_cannot_be_shared_is_a_model_of_its_own(tiny_llama: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    backbone = load_causal(tiny_llama, device="cpu")
    backbone.model.save_pretrained(other)
    backbone.tokenizer.save_pretrained(other)
    folder, model = scorer(tmp_path / "scorer", other, lora_rank=0)
    settings = RoleSettings(policy=str(tiny_llama), scorer=folder, reference=str(other), device="cpu")
    roles = load_roles(settings)
    assert len(roles.trunks) == 3
    with roles.use("scorer") as role, torch.no_grad():
        torch.testing.assert_close(role.score(ROWS).cost, model(RowBatch(tuple(ROWS)))[1])
    full = load_roles(RoleSettings(policy=str(tiny_llama), tune="full", device="cpu"))
    assert len(full.trunks) == 2
    with full.use("actor") as role:
        role.read(ROWS).logps.sums.sum().backward()
    assert all(p.grad is not None for p in full.trunks[0].parameters())
    assert not any(p.requires_grad for p in full.trunks[1].parameters())


def test_a_scorer_with_tuned_layers_leaves_the_others_their_trunk(tiny_llama: Path, tmp_path: Path) -> None:
    folder, model = scorer(tmp_path / "scorer", tiny_llama, lora_rank=0, top_layers=1)
    model.requires_grad_(False)
    model.heads.requires_grad_(True)
    for name in model.top_names():
        nn.init.uniform_(model.trunk.get_parameter(name).requires_grad_(True), -0.2, 0.2)
    model.save(folder)
    settings = RoleSettings(policy=str(tiny_llama), scorer=folder, device="cpu")
    roles = load_roles(settings)
    assert len(roles.trunks) == 2
    with roles.use("scorer") as role, torch.no_grad():
        torch.testing.assert_close(role.score(ROWS).cost, model(RowBatch(tuple(ROWS)))[1])
    with roles.use("reference") as role, torch.no_grad():
        base = response_logps(load_causal(tiny_llama, device="cpu").model, ROWS).tokens
        torch.testing.assert_close(role.read(ROWS).logps.tokens, base)
    model.trunk.requires_grad_(False)
    model.save(folder)
    with pytest.raises(ModelError, match=r"tensors are missing, the first is model\.layers\.1\."):
        load_roles(settings)


def test_critics_can_have_an_adapter_of_their_own(tiny_llama: Path) -> None:
    settings = RoleSettings(policy=str(tiny_llama), critic="adapter", rank=2, device="cpu")
    roles = load_roles(settings, ("reward", "cost", "severity"))
    assert len(roles.trunks) == 1
    with torch.no_grad():
        nn.init.normal_(roles.heads["critic"].values.weight)  # type: ignore[union-attr, arg-type]
    with roles.use("critic") as role:
        values = role.read(ROWS).values
        assert values is not None
        assert values.shape == (12, 3)
        (values**2).sum().backward()
    found = {n for n, p in roles.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("lora_B.critic" in n for n in found)
    assert not any(".default." in n for n in found)


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_critics_can_have_a_model_of_their_own(tune: str, tiny_llama: Path, tmp_path: Path) -> None:
    other = load_causal(str(tiny_llama), device="cpu")
    with torch.no_grad():
        next(other.model.parameters()).add_(1.0)
    other.model.save_pretrained(tmp_path / "value")
    other.tokenizer.save_pretrained(tmp_path / "value")
    fields = {"policy": str(tiny_llama), "tune": tune, "rank": 2, "device": "cpu", "critic": "model"}
    roles = load_roles(
        RoleSettings.model_validate({**fields, "critic_model": str(tmp_path / "value")}), ("cost",)
    )
    critic = set(map(id, roles.weights("critic")))
    assert not critic & set(map(id, roles.weights("actor")))
    with torch.no_grad():
        nn.init.normal_(roles.heads["critic"].values.weight)  # type: ignore[union-attr, arg-type]
        theirs = other.model(torch.arange(6)[None], output_hidden_states=True).hidden_states[-1]
        ours = roles.roles["critic"].backbone.model(torch.arange(6)[None], output_hidden_states=True)
    torch.testing.assert_close(ours.hidden_states[-1], theirs)
    with roles.use("critic") as role:
        values = role.read(ROWS).values
        assert values is not None
        (values**2).sum().backward()
    roles.save(tmp_path / "state.safetensors")
    again = load_roles(RoleSettings.model_validate(fields), ("cost",))
    again.restore(tmp_path / "state.safetensors")
    kept = dict(again.named_parameters())
    assert all(torch.equal(p, kept[name]) for name, p in roles.named_parameters())
    learned = {id(p) for p in roles.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert learned & critic
    assert learned <= critic | set(map(id, roles.heads["critic"].parameters()))
    with pytest.raises(
        ConfigError, match="critic_model: got one where critic is 'heads'; expected critic=model"
    ):
        load_config(RoleSettings, overrides=[f"policy={tiny_llama}", "critic_model=m"])


@pytest.mark.parametrize(
    ("tune", "critic"),
    [("lora", "heads"), ("full", "heads"), ("lora", "adapter"), ("lora", "model"), ("full", "model")],
)
def test_the_estimate_is_what_is_loaded(
    tiny_llama: Path, tmp_path: Path, tune: Any, critic: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = scorer(tmp_path / "scorer", tiny_llama)
    settings = RoleSettings(
        policy=str(tiny_llama), tune=tune, scorer=folder, rank=3, device="cpu", critic=critic
    )
    found = roles_footprint(settings)
    roles = load_roles(settings)
    assert found is not None
    assert found.weights == sum(p.numel() * 4 for p in roles.parameters())
    assert found.learning == 3 * sum(p.numel() * 4 for p in roles.parameters() if p.requires_grad)
    assert capsys.readouterr().err.startswith(
        f"{tiny_llama}: all roles hold about 0.00 GiB of weights and 0.00 GiB of gradients"
    )
    assert roles_footprint(settings.model_copy(update={"policy": "some/model"})) is None


def test_the_actor_is_published_as_an_adapter_on_its_base(
    tiny_llama: Path, tmp_path: Path, weights_have_usual_permissions: Callable[[Path], bool]
) -> None:
    folder, _ = scorer(tmp_path / "scorer", tiny_llama)
    roles = load_roles(RoleSettings(policy=str(tiny_llama), scorer=folder, rank=3, device="cpu"))
    torch.manual_seed(6)
    for name, parameter in roles.named_parameters():
        if "lora_B.default" in name:
            nn.init.normal_(parameter)
    save_actor(roles, tmp_path / "actor")
    names = {p.name for p in (tmp_path / "actor").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    with roles.use("actor", learning=False) as role:
        ours = role.read(ROWS).logps.tokens
    with torch.no_grad():
        theirs = response_logps(load_causal(tmp_path / "actor", device="cpu").model, ROWS).tokens
    assert torch.equal(ours, theirs)
    # and what starts from it has it folded in
    again = load_roles(RoleSettings(policy=str(tmp_path / "actor"), device="cpu"))
    with again.use("reference") as role:
        torch.testing.assert_close(role.read(ROWS).logps.tokens, ours, rtol=1e-4, atol=1e-4)
    full = load_roles(RoleSettings(policy=str(tiny_llama), tune="full", device="cpu"))
    save_actor(full, tmp_path / "full")
    assert load_causal(tmp_path / "full", device="cpu").tokenizer.eos_token_id == 2
    assert weights_have_usual_permissions(tmp_path / "actor")
    assert weights_have_usual_permissions(tmp_path / "full")


def test_what_does_not_fit_is_refused(tiny_llama: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    pooled = ScorerCard(backbone=str(tiny_encoder), trunk="pooled", layers=2, hidden=4, trained=("cost",))
    (tmp_path / "pooled").mkdir()
    (tmp_path / "pooled" / "model.json").write_text(pooled.model_dump_json())
    settings = RoleSettings(policy=str(tiny_llama), scorer=tmp_path / "pooled", device="cpu")
    with pytest.raises(ModelError, match="reads the mean of layers, which is no role; expected a scorer"):
        load_roles(settings)
    folder, model = scorer(tmp_path / "scorer", tiny_llama)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model.heads.reward.weight.requires_grad_(True)  # type: ignore[union-attr]
    model.save(folder)
    with pytest.raises(ModelError, match="tensors are missing"):
        load_roles(settings.model_copy(update={"scorer": folder}))
    with pytest.raises(
        ConfigError, match="critic: got 'adapter' where tune is 'full'; expected heads or model"
    ):
        load_config(RoleSettings, overrides=[f"policy={tiny_llama}", "tune=full", "critic=adapter"])
