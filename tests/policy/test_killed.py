"""Online training that is killed at one of many points, and the same again: all ends as in one piece.

A kill is an error here that nobody catches, and leaves what a real one leaves, but for temporary folders.
Real ones are in `test_commands.py`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from equipoise.lineage import Step, produce, read_manifest
from equipoise.models.roles import Roles
from equipoise.policy import state
from equipoise.policy.scoring import Scoring
from equipoise.policy.settings import OnlineConfig, PpoLagConfig
from equipoise.policy.train import train_group_lag, train_ppo_lag


class Killed(BaseException):
    """Nobody catches it."""


def dying(
    function: Callable[..., Any], call: int, half: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Return the function as it is until one of its calls, counted from 1, which does half of it and dies."""
    begun = 0

    def until(*args: Any) -> Any:
        nonlocal begun
        begun += 1
        if begun < call:
            return function(*args)
        if half is not None:
            half(*args)
        raise Killed

    return until


def train(config: OnlineConfig, out: Path, scoring: Scoring) -> None:
    """Run a training as a command does, with a scoring of our own."""
    build: Any = train_ppo_lag if isinstance(config, PpoLagConfig) else train_group_lag
    step = Step("train.test", 1, lambda c, run: build(c, run, lambda *_: scoring), config=type(config))
    produce(out, step, config)


def lines_of(out: Path, name: str) -> list[str]:
    """The lines of a file without their clocks, as text: every bit counts."""
    lines = [json.loads(line) for line in (out / f"{name}.jsonl").read_text("utf-8").splitlines()]
    return [json.dumps({key: value for key, value in line.items() if key != "seconds"}) for line in lines]


def expect_the_same_run(broken: Path, whole: Path, attempts: int = 2) -> None:
    for name in ("log", "samples"):
        assert lines_of(broken, name) == lines_of(whole, name)
    two, one = (read_manifest(folder / "manifest.json") for folder in (broken, whole))
    assert (two.attempts, one.attempts) == (attempts, 1)
    assert two.outputs.keys() == one.outputs.keys()
    assert two.outputs["adapter_model.safetensors"] == one.outputs["adapter_model.safetensors"]
    assert not (broken / "scratch").exists()


@pytest.mark.parametrize(("kind", "steps"), [("ppo", range(0, 16, 3)), ("group", range(1, 16, 4))])
def test_a_kill_at_any_step_of_an_update(
    kind: str, steps: range, make_config: Any, arbitrary: Scoring, tmp_path: Path
) -> None:
    """Four updates of two epochs of two minibatches, and a checkpoint after two updates."""
    config, whole = make_config(kind, checkpoint_every=2, optim={"epochs": 2}), tmp_path / "whole"
    train(config, whole, arbitrary)
    for taken in steps:
        broken = tmp_path / f"after-{taken}"
        hook = register_optimizer_step_pre_hook(dying(lambda *_: None, taken + 1))
        with pytest.raises(Killed):
            train(config, broken, arbitrary)
        hook.remove()
        kept = [folder.name for folder in broken.glob("scratch/checkpoints/*")]
        assert kept == (["checkpoint-2"] if taken >= 8 else [])
        assert taken < 4 or len(lines_of(broken, "log")) == taken // 4
        train(config, broken, arbitrary)
        expect_the_same_run(broken, whole)


def half_a_file(_: object, path: Path) -> None:
    path.write_bytes(b"PK")


def half_a_line(journal: state.Journal, *_: object) -> None:
    with journal.path.open("a", encoding="utf-8") as file:
        file.write('{"update": ')


@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize(
    ("place", "name", "half"),
    [
        (Roles, "save", None),
        (torch, "save", half_a_file),
        (torch, "save", torch.save),
        (state, "write_text", None),
        (state, "seal", None),
        (state, "seal", state.seal),  # it is whole, and the oldest is still there
        (state.Journal, "write", half_a_line),
        (state.Journal, "size", None),
    ],
)
def test_a_kill_while_something_is_written(
    *,
    place: Any,
    name: str,
    half: Callable[..., Any] | None,
    call: int,
    make_config: Any,
    arbitrary: Scoring,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, whole, broken = make_config("ppo", checkpoint_every=1), tmp_path / "whole", tmp_path / "broken"
    train(config, whole, arbitrary)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, dying(getattr(place, name), call, half))
        with pytest.raises(Killed):
            train(config, broken, arbitrary)
    train(config, broken, arbitrary)
    expect_the_same_run(broken, whole)


def test_a_kill_while_an_old_checkpoint_is_removed(
    make_config: Any, arbitrary: Scoring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(folder: Path) -> None:
        assert folder.name == "checkpoint-1"
        (folder / "optimizer.pt").unlink()

    config, whole, broken = make_config("group", checkpoint_every=1), tmp_path / "whole", tmp_path / "broken"
    train(config, whole, arbitrary)
    with monkeypatch.context() as patch:
        patch.setattr(state, "shutil", SimpleNamespace(rmtree=dying(half, 1, half)))
        with pytest.raises(Killed):
            train(config, broken, arbitrary)
    assert len(lines_of(broken, "log")) == 3
    train(config, broken, arbitrary)
    expect_the_same_run(broken, whole)


@pytest.mark.parametrize(
    ("place", "name", "call"), [(state.Journal, "cut", 2), (Roles, "restore", 1), (state, "last_sealed", 1)]
)
def test_a_second_kill_while_the_run_takes_up_the_first(
    *,
    place: Any,
    name: str,
    call: int,
    make_config: Any,
    arbitrary: Scoring,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, whole, broken = make_config("ppo", checkpoint_every=2), tmp_path / "whole", tmp_path / "broken"
    train(config, whole, arbitrary)
    hook = register_optimizer_step_pre_hook(dying(lambda *_: None, 8))  # in the fourth update
    with pytest.raises(Killed):
        train(config, broken, arbitrary)
    hook.remove()
    assert len(lines_of(broken, "log")) == 3
    with monkeypatch.context() as patch:
        patch.setattr(place, name, dying(getattr(place, name), call))
        with pytest.raises(Killed):
            train(config, broken, arbitrary)
    train(config, broken, arbitrary)
    expect_the_same_run(broken, whole, attempts=3)
