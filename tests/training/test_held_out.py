"""Early stop: what is held out, when a training stops, and which weights it ends with."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from equipoise.data.io import write_records
from equipoise.errors import ConfigError, DataError, RunStoppedError
from equipoise.lineage import Run, produce
from equipoise.records import Answer, Exchange, Pair
from equipoise.training.guard import TRAIN_GUARD, GuardConfig, GuardOptim
from equipoise.training.held_out import hold_out
from equipoise.training.preference import TRAIN_PREFERENCE, PreferenceConfig, PreferenceOptim
from equipoise.training.scorer import TRAIN_SCORER, ScorerConfig, ScorerOptim
from equipoise.training.trainer import OptimSettings, Task, fit

GROUPS = [i // 2 for i in range(20)]
KEPT, HELD = hold_out(GROUPS, 0)
TURN = 0.5


class Targets(NamedTuple):
    values: Tensor

    def to(self, device: torch.device) -> "Targets":
        return Targets(self.values.to(device))


class Number(nn.Module):
    """Learns one number: what is trained on wants 2, what is held out wants TURN."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Targets) -> Tensor:
        return (self.number - batch.values).square()


def task(model: nn.Module) -> Task:
    targets = torch.tensor([TURN if i in HELD else 2.0 for i in range(20)])

    def collate(chosen: Sequence[int]) -> Targets:
        return Targets(targets[list(chosen)])

    return Task(model, [1] * 20, [1] * 20, collate, groups=GROUPS)


def settings(**changes: Any) -> OptimSettings:
    """One step an epoch, each a twentieth towards what is trained on."""
    given: dict[str, Any] = {"lr": 0.05, "batch_size": 20, "epochs": 60, "device": "cpu"}
    given |= {"schedule": "constant", "warmup_fraction": 0.0, "stop_after": 8, "checkpoint_every": 3}
    return OptimSettings(**(given | changes))


def run_in(folder: Path) -> Run:
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    return Run(folder, folder / "scratch")


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_tenth_is_held_out_whole_groups_as_the_seed_says() -> None:
    assert sorted(KEPT + HELD) == list(range(20))
    assert len(HELD) == 2
    assert {GROUPS[i] for i in HELD}.isdisjoint(GROUPS[i] for i in KEPT)
    assert hold_out(GROUPS, 0) == (KEPT, HELD)
    assert len({tuple(hold_out(GROUPS, seed)[1]) for seed in range(8)}) > 3
    with pytest.raises(DataError, match="got examples of one prompt; expected two"):
        hold_out([1, 1, 1], 0)


def test_a_training_stops_some_steps_after_the_best_and_ends_with_its_weights(tmp_path: Path) -> None:
    model, run = Number(), run_in(tmp_path)
    log = fit(task(model), settings(), run, label="test")
    assert log[-1]["step"] == 18  # the best was after ten steps, asked every two
    assert model.number.item() == pytest.approx(TURN, abs=0.02)
    held = {entry["step"]: entry["held_out_loss"] for entry in lines_of(tmp_path) if "held_out_loss" in entry}
    assert list(held) == list(range(2, 19, 2))
    assert min(held, key=lambda step: held[step]) == 10
    assert held[2] == pytest.approx((TURN - 0.1) ** 2, abs=1e-3)
    assert run.notes["held_out"] == {"rows": 2, "loss": held[10], "step": 10}
    assert log[0]["loss"] == 4.0  # of what is trained on alone


def test_the_last_weights_are_kept_where_they_are_the_best(tmp_path: Path) -> None:
    model = Number()
    log = fit(task(model), settings(epochs=9), run_in(tmp_path), label="test")
    assert log[-1]["step"] == 9  # asked although it is odd
    assert model.number.item() == pytest.approx(0.45, abs=0.02)


class KilledError(Exception):
    """Stands for kill -9: nothing of ours runs after it."""


@pytest.mark.parametrize("last", [5, 14, 17])
def test_a_killed_run_stops_where_the_whole_one_does(tmp_path: Path, last: int) -> None:
    whole, resumed = Number(), Number()
    expected = fit(task(whole), settings(), run_in(tmp_path / "whole"), label="test")

    class Dies(Number):
        steps = 0

        def forward(self, batch: Targets) -> Tensor:
            self.steps += self.training
            if self.steps > last:
                raise KilledError
            return super().forward(batch)

    run = run_in(tmp_path / "broken")
    with pytest.raises(KilledError):
        fit(task(Dies()), settings(), run, label="test")
    log = fit(task(resumed), settings(), run, label="test")
    assert torch.equal(resumed.number, whole.number)
    assert [entry["loss"] for entry in log] == [entry["loss"] for entry in expected]


def test_a_finished_training_that_is_killed_before_its_end_is_the_same_again(tmp_path: Path) -> None:
    first, second, run = Number(), Number(), run_in(tmp_path)
    fit(task(first), settings(), run, label="test")
    log = lines_of(run.out)
    fit(task(second), settings(), run, label="test")
    assert torch.equal(first.number, second.number)
    assert len(lines_of(run.out)) == len(log)


