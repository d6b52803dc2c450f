"""The trainer's promise: a step does not depend on how it is split, and a killed run ends the same."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from equipoise.errors import RunStoppedError
from equipoise.lineage import Run
from equipoise.training.trainer import OptimSettings, Task, fit


class Rows(NamedTuple):
    x: Tensor
    y: Tensor
    counts: Tensor

    def to(self, device: torch.device) -> "Rows":
        return Rows(*(tensor.to(device) for tensor in self))


class Squares(nn.Module):
    """Row i gives counts[i] squared errors, as a response gives one loss per token."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1)).double()

    def forward(self, rows: Rows) -> Tensor:
        errors = (self.net(rows.x).squeeze(-1) - rows.y).square()
        return errors.repeat_interleave(rows.counts)


COUNT = 12
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(COUNT, 3, dtype=torch.float64, generator=GENERATOR)
Y = torch.randn(COUNT, dtype=torch.float64, generator=GENERATOR)
COUNTS = torch.tensor([1, 5, 2, 3, 1, 1, 7, 2, 4, 1, 2, 6])
LENGTHS = [7, 3, 9, 2, 8, 4, 4, 6, 5, 3, 9, 1]


def task(model: nn.Module) -> Task:
    def collate(indices: Sequence[int]) -> Rows:
        chosen = list(indices)
        return Rows(X[chosen], Y[chosen], COUNTS[chosen])

    return Task(model, LENGTHS, COUNTS.tolist(), collate)


def run_in(folder: Path) -> Run:
    scratch = folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return Run(folder, scratch)


def settings(**changes: Any) -> OptimSettings:
    given: dict[str, Any] = {"lr": 0.01, "batch_size": COUNT, "clip_norm": 1e9, "device": "cpu"}
    return OptimSettings(**(given | changes))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@contextmanager
def kept_gradients() -> Iterator[list[Tensor]]:
    """Collect the gradient of each step, as the optimiser sees it."""
    kept: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        found = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        kept.append(torch.cat(found).clone())

    handle = register_optimizer_step_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def mean_gradient() -> Tensor:
    """Gradient of the mean over all terms, in one piece; weights first, as the optimiser has them."""
    model = Squares()
    model(Rows(X, Y, COUNTS)).mean().backward()
    named = sorted(model.named_parameters(), key=lambda item: item[0].endswith("bias"))
    return torch.cat([p.grad.flatten() for _, p in named if p.grad is not None])


def test_a_part_of_the_model_learns_at_a_rate_of_its_own(tmp_path: Path) -> None:
    """A first step of Adam moves every weight by its rate; the schedule falls for both alike."""
    model = Squares()
    before = [p.detach().clone() for p in model.parameters()]
    apart = task(model)._replace(rates=[(model.net[3], 0.1)])
    fit(apart, settings(lr=0.01, epochs=1, warmup_fraction=0, weight_decay=0.0), run_in(tmp_path), label="t")
    moved = [(a - b).abs() for a, b in zip(before, model.parameters(), strict=True)]
    for change, rate in zip(moved, (0.01, 0.01, 0.1, 0.1), strict=True):
        torch.testing.assert_close(change, torch.full_like(change, rate), rtol=1e-4, atol=0)


@pytest.mark.parametrize("tokens", [1, 9, 20, 1000])
def test_the_gradient_of_a_step_does_not_depend_on_the_split(tokens: int, tmp_path: Path) -> None:
    with kept_gradients() as kept:
        fit(task(Squares()), settings(tokens_per_micro_batch=tokens), run_in(tmp_path), label="test")
    torch.testing.assert_close(kept[0], mean_gradient(), rtol=1e-6, atol=1e-9)


def test_the_logged_loss_is_the_mean_over_all_terms(tmp_path: Path) -> None:
    expected = Squares()(Rows(X, Y, COUNTS)).mean().item()
    log = fit(task(Squares()), settings(tokens_per_micro_batch=9), run_in(tmp_path), label="test")
    assert log[0]["loss"] == pytest.approx(expected, rel=1e-6)
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0]) == log[0]


def test_two_processes_take_the_step_of_one(tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_ranks.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"gradient-{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, mean_gradient(), rtol=1e-6, atol=1e-9)


class KilledError(Exception):
    """Stands for kill -9: nothing of ours runs after it."""


@pytest.mark.parametrize("log_every", [1, 2, 4])
def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(tmp_path: Path, log_every: int) -> None:
    options: dict[str, Any] = {"batch_size": 3, "epochs": 4, "checkpoint_every": 3, "log_every": log_every}
    whole, broken = Squares(dropout=0.5), Squares(dropout=0.5)
    expected = fit(task(whole), settings(**options), run_in(tmp_path / "whole"), label="test")

    steps = iter(range(100))

    def dies(indices: Sequence[int]) -> Rows:
        if next(steps) == 11:
            raise KilledError
        return task(broken).collate(indices)

    run = run_in(tmp_path / "broken")
    with pytest.raises(KilledError):
        fit(task(broken)._replace(collate=dies), settings(**options), run, label="test")
    resumed = Squares(dropout=0.5)
    log = fit(task(resumed), settings(**options), run, label="test")

    assert torch.equal(weights(resumed), weights(whole))
    assert [entry["step"] for entry in expected] == list(range(log_every, 17, log_every))
    assert [entry["loss"] for entry in log] == [entry["loss"] for entry in expected]


def test_a_half_written_checkpoint_is_not_taken_for_whole(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 3, "epochs": 4, "checkpoint_every": 3}
    expected = Squares()
    fit(task(expected), settings(**options), run_in(tmp_path / "whole"), label="test")
    run = run_in(tmp_path / "broken")
    fit(task(Squares()), settings(**options), run, label="test")
    newest = max((run.scratch / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    with (newest / "trained.safetensors").open("r+b") as handle:
        handle.seek(200)
        handle.write(b"\0" * 8)
    again = Squares()
    fit(task(again), settings(**options), run, label="test")
    assert torch.equal(weights(again), weights(expected))


def test_no_checkpoint_holds_pickled_arguments(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    fit(task(Squares()), settings(checkpoint_every=1), run, label="test")
    names = {f.name for f in run.scratch.rglob("*") if f.is_file()}
    assert "trained.safetensors" in names
    assert "training_args.bin" not in names


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    model = Squares()
    before = weights(model)

    def broken(indices: Sequence[int]) -> Rows:
        return task(model).collate(indices)._replace(y=torch.full((len(indices),), torch.nan).double())

    with pytest.raises(RunStoppedError, match="step 1: the loss of micro-batch 1 is nan"):
        fit(task(model)._replace(collate=broken), settings(), run_in(tmp_path), label="test")
    assert torch.equal(weights(model), before)


class InfiniteGradient(Squares):
    def forward(self, rows: Rows) -> Tensor:
        touched = self.net[0].weight.sum() * 0.0
        return super().forward(rows) + touched.clamp(min=0).sqrt()  # 0 forward, infinite backward


def test_a_gradient_that_is_not_finite_names_its_tensor(tmp_path: Path) -> None:
    with pytest.raises(RunStoppedError, match=r"step 1: gradient of net\.0\.weight is not finite"):
        fit(task(InfiniteGradient()), settings(), run_in(tmp_path), label="test")
