"""A split model: steps, checkpoints and the weights at the end are those of a whole one."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from equipoise.training.shards import join, load, optimizer_state, shard, split_state, trained


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of one process; `test_processes.py` has two."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Losses(nn.Module):
    """What is trained: a model inside, whose output weights are read apart from it, and a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        self.policy = LlamaForCausalLM(LlamaConfig(vocab_size=12, tie_word_embeddings=True, **shape))
        self.policy.model.layers[0].requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        states = self.policy.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = states[:, :-1] @ self.policy.lm_head.weight.T
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")


IDS = torch.randint(0, 12, (3, 7), generator=torch.Generator().manual_seed(1))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    learning = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW([{"params": learning[:2], "lr": 0.01}, {"params": learning[2:], "lr": 0.02}])


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss: Tensor = model(IDS).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def test_a_split_model_goes_on_from_whole_checkpoints_and_is_whole_at_the_end(group: None) -> None:
    whole, split, again = Losses(), Losses(), Losses()
    plain = adam(whole)
    shard(split, "cpu")
    assert all(isinstance(value, DTensor) for value in split.parameters())
    first = adam(split)
    assert step(split, first) == pytest.approx(step(whole, plain), rel=1e-6)

    weights, state = trained(split), optimizer_state(first.state_dict())
    assert not any(isinstance(value, DTensor) for value in weights.values())
    expected = copy.deepcopy(plain.state_dict())
    assert state["param_groups"] == expected["param_groups"]
    assert state["state"].keys() == expected["state"].keys()
    for number, own in expected["state"].items():
        for name, value in own.items():
            torch.testing.assert_close(state["state"][number][name], value, rtol=1e-5, atol=1e-8)

    shard(again, "cpu")
    load(again, weights, "memory")
    second = adam(again)
    second.load_state_dict(split_state(state, second.param_groups))
    assert step(again, second) == pytest.approx(step(whole, plain), rel=1e-6)

    join(again)
    assert not any(isinstance(value, DTensor) for value in again.parameters())
    assert again.policy.lm_head.weight is again.policy.model.embed_tokens.weight
    found = again.state_dict()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


def test_a_model_that_was_never_split_is_left_alone() -> None:
    model = Losses()
    before = list(model.parameters())
    join(model)
    assert all(one is other for one, other in zip(model.parameters(), before, strict=True))
    load(model, {"policy.model.norm.weight": torch.full((8,), 2.0)}, "memory")
    assert model.policy.model.norm.weight.tolist() == [2.0] * 8
    assert "policy.model.layers.0.mlp.up_proj.weight" not in trained(model)
