"""Roles on one set of weights: numbers and gradients of separate models, and the traps of switching."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from equipoise.errors import ModelError
from equipoise.models.backbone import add_lora, load_causal
from equipoise.models.layout import Row, response_logps
from equipoise.models.roles import InUse, Role, Roles, ValueHeads

ROWS = [Row([1, 30, 31, 32], [[40, 41, 2], [50, 51, 52, 53]]), Row([1, 60], [[61, 62, 63, 64, 2]])]


def stir(module: nn.Module, seed: int) -> None:
    """Move adapters and heads away from their start, where they change nothing."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name or "values" in name:
                parameter.normal_(std=0.2)


def recompute(model: nn.Module, wanted: bool) -> None:
    """Set the layers to be computed again, as `training.memory.recomputing` does."""
    found: Any = next(m for m in model.modules() if hasattr(m, "gradient_checkpointing_enable"))
    if wanted:
        found.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        found.disable_input_require_grads()


def one_backbone(folder: Path, attached: bool = False) -> Roles:
    """Actor with critics, reference, and two more adapters, one of which learns."""
    backbone = load_causal(folder, device="cpu")
    model = add_lora(backbone.model, rank=3)
    for name in ("critic", "scorer"):
        add_lora(model, rank=3, name=name)
    stir(model, 1)
    trunk = backbone._replace(model=model.double())
    roles = {
        "actor": Role(trunk, "default", learns=True),
        "critic": Role(trunk, "critic", learns=True),
        "scorer": Role(trunk, "scorer"),
        "reference": Role(trunk),
    }
    heads = {"actor": ValueHeads(32, ("reward", "cost")), "critic": ValueHeads(32, ("reward", "cost"))}
    stir(nn.ModuleDict(heads), 2)
    return Roles(roles, heads, attached=attached).double()


def separate(roles: Roles, folder: Path, adapter: str) -> PeftModel:
    """A model of its own with the same adapter."""
    model = add_lora(load_causal(folder, device="cpu").model, rank=3).double()
    own = {
        name.replace(f".{adapter}.", ".default."): value
        for name, value in roles.trunks[0].state_dict().items()
        if f".{adapter}." in name
    }
    assert own.keys() <= model.state_dict().keys()
    model.load_state_dict(own, strict=False)
    return model


def loss_of(role: InUse) -> Tensor:
    said = role.read(ROWS)
    assert said.values is not None
    targets = torch.arange(1.0, 1 + said.values.numel()).view_as(said.values)
    return said.logps.tokens.exp().sum() + said.logps.sums.sum() + ((said.values - targets) ** 2).mean()


def separate_loss(model: nn.Module, head: nn.Module, attached: bool) -> Tensor:
    """The same number from a model of its own, each response a row."""
    losses, values = torch.zeros((), dtype=torch.float64), []
    for row in ROWS:
        for response in row.responses:
            ids = torch.tensor([row.prompt + response])
            out = model(input_ids=ids, output_hidden_states=True, use_cache=False)
            at = slice(len(row.prompt) - 1, ids.shape[1] - 1)
            logps = out.logits[0, at].log_softmax(-1)[range(len(response)), response]
            hidden = out.hidden_states[-1][0, at]
            values.append(head(hidden if attached else hidden.detach()))
            losses = losses + logps.exp().sum() + logps.sum()
    found = torch.cat(values)
    return losses + ((found - torch.arange(1.0, 1 + found.numel()).view_as(found)) ** 2).mean()


