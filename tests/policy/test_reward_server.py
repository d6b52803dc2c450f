"""A reward server that dies in the middle of a run, through the command: the run waits, stops and goes on."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from equipoise.cli.main import main
from equipoise.data.io import write_records
from equipoise.lineage import read_manifest
from equipoise.records import Prompt

UPDATES, REQUESTS, TRIES, WAIT = 4, 2, 3, 0.1
"""Of a run; requests are for one update, each for half of its responses; the first wait is in seconds."""


class Desk:
    """A server of scores on one port, which can be gone and come back; tests change what it does."""

    def __init__(self, serve: Callable[..., Any]) -> None:
        """Begin to serve."""
        self.asked: list[int] = []
        """Statuses of what was answered, in order."""
        self.times: list[float] = []
        """When that was, in seconds."""
        self.silent: range = range(0)
        """Requests, counted from 0, that get a 503."""
        self.dies_at: int | None = None
        """The request that is not answered, after which nobody listens."""
        self.port = 0
        self._lock, self._serve = threading.Lock(), serve
        self.listen()

    def listen(self) -> None:
        """Take requests, at the same address as before."""
        self._server = self._serve(self._reply, self.port)
        self.port = self._server.server_port

    def _reply(self, asked: Any) -> tuple[int, Any] | None:
        status = self.next_status()
        if status != 200:
            return None if status is None else (status, {"error": "no model here"})
        lengths = [len(row["response"]) / 50 for row in asked.body["exchanges"]]
        return 200, {"rewards": lengths, "costs": {"cost": [length - 0.5 for length in lengths]}}

    def next_status(self) -> int | None:
        """Return the status of the next request's answer; None, and close, where it is to be the last."""
        with self._lock:
            number = len(self.asked)
            if number == self.dies_at:
                self.dies_at = None
                self.close()
            elif self._server.fileno() != -1:
                self.asked.append(503 if number in self.silent else 200)
                self.times.append(time.monotonic())
                return self.asked[-1]
            return None

    def close(self) -> None:
        """Let nobody in any more."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def desk(serve_json: Callable[..., Any]) -> Iterator[Desk]:
    state = Desk(serve_json)
    yield state
    state.close()


def here(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run the command in this process, and return its exit code and what it said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["equipoise", *words])
        with pytest.raises(SystemExit) as left:
            main()
    assert isinstance(left.value.code, int)
    return left.value.code, capsys.readouterr().err


def apart(words: list[str], _: object) -> tuple[int, str]:
    """Run the command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "equipoise", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    return done.returncode, done.stderr


@pytest.fixture
def words(desk: Desk, tiny_llama: Path, tmp_path: Path) -> Callable[[str, Path], list[str]]:
    """Return what makes the words of a training of a kind into a folder."""
    path = tmp_path / "prompts.jsonl"
    write_records(path, [Prompt(id=str(i), prompt=f"what of {i}") for i in range(9)])
    settings = [f"roles.policy={tiny_llama}", "roles.device=cpu", "roles.rank=4", f"updates={UPDATES}"]
    settings += ["rollout={prompts: 4, samples: 2, max_new_tokens: 8}", "optim={lr: 0.01, minibatches: 2}"]
    settings += ["constraints=[{name: cost, budget: -0.2}]", "scoring.reward=server"]
    settings += ["scoring.costs={cost: {source: server}}", "scoring.server.concurrency=1"]
    settings += [f"scoring.server.url=http://127.0.0.1:{desk.port}/score", "scoring.server.batch_size=4"]
    settings += [f"scoring.server.tries={TRIES}", f"scoring.server.first_wait_seconds={WAIT}"]
    sets = [word for setting in settings for word in ("--set", setting)]
    return lambda kind, out: ["train", kind, "--data", str(path), "--out", str(out), *sets]


def lines_of(folder: Path, name: str = "log") -> list[dict[str, Any]]:
    """The lines of a file of a run, without their clocks."""
    lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def expect_the_same_run(broken: Path, whole: Path, attempts: int) -> None:
    assert [line["update"] for line in lines_of(whole)] == list(range(1, UPDATES + 1))
    assert len({line["reward"] for line in lines_of(whole)}) > 1
    for name in ("log", "samples"):
        assert lines_of(broken, name) == lines_of(whole, name)
    two, one = (read_manifest(folder / "manifest.json") for folder in (broken, whole))
    assert (two.attempts, one.attempts) == (attempts, 1)
    assert two.key == one.key
    assert two.outputs["adapter_model.safetensors"] == one.outputs["adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("command", "kind", "dies_at"),
    [
        (here, "group-lag", 2 * REQUESTS + 1),  # in the midst of the third update's scores
        (here, "ppo-lag", 2 * REQUESTS),
        (here, "group-lag", 1),  # nothing is done yet
        pytest.param(apart, "group-lag", 2 * REQUESTS + 1, marks=pytest.mark.slow),
        pytest.param(apart, "ppo-lag", 3 * REQUESTS + 1, marks=pytest.mark.slow),
    ],
)
def test_a_reward_server_that_dies_stops_the_run_which_goes_on_when_it_is_back(
    *,
    command: Callable[..., tuple[int, str]],
    kind: str,
    dies_at: int,
    words: Callable[[str, Path], list[str]],
    desk: Desk,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert command(words(kind, whole), capsys)[0] == 0
    desk.asked.clear()
    desk.dies_at = dies_at
    code, said = command(words(kind, broken), capsys)
    assert code == 3, said
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"stopped: http://127.0.0.1:{desk.port}/score: gave no scores: ")
    assert last.endswith(f"({TRIES} tries); the same command resumes")
    assert "Traceback" not in said
    done = dies_at // REQUESTS
    kept = [folder.name for folder in broken.glob("scratch/checkpoints/*")]
    assert kept == ([f"checkpoint-{done}"] if done else [])  # though none was due
    assert not (broken / "manifest.json").exists()
    assert command(words(kind, broken), capsys)[0] == 3  # it is still away, and nothing is lost by asking
    assert [folder.name for folder in broken.glob("scratch/checkpoints/*")] == kept
    desk.asked.clear()
    desk.listen()
    code, said = command(words(kind, broken), capsys)
    assert code == 0, said
    assert desk.asked == [200] * ((UPDATES - done) * REQUESTS)  # what was learned before is not scored again
    expect_the_same_run(broken, whole, attempts=3 if done else 1)


def test_a_reward_server_that_is_away_for_less_than_all_tries_stops_nothing(
    words: Callable[[str, Path], list[str]],
    desk: Desk,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert here(words("group-lag", whole), capsys)[0] == 0
    desk.asked.clear()
    desk.times.clear()
    desk.silent = range(3, 3 + TRIES - 1)
    assert here(words("group-lag", broken), capsys)[0] == 0
    assert desk.asked == [200] * 3 + [503] * (TRIES - 1) + [200] * (UPDATES * REQUESTS - 3)
    waits = [desk.times[i + 1] - desk.times[i] for i in desk.silent]
    least = [WAIT * 2**i / 2 for i in range(len(waits))]  # doubled each time; up to half is drawn
    assert all(wait >= half for wait, half in zip(waits, least, strict=True))
    expect_the_same_run(broken, whole, attempts=1)
