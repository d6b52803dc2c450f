"""A memory budget: what a pass takes, against a sum by hand; the choice that follows; a real run's peak."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from equipoise.errors import ConfigError
from equipoise.training.budget import GIB, SLACK, Peak, passes, within_memory
from equipoise.training.trainer import OptimSettings, Task

WIDTH = 1000


class Rows(NamedTuple):
    x: Tensor

    def to(self, device: torch.device) -> "Rows":
        return Rows(self.x.to(device))


class Squares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.frozen = nn.Parameter(torch.ones(WIDTH), requires_grad=False)

    def forward(self, rows: Rows) -> Tensor:
        return (rows.x * self.weight).square().sum(-1)


LENGTHS = [1, 5, 3]


def task(lengths: Sequence[int] = LENGTHS) -> Task:
    def collate(chosen: Sequence[int]) -> Rows:
        return Rows(torch.ones(len(chosen) * max(lengths[i] for i in chosen), WIDTH))

    return Task(Squares(), lengths, [1] * len(lengths), collate)


def settings(**changes: Any) -> OptimSettings:
    return OptimSettings(**({"lr": 1.0, "device": "cpu"} | changes))


def test_all_that_is_there_at_once_is_counted_and_what_the_model_holds_is_not() -> None:
    model = Squares()
    with Peak(model) as peak:
        kept = torch.ones(50) + 1  # the ones go
        view = kept[:10]
        assert peak.now == 4 * 50
        assert peak.most == 4 * 100
        del kept
        assert peak.now == 4 * 50  # the view holds it
        del view
        assert peak.now == 0
        model.weight.detach().mul_(2)
        assert peak.now == 0


def test_a_pass_takes_what_forward_and_backward_hold_together() -> None:
    # Going back through the square: product, its gradient and one factor of it, each as large as the rows
    for rows in (5, 10):
        found = passes(task([rows]), [0], settings())
        assert 3 * rows * WIDTH * 4 <= found <= 4 * (rows + 1) * WIDTH * 4


def test_a_pass_leaves_no_gradient_and_draws_no_number() -> None:
    one = task()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    passes(one, [1], settings())
    assert torch.equal(torch.rand(1), expected)
    assert all(parameter.grad is None for parameter in one.model.parameters())
    one.model.eval()
    passes(one, [1], settings())
    assert not one.model.training


def test_a_budget_lowers_the_tokens_of_a_micro_batch_and_never_raises_them() -> None:
    one = task()
    single, both = passes(one, [1], settings()), passes(one, [1, 2], settings())
    held = 4 * WIDTH * 2 + 2 * 4 * WIDTH  # two weights, and the moments of one
    exactly = (held + SLACK * both) / GIB
    for budget, tokens in ((exactly * 1.0001, 10), (exactly * 0.9999, 9), (1.0, 512)):
        assert within_memory(one, settings(memory_gib=budget)).tokens_per_micro_batch == tokens
    assert within_memory(one, settings(memory_gib=1.0, tokens_per_micro_batch=7)).tokens_per_micro_batch == 7
    assert within_memory(one, settings()).micro_tokens == 512
    with pytest.raises(ConfigError) as caught:
        within_memory(one, settings(memory_gib=1e-5))
    least = (held + SLACK * single) / GIB
    assert str(caught.value) == (
        f"optim.memory_gib: got 1e-05; expected {least:.2g} at least, which the weights, the optimiser and"
        " the longest example (5 tokens) take"
    )


def test_weights_that_are_held_beside_the_model_count_too() -> None:
    one = task()
    both = passes(one, [1, 2], settings())
    budget = (16 * WIDTH + SLACK * both) / GIB * 1.0001
    assert within_memory(one, settings(memory_gib=budget)).tokens_per_micro_batch == 10
    heavy = one._replace(beside=8 * WIDTH)
    assert within_memory(heavy, settings(memory_gib=budget)).tokens_per_micro_batch < 10
    more = budget + 8 * WIDTH / GIB
    assert within_memory(heavy, settings(memory_gib=more)).tokens_per_micro_batch == 10


@pytest.fixture
def small_llama(tmp_path: Path, tiny_llama: Path) -> Path:
    """Folder of a llama of 13 MB, whose passes take most of the memory."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    shape = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **shape))
    folder = tmp_path / "small"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of memory")
def test_a_real_run_keeps_within_its_budget(tmp_path: Path, small_llama: Path) -> None:
    script = Path(__file__).with_name("peak_of_a_training.py")

    def peak(gib: float) -> tuple[float, str]:
        place = tmp_path / f"run-{gib}"
        place.mkdir()
        done = subprocess.run(
            [sys.executable, str(script), str(small_llama), str(gib), str(place)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return float(done.stdout.split()[-1]), done.stderr

    budget = 0.19
    free, _ = peak(0)
    assert free > 1.5 * budget * 1024  # it takes a budget to keep within it
    found, said = peak(budget)
    assert "micro-batches of" in said
    assert 0.5 * budget * 1024 < found < budget * 1024  # and what it allows is used
