"""Online training as a user starts it: the command, a kill, and several processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from equipoise.data.io import write_records
from equipoise.lineage import read_manifest
from equipoise.models.checkpoints import load_tensors
from equipoise.policy.settings import GroupLagConfig
from equipoise.policy.tracking import numbers
from equipoise.records import Prompt

HERE = Path(__file__).parent
KILLED_AT = HERE.parent / "training" / "killed_at.py"
KILLED_IN = HERE / "killed_in.py"
KILLS: dict[str, tuple[list[str], list[str]]] = {
    "the first update": ([str(KILLED_AT), "1"], []),
    "the second update": ([str(KILLED_AT), "3"], []),
    "the third update, at its first step": ([str(KILLED_AT), "4"], ["checkpoint-2"]),
    "the fourth update": ([str(KILLED_AT), "6"], ["checkpoint-2"]),
    "the state of the first checkpoint": ([str(KILLED_IN), "write_text", "1"], ["checkpoint-2"]),
    "the seal of the last checkpoint": ([str(KILLED_IN), "seal", "2"], ["checkpoint-2", "checkpoint-4"]),
}
"""Where a run is killed, by what, and the checkpoints that it then has, whole or not."""

CLOSE = {"policy_loss": 1e-4, "clip_fraction": 0.02, "kl": 1e-4}
"""How near two logs are whose gradients were added up in another order, beside one in a thousand: a sum of
terms that cancel, a share of tokens that one token changes, and a difference of nearly equal numbers."""

SOURCES = "{a: 'scores_of_texts:reward', b: 'scores_of_texts:brevity'}"
GROUPS = ["--set", "scoring.reward=scorer", "--set", f"scoring.maxmin={{groups: {SOURCES}, lr: 0.5}}"]


@pytest.fixture
def words(tiny_llama: Path, tmp_path: Path) -> list[str]:
    """Return the words of a training of 4 updates of 2 steps each, without `--out`."""
    path = tmp_path / "prompts.jsonl"
    write_records(path, [Prompt(id=f"{i}", prompt=f"what of {i}" + " and so on" * (i % 3)) for i in range(9)])
    settings = [
        f"roles.policy={tiny_llama}",
        "roles.device=cpu",
        "roles.rank=4",
        "updates=4",
        "checkpoint_every=2",
    ]
    settings += ["rollout={prompts: 5, samples: 3, max_new_tokens: 12}", "optim={lr: 0.01, minibatches: 2}"]
    settings += ["constraints=[{name: cost, budget: 0.1}]", "scoring.reward=scores_of_texts:reward"]
    settings += ["scoring.costs={cost: {source: 'scores_of_texts:cost'}}"]
    return ["--data", str(path), *(word for setting in settings for word in ("--set", setting))]


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE", "FSDP"))}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HERE)}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=3000
    )


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more", "kills"),
    [
        ("ppo-lag", [], list(KILLS)),
        ("group-lag", [], ["the fourth update"]),
        ("group-lag", GROUPS, ["the second update", "the fourth update"]),
    ],
)
def test_a_command_that_is_killed_goes_on_with_the_same_log(
    kind: str, more: list[str], kills: list[str], words: list[str], tmp_path: Path
) -> None:
    words = words + more
    whole = tmp_path / "whole"
    done = run("-m", "equipoise", "train", kind, *words, "--out", str(whole))
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(log_of(whole)) == 4
    for name in kills:
        broken, (kill, kept) = tmp_path / name, KILLS[name]
        killed = run(*kill, "train", kind, *words, "--out", str(broken))
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        assert sorted(f.name for f in broken.glob("scratch/checkpoints/*")) == kept, name
        done = run("-m", "equipoise", "train", kind, *words, "--out", str(broken))
        assert done.returncode == 0, done.stderr[-2000:]
        assert log_of(broken) == log_of(whole), name
        one, two = (read_manifest(folder / "manifest.json") for folder in (whole, broken))
        assert two.attempts == 2
        assert two.outputs["adapter_model.safetensors"] == one.outputs["adapter_model.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "more"), [("ppo-lag", []), ("group-lag", []), ("group-lag", GROUPS)])
def test_two_launched_processes_learn_as_one(
    kind: str, more: list[str], words: list[str], tmp_path: Path
) -> None:
    words = words + more
    alone, both = tmp_path / "alone", tmp_path / "both"
    done = run("-m", "equipoise", "train", kind, *words, "--out", str(alone))
    assert done.returncode == 0, done.stderr[-2000:]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    command = [*launch, "-m", "equipoise", "train", kind, *words, "--out", str(both), "--json"]
    done = run(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["skipped"] is False
    for found, expected in zip(log_of(both), log_of(alone), strict=True):
        for line in (found, expected):
            line.update(numbers({"groups": line.pop("groups", {})}))
        same = {"states", "warnings", "severity", "ptx_loss"}  # names, texts, and None
        assert {name: found[name] for name in same} == {name: expected[name] for name in same}
        assert max(found["drift"], expected["drift"]) < 1e-4  # rounding, which is not the same
        for name in expected.keys() - same - {"drift"}:
            close = CLOSE.get(name, 1e-5)
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=close), name
    tensors = [load_tensors(folder / "adapter_model.safetensors") for folder in (both, alone)]
    for name, tensor in tensors[1].items():
        apart = (tensors[0][name] - tensor).norm()  # of one weight Adam may turn a rounding into a step
        assert apart <= 1e-2 * tensor.norm(), name


def test_a_launch_that_would_split_weights_is_refused() -> None:
    from equipoise.errors import ConfigError
    from equipoise.pipeline.steps import step_of
    from equipoise.training.processes import produce_together

    step = step_of("train.group_lag")
    config = step.config.model_validate({"prompts": ["a"], "roles": {"policy": "tiny"}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(ConfigError, match=r"train\.group_lag: splits no weights, got FSDP"):
            produce_together(Path("out"), step, config)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"roles": {"critic": "adapter"}}, "roles: critic and critics_reach_trunk are of train ppo-lag"),
        ({"estimator": "rloo", "scale": "group"}, "scale: goes not with estimator rloo"),
        ({"slack": 0.1}, "slack: goes not with estimator grpo"),
        (
            {"estimator": "repo", "constraints": [{"name": "cost", "pessimism": 0.5}]},
            "constraints: pessimism goes not with estimator repo",
        ),
    ],
)
def test_what_a_group_has_no_use_for_is_refused(given: dict[str, Any], why: str) -> None:
    roles = {"policy": "smollm2-135m", **given.get("roles", {})}
    with pytest.raises(ValidationError, match=why):
        GroupLagConfig.model_validate({"prompts": ["p.jsonl"], **given, "roles": roles})
