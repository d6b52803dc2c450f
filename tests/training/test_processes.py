"""Several processes under `accelerate launch`, as a user starts them: the losses and weights of one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.data.io import read_records, write_records
from equipoise.lineage import read_manifest
from equipoise.models.checkpoints import load_tensors
from equipoise.records import Answer, Pair

WAYS = {"ddp": "--multi_gpu", "fsdp": "--use_fsdp"}
ANSWERS = ("mix flour and water", "wait until the dough has doubled", "no", "take a warm coat")


@pytest.fixture
def words(tmp_path: Path, tiny_llama: Path) -> list[str]:
    """Return the words of a DPO training of 6 steps, some of several micro-batches, without `--out`."""
    pairs = [
        Pair(
            id=str(i),
            prompt=f"how do i bake {'bread and ' * (i % 3)} {i}",
            answers=(Answer(response=ANSWERS[i % 4]), Answer(response=ANSWERS[(i + 1 + i % 2) % 4])),
            better=i % 2,  # type: ignore[arg-type]
        )
        for i in range(15)
    ]
    write_records(tmp_path / "pairs.jsonl", pairs)
    settings = ["objective=dpo", f"model={tiny_llama}", "optim.device=cpu", "optim.lr=1e-3"]
    settings += ["optim.batch_size=5", "optim.epochs=2", "optim.tokens_per_micro_batch=100"]
    settings += ["optim.checkpoint_every=2"]
    return [
        "train",
        "preference",
        "--data",
        str(tmp_path / "pairs.jsonl"),
        *(w for s in settings for w in ("--set", s)),
    ]


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE", "FSDP"))}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=3000
    )


def launch(way: str, *command: str) -> "subprocess.CompletedProcess[str]":
    options = [WAYS[way], "--num_processes=2", "--main_process_port=0"]
    return run("-m", "accelerate.commands.launch", *options, *command)


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def same_curve(found: Path, expected: Path) -> None:
    logs = log_of(found), log_of(expected)
    assert len(logs[0]) == len(logs[1]) > 0
    for one, other in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)


def same_weights(found: Path, expected: Path) -> None:
    tensors = load_tensors(found), load_tensors(expected)
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[1].items():
        torch.testing.assert_close(tensors[0][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["full", "top"])
@pytest.mark.parametrize("way", WAYS)
def test_two_launched_processes_train_as_one_killed_in_between(
    way: str, tune: str, words: list[str], tmp_path: Path
) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    words += ["--set", f"tune={tune}", "--set", "top_layers=1"]
    done = run("-m", "equipoise", *words, "--out", str(alone))
    assert done.returncode == 0, done.stderr
    words += ["--out", str(both), "--json"]
    done = launch(way, str(Path(__file__).with_name("killed_at.py")), "3", *words)
    assert done.returncode != 0
    assert [f.name for f in both.glob("scratch/checkpoints/*")] == ["checkpoint-2"]
    assert not (both / "manifest.json").exists()
    done = launch(way, "-m", "equipoise", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["skipped"] is False  # one of them speaks
    same_curve(both, alone)
    same_weights(both / "model.safetensors", alone / "model.safetensors")
    one, two = (read_manifest(folder / "manifest.json") for folder in (alone, both))
    assert two.key == one.key
    assert two.attempts == 2
    assert two.config["optim"]["shard"] is (way == "fsdp")
    assert two.outputs.keys() == one.outputs.keys()
    assert {f.name for f in both.iterdir()} == {f.name for f in alone.iterdir()}


@pytest.mark.slow
def test_a_mistake_under_a_launch_is_said_and_nothing_hangs(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine", "utf-8")
    done = launch("ddp", "-m", "equipoise", *words, "--out", str(tmp_path / "out"))
    assert done.returncode != 0
    assert done.stderr.count("exists and is no run of equipoise") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "what", "tune"),
    [
        ("ddp", "scorer", "full"),
        ("fsdp", "scorer", "full"),
        ("ddp", "guard", "full"),
        ("ddp", "guard", "lora"),
    ],
)
def test_an_encoder_that_learns_as_a_whole_has_weights_that_nothing_reads(
    *, way: str, what: str, tune: str, words: list[str], tiny_encoder: Path, tmp_path: Path
) -> None:
    data = Path(words[words.index("--data") + 1])
    if what == "guard":
        exchanges = [
            pair.exchange(k).model_copy(update={"is_safe": k == 0})
            for pair in read_records(data, Pair)
            for k in (0, 1)
        ]
        write_records(data, exchanges)
    given = ["train", what, "--data", str(data), "--set", f"backbone={tiny_encoder}", "--set", f"tune={tune}"]
    settings = [
        "layers=2",
        "hidden=4",
        "dropout=0",
        "optim.device=cpu",
        "optim.batch_size=5",
        "optim.log_every=1",
    ]
    for setting in (*settings, "optim.epochs=2"):
        given += ["--set", setting]
    alone, both = tmp_path / "alone", tmp_path / "both"
    done = run("-m", "equipoise", *given, "--out", str(alone))
    assert done.returncode == 0, done.stderr
    done = launch(way, "-m", "equipoise", *given, "--out", str(both))
    assert done.returncode == 0, done.stderr[-3000:]
    same_curve(both, alone)
