"""`equipoise generate --endpoint`: no row lost, none duplicated, nothing asked twice, whatever goes wrong."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from equipoise.cli.main import main
from equipoise.config import load_config
from equipoise.errors import ConfigError, RunStoppedError
from equipoise.generation.batch import GENERATE, GenerateConfig
from equipoise.lineage import produce

QUICK = ["endpoint.first_wait_seconds=0.01", "endpoint.tries=3", "endpoint.timeout_seconds=10"]
WARM = ["sampling.temperature=1", "sampling.samples=2"]


def write(path: Path, count: int) -> Path:
    rows = ({"id": f"p{i}", "prompt": f"prompt {i}", "mine": i} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def settings(server: Any, prompts: Path, *overrides: str) -> GenerateConfig:
    given = ["models=[tiny]", f"prompts={prompts}", f"endpoint.url={server.url}", *QUICK, *overrides]
    return load_config(GenerateConfig, overrides=given)


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def command(server: Any, prompts: Path, out: Path, *more: str) -> list[str]:
    args = [sys.executable, "-m", "equipoise", "generate", "--endpoint", server.url, "--model", "tiny"]
    args += ["--prompts", str(prompts), "--out", str(out), *more]
    return args + [arg for item in QUICK for arg in ("--set", item)]


def test_every_row_is_there_once_under_every_fault(server: Any, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", 60)
    kinds = ["slow", "hangup", "html", "empty", "contentless", "short", "cutstream"]
    kinds += ["408 late", "409 busy", "429 slow down", "500 oops", "502 gateway"]
    server.faults = {f"prompt {i}": [kind] * (i % 3) for i, kind in enumerate(kinds * 5)}
    lost = {"prompt 7": "html", "prompt 31": "400 too long", "prompt 59": "500 oops"}
    server.forever = lost
    limits = ["endpoint.concurrency=8", "endpoint.timeout_seconds=0.5"]
    config = settings(server, prompts, *WARM, "greedy_first=true", *limits)
    outcome = produce(tmp_path / "out.jsonl", GENERATE, config)

    rows = read(tmp_path / "out.jsonl")
    assert [(r["id"], r["sample"]) for r in rows] == [(f"p{i}", k) for i in range(60) for k in range(3)]
    for row in rows:
        name = f"prompt {row['id'][1:]}"
        if name in lost:
            assert row.keys() == {"id", "sample", "model", "error"}
        else:
            assert (row["prompt"], row["mine"], row["model"]) == (name, int(row["id"][1:]), "tiny")
            assert row["response"].startswith(f"{name} ")
            assert row["response"].endswith(" greedy") == (row["sample"] == 0)
    assert len({r["response"] for r in rows if "response" in r}) == 3 * 57
    usage = {"answers": 171, "prompt_tokens": 171 * 7, "completion_tokens": 171 * 3, "uncounted": 0}
    assert outcome.manifest.notes == {
        "rows": 60,
        "errors": 0,
        "missing": 9,
        "usage": {"tiny": {**usage, "cost": None}},
    }


def test_killed_half_way_a_rerun_asks_for_nothing_twice(server: Any, tmp_path: Path) -> None:
    server.delay = 0.02
    serial = itertools.count()  # no text comes twice, so a text of before was not asked for again

    def answer(body: Any) -> Any:
        return {"choices": [{"message": {"content": f"{body['messages'][0]['content']} #{next(serial)}"}}]}

    server.answer = answer
    prompts, out = write(tmp_path / "prompts.jsonl", 60), tmp_path / "out.jsonl"
    more = ["-k", "2", "--set", "sampling.temperature=1", "--set", "endpoint.concurrency=4"]
    running = subprocess.Popen(command(server, prompts, out, *more), stderr=subprocess.DEVNULL)
    while len(server.asked) < 50:
        assert running.poll() is None
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not out.exists()
    journal = (tmp_path / "out.jsonl.part" / "journal.jsonl").read_bytes()
    time.sleep(0.1)  # the last requests arrive
    before = len(server.asked)

    done = subprocess.run(command(server, prompts, out, *more), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = server.count()
    assert len(counts) == 120
    kept = journal.count(b"\n")
    assert 40 <= kept < 120
    assert len(server.asked) - before == 120 - kept  # only what the kill had cost
    assert sum(n - 1 for n in counts.values()) == before - kept <= 4  # what was in flight

    rows = read(out)
    assert [(r["id"], r["sample"]) for r in rows] == [(f"p{i}", k) for i in range(60) for k in range(2)]
    texts = {row["response"] for row in rows}
    assert len(texts) == 120
    assert {json.loads(line)["value"]["text"] for line in journal.splitlines()[:kept]} <= texts
    assert not (tmp_path / "out.jsonl.part").exists()


def test_a_resumed_file_is_byte_for_byte_that_of_a_whole_run(server: Any, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", 40)
    produce(tmp_path / "whole.jsonl", GENERATE, settings(server, prompts, *WARM))
    server.asked.clear()
    original = server.take

    def take(body: Any, headers: dict[str, str]) -> str | None:
        fault = original(body, headers)
        return "503 gone" if len(server.asked) > 30 else fault

    server.take = take
    config = settings(server, prompts, *WARM, "endpoint.concurrency=1")
    with pytest.raises(RunStoppedError, match="the server is dead: status 503: gone"):
        produce(tmp_path / "out.jsonl", GENERATE, config)
    server.take = original
    answered = 30
    server.asked.clear()
    outcome = produce(tmp_path / "out.jsonl", GENERATE, config)
    assert len(server.asked) == 80 - answered
    assert outcome.manifest.attempts == 2
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert outcome.manifest.notes["usage"]["tiny"]["answers"] == 80  # those of the first attempt too


def test_with_a_journal_of_the_users_a_forced_run_asks_for_the_missing_only(
    server: Any, tmp_path: Path
) -> None:
    prompts = write(tmp_path / "prompts.jsonl", 10)
    server.forever = {"prompt 4": "html"}
    config = settings(server, prompts, f"endpoint.journal={tmp_path / 'kept'}")
    assert produce(tmp_path / "out.jsonl", GENERATE, config).manifest.notes["missing"] == 1
    server.forever = {}
    server.asked.clear()
    assert produce(tmp_path / "out.jsonl", GENERATE, config, force=True).manifest.notes["missing"] == 0
    assert server.count() == Counter({"prompt 4/None": 1})


def test_several_models_of_a_server_with_their_prices(server: Any, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", 5)
    config = settings(
        server,
        prompts,
        "models=[small, large]",
        "endpoint.price={prompt: 1, completion: 2}",
        "endpoint.prices={large: {prompt: 10, completion: 20}}",
    )
    notes = produce(tmp_path / "out.jsonl", GENERATE, config).manifest.notes
    rows = read(tmp_path / "out.jsonl")
    assert [(r["id"], r["model"], r["sample"]) for r in rows[:2]] == [("p0", "small", 0), ("p0", "large", 1)]
    assert {b["model"] for b in server.asked} == {"small", "large"}
    costs = [notes["usage"][name]["cost"] for name in ("small", "large")]
    assert costs == pytest.approx([5 * (7 + 3 * 2) / 1e6, 5 * (70 + 3 * 20) / 1e6])


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command as a shell does: exit code, standard output, last line of standard error."""

    def once(words: list[str]) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", words[2:])
        with pytest.raises(SystemExit) as left:
            main()
        shown = capsys.readouterr()
        return int(left.value.code or 0), shown.out, (shown.err.splitlines() or [""])[-1]

    return once


