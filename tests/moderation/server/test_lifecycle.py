"""The command itself, as a process of its own: it starts, loads anew on SIGHUP and ends well on SIGTERM."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from equipoise.models.checkpoints import load_tensors, save_tensors


@contextmanager
def command(*words: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Run `equipoise serve` on a free port."""
    line = [sys.executable, "-m", "equipoise", "serve", "--port", "0", *words]
    with subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


STREAM = (
    b"POST /v1/guard/stream HTTP/1.1\r\nHost: x\r\nX-API-Key: k\r\n"
    b"Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(row: dict[str, str]) -> bytes:
    raw = json.dumps(row).encode() + b"\n"
    return f"{len(raw):x}\r\n".encode() + raw + b"\r\n"


def test_a_process_reloads_and_finishes_what_it_accepted(random_guard: Path, tmp_path: Path) -> None:
    folder = tmp_path / "guard"
    shutil.copytree(random_guard, folder)
    patient = ["--set", "batching.timeout_seconds=120", "--set", "drain_seconds=120"]
    with command("--guard", str(folder), "--json", *patient, EQUIPOISE_API_KEYS="k") as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        with httpx2.Client(base_url=url, headers={"x-api-key": "k"}, trust_env=False, timeout=30) as client:
            before = client.get("/ready").json()["version"]
            weights = load_tensors(folder / "weights.safetensors")
            save_tensors(folder / "weights.safetensors", {name: -t for name, t in weights.items()})
            process.send_signal(signal.SIGHUP)
            while client.get("/ready").json()["version"] == before:
                time.sleep(0.02)

            body = json.dumps({"input": ["How do I bake bread without an oven? " * 30] * 60}).encode()
            head = f"POST /v1/moderations HTTP/1.1\r\nHost: x\r\nX-API-Key: k\r\nContent-Length: {len(body)}"
            host, port = url.removeprefix("http://").rstrip("/").split(":")
            address = (host, int(port))
            with ExitStack() as stack:
                lines = [
                    stack.enter_context(socket.create_connection(address, timeout=200)) for _ in range(6)
                ]
                for line in lines:
                    line.sendall(f"{head}\r\n\r\n".encode() + body)
                streaming = stack.enter_context(socket.create_connection(address, timeout=200))
                streaming.sendall(STREAM + chunk({"prompt": "Tell me."}))
                for _ in range(2):  # what was sent before these was read before these
                    client.get("/metrics")
                process.send_signal(signal.SIGTERM)
                with suppress(OSError):
                    while True:  # until it takes no more
                        socket.create_connection(address, timeout=5).close()
                        time.sleep(0.02)
                streaming.sendall(chunk({"delta": "Mix flour and water."}) + b"0\r\n\r\n")
                answers = [b"".join(iter(lambda line=line: line.recv(1 << 16), b"")) for line in lines]
                streamed = b"".join(iter(lambda: streaming.recv(1 << 16), b""))
        assert b"event: done" in streamed or b"event: stopped" in streamed
        for answer in answers:
            headers, _, found = answer.partition(b"\r\n\r\n")
            assert headers.startswith(b"HTTP/1.1 200 ")
            assert len(json.loads(found)["results"]) == 60
        _, err = process.communicate(timeout=30)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(address, timeout=5)
    assert process.returncode == 0, err
    log = [json.loads(line) for line in err.splitlines()]
    assert [line["version"] == before for line in log if line["event"] == "guard loaded"] == [True, False]
    assert "bread" not in err


STUCK = """
import sys, time
from pathlib import Path
from equipoise.moderation.server.engine import load_engine
from equipoise.moderation.server.logs import configure
from equipoise.moderation.server.run import bind, run, url_of
from equipoise.moderation.server.service import Service
from equipoise.moderation.server.settings import ServeConfig

settings = ServeConfig(guard=Path(sys.argv[1]), device="cpu", drain_seconds=1)

def load(observe):
    engine = load_engine(settings, observe=observe)
    engine.guard.model = lambda batch: time.sleep(600)
    engine.guard.model.batch_tokens = 8192
    engine.guard.model.tokenizer = load_engine(settings).guard.model.tokenizer
    return engine

service = Service(settings, load)
service.start()
with bind("127.0.0.1", 0) as listening:
    print(url_of(listening), flush=True)
    configure()
    run(service, listening)
"""


@pytest.mark.slow
@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=["once", "twice"])
def test_a_guard_that_does_not_come_back_does_not_keep_the_process(
    random_guard: Path, signals: list[signal.Signals]
) -> None:
    line = [sys.executable, "-c", STUCK, str(random_guard)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            host, port = process.stdout.readline().strip().removeprefix("http://").rstrip("/").split(":")
            with socket.create_connection((host, int(port)), timeout=30) as asking:
                body = b'{"prompt": "take a coat"}'
                asking.sendall(b"POST /v1/guard HTTP/1.1\r\nHost: x\r\nContent-Length: 25\r\n\r\n" + body)
                with socket.create_connection((host, int(port)), timeout=30) as probe:
                    probe.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert probe.recv(100).startswith(b"HTTP/1.1 200 ")
                for number in signals:
                    process.send_signal(number)
                    time.sleep(0.3)
                _, err = process.communicate(timeout=60)
                assert process.returncode == 3
                assert "Traceback" not in err
                assert "stopped in the middle of work" in err
        finally:
            process.kill()
