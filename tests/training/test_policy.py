"""Policies: what learns, how it is saved, and that one training can go on from another."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from equipoise.data.io import write_records
from equipoise.lineage import produce
from equipoise.models.backbone import Backbone, load_causal
from equipoise.models.layout import response_logps
from equipoise.records import Answer, Exchange, Message, Pair
from equipoise.training.policy import LoraSettings, Tune, prepare, save_policy
from equipoise.training.policy_rows import PolicyBatch, make_row
from equipoise.training.preference import TRAIN_PREFERENCE, PreferenceConfig, PreferenceOptim
from equipoise.training.sft import TRAIN_SFT, SftConfig, SftOptim


@torch.no_grad()
def logps(backbone: Backbone, model: torch.nn.Module | None = None) -> torch.Tensor:
    rows = [make_row(backbone.tokenizer, "how do i bake bread", ["mix flour and water", "wait"])]
    return response_logps((model or backbone.model).eval(), rows).sums


def test_a_row_is_the_template_and_every_response_to_the_end_of_its_turn(tiny_llama: Path) -> None:
    tokenizer = load_causal(tiny_llama, device="cpu").tokenizer
    chat = (Message(role="system", content="be kind"), Message(role="user", content="hi"))
    row = make_row(tokenizer, chat, ["yes", ""])
    assert tokenizer.decode(row.prompt) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [tokenizer.decode(ids) for ids in row.responses] == ["yes<|im_end|>", "<|im_end|>"]


def test_a_batch_moves_its_tensors_and_keeps_its_rows(tiny_llama: Path) -> None:
    row = make_row(load_causal(tiny_llama, device="cpu").tokenizer, "hi", ["yes"])
    moved = PolicyBatch((row,), (torch.ones(1),)).to(torch.device("meta"))
    assert moved.rows == (row,)
    assert moved.extras[0].device.type == "meta"


def test_adapters_begin_as_no_change_and_alone_learn(tiny_llama: Path) -> None:
    backbone = load_causal(tiny_llama, device="cpu")
    before = logps(backbone)
    policy = prepare(backbone, "lora", LoraSettings(rank=3, alpha=6), seed=0)
    learns = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert learns
    assert all(".lora_" in name and 3 in p.shape for name, p in learns.items())
    torch.testing.assert_close(logps(backbone, policy), before, rtol=0, atol=1e-5)


def test_the_seed_decides_the_adapters(tiny_llama: Path) -> None:
    def first(seed: int) -> torch.Tensor:
        policy = prepare(load_causal(tiny_llama, device="cpu"), "lora", LoraSettings(), seed)
        return next(p for name, p in policy.named_parameters() if "lora_A" in name).detach()

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_saved_policy_says_what_it_said(
    tmp_path: Path, tiny_llama: Path, weights_have_usual_permissions: Callable[[Path], bool], tune: Tune
) -> None:
    backbone = load_causal(tiny_llama, device="cpu")
    before = logps(backbone)
    policy = prepare(backbone, tune, LoraSettings(), seed=0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    save_policy(backbone, policy, tmp_path)
    assert (tmp_path / "adapter_config.json").exists() == (tune == "lora")
    assert weights_have_usual_permissions(tmp_path)
    loaded = load_causal(tmp_path, device="cpu")
    torch.testing.assert_close(logps(loaded), logps(backbone, policy), rtol=0, atol=1e-5)
    assert (logps(loaded) - before).abs().min() > 1e-3


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_training_goes_on_from_the_adapter_of_another(tmp_path: Path, tiny_llama: Path, tune: Tune) -> None:
    rows = [Exchange(id=str(i), prompt=f"ask {i}", response="yes and no", is_safe=True) for i in range(4)]
    answers = (Answer(response="yes", is_safe=True), Answer(response="no no", is_safe=False))
    write_records(tmp_path / "e.jsonl", rows)
    write_records(tmp_path / "p.jsonl", [Pair(id="p", prompt="ask", answers=answers, better=0)])
    sft = SftOptim(lr=1e-2, epochs=3, device="cpu")
    produce(
        tmp_path / "sft",
        TRAIN_SFT,
        SftConfig(exchanges=(tmp_path / "e.jsonl",), model=str(tiny_llama), optim=sft),
    )
    config = PreferenceConfig(
        pairs=(tmp_path / "p.jsonl",),
        model=str(tmp_path / "sft"),
        tune=tune,
        optim=PreferenceOptim(lr=1e-9, device="cpu"),
    )
    produce(tmp_path / "aligned", TRAIN_PREFERENCE, config)
    base, first = load_causal(tiny_llama, device="cpu"), load_causal(tmp_path / "sft", device="cpu")
    last = load_causal(tmp_path / "aligned", device="cpu")
    torch.testing.assert_close(logps(last), logps(first), rtol=0, atol=1e-3)  # the second learned nothing
    assert (logps(first) - logps(base)).abs().min() > 0.1