def gradients(roles: Roles) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in roles.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_")
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("attached", [False, True])
def test_gradients_of_each_role_are_those_of_a_model_of_its_own(
    tiny_llama: Path, attached: bool, recomputed: bool
) -> None:
    roles = one_backbone(tiny_llama, attached)
    recompute(roles, recomputed)
    layer = next(m for m in roles.modules() if isinstance(m, GradientCheckpointingLayer))
    passes: list[int] = []
    layer.mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    for name in ("actor", "critic"):
        with roles.use("reference") as role:
            role.read(ROWS)  # others before and after change nothing
        passes.clear()
        with roles.use(name) as role:
            loss = loss_of(role)
            loss.backward()
        assert len(passes) == (2 if recomputed else 1)
        with roles.use("scorer") as role:
            role.read(ROWS)
        adapter = roles.roles[name].adapter or ""
        model = separate(roles, tiny_llama, adapter)
        head = ValueHeads(32, ("reward", "cost")).double()
        head.load_state_dict(roles.heads[name].state_dict())
        expected = separate_loss(model, head, attached)
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        wanted = {n.replace(".default.", f".{adapter}."): p.grad for n, p in model.named_parameters()}
        for key, parameter in roles.trunks[0].named_parameters():
            if f".{adapter}." in key:
                assert parameter.grad is not None
                assert wanted[key] is not None
                torch.testing.assert_close(parameter.grad, wanted[key], rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(roles.heads[name].parameters(), head.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    learnt = {n for n, p in roles.named_parameters() if p.requires_grad}
    assert gradients(roles).keys() == learnt  # the base, the scorer and the reference got none
    assert not any("scorer" in n or "base_layer" in n for n in learnt)


def test_each_role_says_what_a_model_of_its_own_says(tiny_llama: Path) -> None:
    roles = one_backbone(tiny_llama)
    said = {}
    for name in roles.roles:
        with roles.use(name, learning=False) as role:
            said[name] = role.read(ROWS)
    with torch.no_grad():
        base = response_logps(load_causal(tiny_llama, device="cpu").model.double(), ROWS)
        assert torch.equal(said["reference"].logps.tokens, base.tokens)
        for name in ("actor", "critic", "scorer"):
            own = response_logps(separate(roles, tiny_llama, roles.roles[name].adapter or ""), ROWS)
            torch.testing.assert_close(said[name].logps.tokens, own.tokens)
            torch.testing.assert_close(said[name].logps.sums, own.sums)
            assert not torch.allclose(own.tokens, base.tokens, atol=1e-2)
    assert said["reference"].values is None
    assert said["actor"].values is not None
    assert not any(s.logps.tokens.requires_grad for s in said.values())


def test_fresh_critics_foretell_nothing() -> None:
    assert torch.equal(ValueHeads(4, ("a", "b"))(torch.randn(3, 4)), torch.zeros(3, 2))


def test_who_learns_is_settled_once(tiny_llama: Path) -> None:
    roles = one_backbone(tiny_llama)
    flags = {n: p.requires_grad for n, p in roles.named_parameters()}
    assert sum(flags.values()) > 0
    for name in roles.roles:
        with roles.use(name):
            assert {n: p.requires_grad for n, p in roles.named_parameters()} == flags
    assert {n: p.requires_grad for n, p in roles.named_parameters()} == flags
    model: Any = roles.trunks[0]
    model.set_adapter("scorer")  # the trap: peft's switch would have changed them
    assert {n: p.requires_grad for n, p in roles.named_parameters()} != flags


def test_one_role_at_a_time(tiny_llama: Path) -> None:
    roles = one_backbone(tiny_llama)
    with roles.use("reference") as first:
        with pytest.raises(ModelError, match="role 'actor': another role is in use"), roles.use("actor"):
            pass
        first.read(ROWS)
    with pytest.raises(ModelError, match="role 'reference': its use has ended"):
        first.read(ROWS)
    with pytest.raises(ModelError, match=r"no role 'actr' \(did you mean 'actor'\?\)"), roles.use("actr"):
        pass
    with roles.use("scorer") as role, pytest.raises(ModelError, match="role 'scorer': has no heads"):
        role.score(ROWS)


def test_a_graph_does_not_outlive_its_use(tiny_llama: Path) -> None:
    roles = one_backbone(tiny_llama)
    with pytest.raises(ModelError, match="role 'actor': a graph is alive"), roles.use("actor") as role:
        kept = loss_of(role)
    with pytest.raises(ModelError, match="role 'actor': its use has ended"):
        kept.backward()
    assert gradients(roles).keys() <= {n for n, _ in roles.named_parameters() if n.startswith("heads.")}
    with roles.use("actor") as role:
        loss_of(role)  # thrown away
    with roles.use("actor") as role:
        for _ in range(2):
            loss_of(role).backward()
    with pytest.raises(ZeroDivisionError), roles.use("actor") as role:
        kept, _ = loss_of(role), 1 / 0  # what went wrong is not hidden
    with roles.use("reference"):
        pass


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_")
def test_computing_layers_again_after_a_switch_is_refused_and_would_be_wrong(tiny_llama: Path) -> None:
    roles = one_backbone(tiny_llama)
    recompute(roles, True)
    with roles.use("actor") as role:
        loss_of(role).backward()
        right = gradients(roles)
        roles.zero_grad()
        loss = loss_of(role)
        roles._switch(roles.roles["critic"])
        loss.backward()  # the trap: nothing raises
        wrong = gradients(roles)
        assert not all(name in wrong and torch.allclose(wrong[name], right[name]) for name in right)
        roles.zero_grad()
        roles._switch(roles.roles["actor"])
        loss = loss_of(role)
        loss.backward(retain_graph=True)
    with roles.use("critic"), pytest.raises(ModelError, match="role 'actor': its use has ended"):
        loss.backward()


def test_no_layer_is_left_in_training(tiny_llama: Path) -> None:
    roles = one_backbone(tiny_llama)
    for module in roles.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = True
    with roles.use("actor"):
        training = [m for m in roles.modules() if m.training]
        assert len(training) == 2
        assert all(isinstance(m, GradientCheckpointingLayer) for m in training)
    with roles.use("actor", learning=False):
        assert not any(m.training for m in roles.modules())  # a cache would be dropped
    assert not any(m.training for m in roles.modules())


def test_what_was_learnt_is_read_again(tiny_llama: Path, tmp_path: Path) -> None:
    roles = one_backbone(tiny_llama)
    with roles.use("actor") as role:
        loss_of(role).backward()
    with torch.no_grad():
        for parameter in roles.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.01)
    roles.save(tmp_path / "roles.safetensors")
    again = one_backbone(tiny_llama)
    again.restore(tmp_path / "roles.safetensors")
    for module in (roles, again):
        module.zero_grad()
        with module.use("actor") as role:
            loss_of(role).backward()
    ours, theirs = gradients(again), gradients(roles)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    other = Roles({"actor": roles.roles["actor"]}, {})
    with pytest.raises(ModelError, match="has no place in this model"):
        other.restore(tmp_path / "roles.safetensors")
    other.save(tmp_path / "fewer.safetensors")
    with pytest.raises(ModelError, match="tensors are missing"):
        again.restore(tmp_path / "fewer.safetensors")


def test_a_role_can_be_a_model_of_its_own(tiny_llama: Path) -> None:
    shared, own = load_causal(tiny_llama, device="cpu"), load_causal(tiny_llama, device="cpu")
    roles = Roles({"actor": Role(own, learns=True), "reference": Role(shared)}, {})
    with roles.use("actor") as actor:
        rows = actor.rows([[{"role": "user", "content": "bread?"}]], [["flour", "no"]])
        assert rows[0].responses[0][-1] == 2
        actor.read(rows).logps.sums.sum().backward()
    assert all(p.grad is not None for p in own.model.parameters())
    assert not any(p.requires_grad for p in shared.model.parameters())
    with pytest.raises(ModelError, match="role 'actor': its own weights learn, and are those of 'other' too"):
        Roles({"actor": Role(own, learns=True), "other": Role(own)}, {})
    with pytest.raises(ModelError, match="has no adapter 'critic'"):
        Roles({"actor": Role(own, "critic", learns=True)}, {})


def test_states_of_a_model_whose_logits_are_scaled(tiny_llama: Path) -> None:
    backbone = load_causal(tiny_llama, device="cpu")
    model: Any = backbone.model
    values = ValueHeads(32, ("x",))
    stir(values, 3)
    with Roles({"a": Role(backbone)}, {"a": values}).use("a") as role:
        plain = role.read(ROWS)
    model.lm_head = nn.Sequential(model.lm_head)  # no longer a plain product
    with Roles({"a": Role(backbone)}, {"a": values}).use("a") as role:
        said = role.read(ROWS)
    torch.testing.assert_close(said.logps.tokens, plain.logps.tokens)
    assert said.values is not None
    assert plain.values is not None
    assert plain.values.abs().min() > 0
    torch.testing.assert_close(said.values, plain.values)
