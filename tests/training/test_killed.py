"""kill -9 at step 7 of 20, and the same command again: the log of the steps is that of a run in one piece."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from equipoise.data.io import write_records
from equipoise.lineage import read_manifest
from equipoise.records import Answer, Exchange, Pair

WORDS = ("flour", "water", "salt", "yeast", "dough", "oven", "bread", "mountain", "coat", "tide")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folder of ten pairs and ten exchanges, all different."""
    pairs = [
        Pair(
            id=word,
            prompt=f"what of {word}",
            answers=(
                Answer(response=f"mix {word} and wait", is_safe=i % 3 > 0),
                Answer(response=f"no {word} " * (1 + i % 4), is_safe=i % 2 > 0),
            ),
            better=i % 2,  # type: ignore[arg-type]
        )
        for i, word in enumerate(WORDS)
    ]
    rows = [
        Exchange(
            id=f"{i}", prompt=f"what of {word}", response=f"take {word} " * (1 + i % 5), is_safe=i % 2 > 0
        )
        for i, word in enumerate(WORDS)
    ]
    write_records(tmp_path / "pairs.jsonl", pairs)
    write_records(tmp_path / "rows.jsonl", rows)
    return tmp_path


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("log_every", [1, 5])
@pytest.mark.parametrize("kind", ["preference", "scorer", "guard"])
def test_a_run_killed_at_step_7_of_20_logs_the_same_steps(
    kind: str, log_every: int, data: Path, tiny_llama: Path, tiny_encoder: Path
) -> None:
    policy = kind == "preference"
    settings = [f"{'model' if policy else 'backbone'}={tiny_llama if policy else tiny_encoder}"]
    settings += ["objective=dpo", "lora.dropout=0.2"] if policy else ["layers=2", "hidden=16", "tune=full"]
    settings += ["optim.device=cpu", "optim.batch_size=2", "optim.epochs=4", "optim.lr=1e-3"]
    settings += [f"optim.log_every={log_every}", "optim.checkpoint_every=3"]
    files = data / ("rows.jsonl" if kind == "guard" else "pairs.jsonl")
    words = ["train", kind, "--data", str(files), *(word for s in settings for word in ("--set", s))]
    whole, broken = ([*words, "--out", str(data / name)] for name in ("whole", "broken"))

    done = run("-m", "equipoise", *whole)
    assert done.returncode == 0, done.stderr[-2000:]
    killed = run(str(Path(__file__).with_name("killed_at.py")), "7", *broken)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    kept = {f.name for f in data.glob("broken/scratch/checkpoints/*")}
    assert kept == ({"checkpoint-3", "checkpoint-6"} if log_every == 1 else {"checkpoint-5"})
    done = run("-m", "equipoise", *broken)
    assert done.returncode == 0, done.stderr[-2000:]

    log = (data / "whole" / "log.jsonl").read_text("utf-8")
    steps = [json.loads(line)["step"] for line in log.splitlines()]
    assert steps == list(range(log_every, 21, log_every))
    assert (data / "broken" / "log.jsonl").read_text("utf-8") == log
    one, two = (read_manifest(data / name / "manifest.json") for name in ("whole", "broken"))
    assert two.attempts == 2
    weights = {name for name in one.outputs if name.endswith(".safetensors")}
    assert weights
    assert {name: two.outputs[name] for name in weights} == {name: one.outputs[name] for name in weights}