def test_exit_codes_and_the_last_line(server: Any, tmp_path: Path, run: Any) -> None:
    prompts = write(tmp_path / "prompts.jsonl", 4)
    prices = ["--set", "endpoint.price.prompt=1e5", "--set", "endpoint.price.completion=2e5"]
    said = f"{tmp_path / 'a'}: written, 4 prompts answered, 0 bad lines; 28 prompt and 12 completion tokens"
    assert run(command(server, prompts, tmp_path / "a", *prices)) == (0, f"{said}, cost 5.2\n", "")

    server.forever = {"prompt 2": "html"}
    code, out, _ = run(command(server, prompts, tmp_path / "b", "--json"))
    assert (code, json.loads(out)["missing"]) == (1, 1)
    assert json.loads(out)["usage"]["tiny"]["prompt_tokens"] == 21

    server.forever = {"*": "500 gone"}
    dead = f"stopped: {server.url}: model 'tiny': the server is dead: status 500: gone (3 tries)"
    assert run(command(server, prompts, tmp_path / "c")) == (3, "", f"{dead}; the same command resumes")

    server.forever = {"*": "401 who"}
    code, _, last = run(command(server, prompts, tmp_path / "d"))
    assert code == 2
    assert last.endswith("status 401: who; expected the key to be right")
    assert not (tmp_path / "d.part").exists()  # with another model the same place can be used


def test_the_key_reaches_the_server_and_no_file_or_message(
    server: Any, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, key = write(tmp_path / "prompts.jsonl", 6), "sk-a-very-secret-key"
    monkeypatch.setenv("MY_KEY", key)
    server.forever = {"prompt 1": f"400 no such key {key}"}
    words = command(server, prompts, tmp_path / "out", "--set", "endpoint.api_key_env=MY_KEY", "--json")
    code, out, last = run(words)
    assert code == 1
    assert {h["Authorization"] for h in server.headers} == {f"Bearer {key}"}
    assert "MY_KEY" in (tmp_path / "out.manifest.json").read_text()
    written = [p.read_text("utf-8") for p in tmp_path.rglob("*") if p.is_file()]
    assert not [text for text in [*written, out, last] if key in text]
    assert not [i for i in range(6) if f"prompt {i}" in out + last]


def test_a_key_that_is_not_set_is_said_before_anything_is_asked(server: Any, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", 1)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        produce(tmp_path / "out", GENERATE, settings(server, prompts, "endpoint.api_key_env=NO_SUCH_KEY"))
    assert server.asked + server.greetings == []


def test_a_server_is_asked_without_loading_torch() -> None:
    code = "import equipoise.generation.batch, equipoise.generation.endpoint_options, sys\n"
    code += "print({'torch', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
