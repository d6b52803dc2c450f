"""A run that is interrupted or killed goes on, and ends as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.lineage import hash_file, read_manifest
from equipoise.pipeline.recipe import load_recipe
from equipoise.pipeline.run import run_recipe

Recipe = dict[str, Any]
Write = Callable[[Recipe], Path]


def command(path: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "equipoise", "run", str(path), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def test_an_interrupt_ends_with_3_in_one_line_and_the_same_command_goes_on(
    data: Recipe, write: Write, rows: Path, tmp_path: Path
) -> None:
    line = {"prompt": "a question", "response": "an answer", "is_safe": True}
    rows.write_text("".join(json.dumps({"id": f"r{n}"} | line) + "\n" for n in range(50_000)), "utf-8")
    path, out = write(data), tmp_path / "out"
    process = command(path, out)
    until = time.monotonic() + 60
    while not list(out.glob("steps/rows-*/*.part/started.json")) and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed) == (3, ""), said
    assert said == "stopped: interrupted; the same command resumes\n"
    assert not (out / "manifest.json").exists()
    rows.write_text("".join(json.dumps({"id": f"r{n}"} | line) + "\n" for n in range(5)), "utf-8")
    assert len(run_recipe(load_recipe(path), out)) == 4
    assert (out / "manifest.json").exists()


def stop_in_training(path: Path, out: Path, sign: int, after: int) -> subprocess.Popen[str]:
    """Start the run, wait for a checkpoint after step `after`, and send the signal."""
    process = command(path, out)
    until = time.monotonic() + 60
    while newest_checkpoint(out) <= after and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(sign)
    return process


def newest_checkpoint(out: Path) -> int:
    sealed = out.glob("steps/guard-*/scratch/checkpoints/checkpoint-*/complete.json")
    return max((int(path.parent.name.split("-")[1]) for path in sealed), default=0)


@pytest.mark.slow  # three processes that load torch
def test_a_run_killed_in_training_goes_on_and_ends_with_the_same_bytes(
    rows: Path, write: Write, tiny_encoder: Path, tmp_path: Path
) -> None:
    """Once interrupted as by Ctrl-C, once killed without warning, then left to end."""
    import torch

    optim = {"epochs": 60, "batch_size": 8, "checkpoint_every": 10, "device": "cpu", "lr": 0.001}
    guard = {"exchanges": ["${steps.rows}"], "backbone": str(tiny_encoder), "layers": 2, "hidden": 16}
    path = write(
        {
            "name": "slow",
            "steps": {
                "rows": {"run": "data.check", "with": {"files": [str(rows)]}},
                "guard": {"run": "train.guard", "with": {**guard, "tune": "full", "optim": optim}},
            },
            "publish": {"weights.safetensors": "${steps.guard}/weights.safetensors"},
        }
    )
    out = tmp_path / "out"
    first = stop_in_training(path, out, signal.SIGINT, after=0)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 3, said
    assert said.splitlines()[-1] == "stopped: interrupted; the same command resumes"
    assert "Traceback" not in said
    kept = newest_checkpoint(out)
    assert kept > 0

    second = stop_in_training(path, out, signal.SIGKILL, after=kept)
    second.communicate(timeout=60)
    assert second.returncode == -signal.SIGKILL
    assert newest_checkpoint(out) > kept  # it went on from there
    assert not list(out.glob("steps/guard-*/manifest.json"))
    assert not (out / "weights.safetensors").exists()

    third = command(path, out)
    _, said = third.communicate(timeout=120)
    assert third.returncode == 0, said
    assert "[1/2] rows: done before" in said

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, whole = run_recipe(load_recipe(path), tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    (place,) = out.glob("steps/guard-*")
    resumed = read_manifest(place / "manifest.json")
    assert (resumed.attempts, whole.manifest.attempts) == (3, 1)
    assert resumed.key == whole.manifest.key
    assert resumed.outputs == whole.manifest.outputs
    assert "weights.safetensors" in resumed.outputs
    assert hash_file(out / "weights.safetensors") == resumed.outputs["weights.safetensors"]
    assert not (place / "scratch").exists()
    runs = [read_manifest(tmp_path / name / "manifest.json") for name in ("out", "whole")]
    assert runs[0].key == runs[1].key
    assert runs[0].outputs == runs[1].outputs
