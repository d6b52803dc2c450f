"""What a training asks for: estimates against the models themselves, and recomputed layers change nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.errors import ConfigError
from equipoise.lineage import Run
from equipoise.models.backbone import load_causal
from equipoise.objectives.preference import dpo
from equipoise.training.memory import footprint, recomputing, say_footprint, say_work
from equipoise.training.pair_order import OrderedPair
from equipoise.training.paired import PreferenceLosses, pair_task
from equipoise.training.policy import LoraSettings, Tune, prepare, save_policy
from equipoise.training.policy_rows import make_row
from equipoise.training.trainer import OptimSettings, Task, fit

TEXTS = [
    ("how do i bake bread", "mix flour and water", "wait until the dough has doubled"),
    ("why are there tides", "no", "the moon and the sun pull at the water"),
]


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_the_estimate_is_what_the_model_and_its_optimiser_hold(
    tmp_path: Path, tiny_llama: Path, tune: Tune
) -> None:
    lora = LoraSettings(rank=3)
    backbone = load_causal(tiny_llama, device="cpu")
    policy = prepare(backbone, tune, lora, seed=0)
    found = footprint(tiny_llama, tune, lora, "cpu")
    assert found is not None
    assert found.weights == sum(p.numel() * 4 for p in policy.parameters())

    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad])
    make_row_loss(policy, backbone.tokenizer).backward()
    optimizer.step()
    held = [p.grad for p in policy.parameters() if p.grad is not None]
    moments = [s[k] for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
    assert found.learning == sum(tensor.numel() * 4 for tensor in (*held, *moments))

    save_policy(backbone, policy, tmp_path)  # what starts from it holds as much again
    assert footprint(tmp_path, tune, lora, "cpu") == found


def make_row_loss(policy: nn.Module, tokenizer: Any) -> Tensor:
    task = task_of(policy, tokenizer)
    loss: Tensor = task.model(task.collate([0, 1])).sum()
    return loss


def task_of(policy: nn.Module, tokenizer: Any) -> Task:
    rows = [make_row(tokenizer, prompt, answers) for prompt, *answers in TEXTS]
    pairs = [OrderedPair(row, False, False, None, 1.0) for row in rows]
    return pair_task(PreferenceLosses(policy, dpo, 0.1), pairs, [torch.tensor([-30.0, -31.0])] * 2)


def test_the_estimate_is_told_in_one_line_and_not_guessed(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say_footprint(tiny_llama, "full", LoraSettings(), "cpu")
    says = f"{tiny_llama}: about 0.00 GiB of weights and 0.00 GiB of gradients and optimiser state, and"
    assert capsys.readouterr().err == f"{says} activations\n"
    say_footprint("some/model", "full", LoraSettings(), "cpu")  # would have to be fetched
    (tmp_path / "config.json").write_text("{}")
    say_footprint(tmp_path, "full", LoraSettings(), "cpu")
    assert capsys.readouterr().err == ""
    say_work([600, 700, 50], OptimSettings(lr=1.0, epochs=2, batch_size=2))
    assert capsys.readouterr().err == "4 steps over 2,700 tokens\n"


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_recomputed_layers_give_the_same_losses_and_gradients(tiny_llama: Path, tune: Tune) -> None:
    backbone = load_causal(tiny_llama, device="cpu")
    policy = prepare(backbone, tune, LoraSettings(rank=4, dropout=0.3), seed=0).train()
    layer = next(part for name, part in policy.named_modules() if name.endswith("layers.0.mlp.act_fn"))
    calls: list[int] = []
    layer.register_forward_hook(lambda *_: calls.append(1))

    def take() -> tuple[float, dict[str, Tensor]]:
        policy.zero_grad()
        torch.manual_seed(5)
        loss = make_row_loss(policy, backbone.tokenizer)
        loss.backward()  # type: ignore[no-untyped-call]
        found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
        return loss.item(), found

    loss, gradients = take()
    assert len(calls) == 1
    with recomputing(policy, True):
        again, recomputed = take()
    assert len(calls) == 3  # forward, and again on the way back
    assert again == loss
    assert recomputed.keys() == gradients.keys()
    assert all(torch.equal(recomputed[name], gradients[name]) for name in gradients)
    take()
    assert len(calls) == 4  # and left as it was


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_training_with_recomputed_layers_logs_the_same(
    tmp_path: Path, tiny_llama: Path, tune: Tune
) -> None:
    logs = []
    for wanted in (False, True):
        backbone = load_causal(tiny_llama, device="cpu")
        policy = prepare(backbone, tune, LoraSettings(rank=4, dropout=0.3), seed=0)
        place = tmp_path / str(wanted)
        (place / "scratch").mkdir(parents=True)
        optim = OptimSettings(lr=1e-2, epochs=3, device="cpu", gradient_checkpointing=wanted)
        fit(task_of(policy, backbone.tokenizer), optim, Run(place, place / "scratch"), label="test")
        logs.append([json.loads(line) for line in (place / "log.jsonl").read_text().splitlines()])
    assert len(logs[0]) == 3
    assert [e["loss"] for e in logs[0]] == [e["loss"] for e in logs[1]]
    assert [e["grad_norm"] for e in logs[0]] == [e["grad_norm"] for e in logs[1]]


def test_what_has_no_layers_cannot_recompute_them() -> None:
    expected = r"optim\.gradient_checkpointing: features made before cannot be computed again"
    with pytest.raises(ConfigError, match=expected), recomputing(nn.Linear(2, 2), True):
        pass