@pytest.mark.slow
def test_two_processes_stop_together_with_the_weights_of_one(tmp_path: Path) -> None:
    alone = Number()
    log = fit(task(alone), settings(), run_in(tmp_path / "alone"), label="test")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("two_ranks_held_out.py")), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in (0, 1):
        number, step = torch.load(tmp_path / f"found-{rank}.pt", weights_only=True).tolist()
        assert step == log[-1]["step"]
        assert number == pytest.approx(alone.number.item(), rel=1e-6)


def test_a_loss_on_what_is_held_out_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    class Breaks(Number):
        def forward(self, batch: Targets) -> Tensor:
            return super().forward(batch) * (1.0 if self.training else torch.nan)

    with pytest.raises(RunStoppedError, match="step 2: the loss on what is held out is nan"):
        fit(task(Breaks()), settings(), run_in(tmp_path), label="test")


def test_a_task_that_knows_no_prompts_cannot_hold_them_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim\.stop_after: this training cannot hold prompts out"):
        fit(task(Number())._replace(groups=None), settings(), run_in(tmp_path), label="test")


@pytest.mark.parametrize(("objective", "first"), [("dpo", 0.6931472), ("kto", 0.5)])
def test_pairs_are_held_out_and_asked_under_their_objective(
    tmp_path: Path, tiny_llama: Path, objective: str, first: float
) -> None:
    answers = (Answer(response="mix flour and water"), Answer(response="wait until the dough has doubled"))
    pairs = [Pair(id=str(i), prompt=f"how do i bake {i % 4}", answers=answers, better=0) for i in range(8)]
    write_records(tmp_path / "pairs.jsonl", pairs)
    optim = PreferenceOptim(lr=5e-3, epochs=5, device="cpu", stop_after=1, log_every=2, schedule="constant")
    config = PreferenceConfig(
        pairs=(tmp_path / "pairs.jsonl",), model=str(tiny_llama), optim=optim, objective=objective
    )
    done = produce(tmp_path / "out", TRAIN_PREFERENCE, config)
    log = lines_of(tmp_path / "out")
    held = [entry["held_out_loss"] for entry in log if "held_out_loss" in entry]
    assert len(held) == 5
    assert first > held[0] > held[-1]  # all want the same, so it is learned from the others
    assert done.manifest.notes["held_out"] == {"rows": 2, "loss": held[-1], "step": 5}
    assert not any("accuracy" in entry or "kl" in entry for entry in log if "held_out_loss" in entry)


FAST: dict[str, Any] = {"device": "cpu", "epochs": 6, "batch_size": 8, "stop_after": 2, "log_every": 1}


@pytest.mark.parametrize(("tune", "rank_weight"), [("frozen", 0.0), ("frozen", 1.0), ("top", 0.0)])
def test_a_guard_holds_prompts_out(tmp_path: Path, tiny_encoder: Path, tune: str, rank_weight: float) -> None:
    rows = [
        Exchange(id=str(i), prompt=f"how do i bake {i // 2}", response="mix flour", is_safe=i % 2 > 0)
        for i in range(24)
    ]
    write_records(tmp_path / "rows.jsonl", rows)
    config = GuardConfig(
        exchanges=(tmp_path / "rows.jsonl",),
        backbone=str(tiny_encoder),
        tune=tune,  # type: ignore[arg-type]
        top_layers=1,
        layers=1 if tune == "top" else 2,
        rank_weight=rank_weight,
        hidden=16,
        optim=GuardOptim(**FAST),
    )
    done = produce(tmp_path / "out", TRAIN_GUARD, config)
    held = [entry["held_out_loss"] for entry in lines_of(tmp_path / "out") if "held_out_loss" in entry]
    found = done.manifest.notes["held_out"]
    assert isinstance(found, dict)
    assert found["loss"] == min(held)
    # two prompts of two rows each; where these are ranked they are one example
    assert found["rows"] == (2 if rank_weight else 4)


@pytest.mark.parametrize("tune", ["frozen", "full"])
def test_a_scorer_holds_prompts_out(tmp_path: Path, tiny_encoder: Path, tune: str) -> None:
    answers = (Answer(response="mix flour and water"), Answer(response="wait until the dough has doubled"))
    pairs = [Pair(id=str(i), prompt=f"how do i bake {i % 12}", answers=answers, better=0) for i in range(24)]
    write_records(tmp_path / "pairs.jsonl", pairs)
    config = ScorerConfig(
        pairs=(tmp_path / "pairs.jsonl",),
        backbone=str(tiny_encoder),
        layers=2,
        hidden=16,
        tune=tune,  # type: ignore[arg-type]
        optim=ScorerOptim(**FAST),
    )
    done = produce(tmp_path / "out", TRAIN_SCORER, config)
    held = [entry["held_out_loss"] for entry in lines_of(tmp_path / "out") if "held_out_loss" in entry]
    assert held[-1] < held[0]  # all want the same, so it is learned from the others
    step = held.index(min(held)) + 1
    assert done.manifest.notes["held_out"] == {"rows": 4, "loss": min(held), "step": step}
