"""Latency and throughput of `equipoise serve`, beside the throughput of the same guard on a batch.

    python benchmarks/guard_server.py                    answers of the built-in pairs
    python benchmarks/guard_server.py --data DIR         answers of DIR/pku_saferlhf_mini.jsonl, in row order

Each client posts one answer to `/v1/guard`, waits for the verdict, and posts the next. The load comes from
this process over the loopback, so its share of the machine's processors is stated; the server, a process of
its own, has what is left. The batch throughput is that of `Guard.read` on the same rows, measured before and
after in this process while the server is idle. Above saturation, with a short queue, every request must get
an answer, 200 or 429 with Retry-After, and every verdict must be that of the batch. Probabilities may differ
by rounding, which depends on who shares a batch: by 1e-5 at most in float32; the largest difference is told.
"""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_args

import httpx2
import numpy as np
import torch
from common import save
from guard_speed import Answer, Judged, answers, arguments, judge

from equipoise.data.corpus import corpus_path
from equipoise.models.windows import TextPair
from equipoise.moderation.batcher import Batching
from equipoise.moderation.guard import Guard, Runtime, load_guard

CLIENTS = (1, 8, 32)
QUEUE = 64
FLOOD = 4 * QUEUE
"""Clients above saturation."""
_PAUSE = 0.25
"""Seconds until a client that was refused asks again."""


class Reply(NamedTuple):
    """What a client got for a row."""

    row: int
    status: int
    """0 where the connection broke."""
    seconds: float
    has_retry_after: bool
    unsafe_probability: float | None
    is_flagged: bool | None


class Load(NamedTuple):
    """What all clients got, and what it took."""

    replies: list[Reply]
    seconds: float
    generator_share: float
    """Of the machine's processors."""


@contextmanager
def serving(guard: Path, runtime: str, *settings: str) -> Iterator[str]:
    """Run a server in a process of its own and yield its address."""
    command = [sys.executable, "-m", "equipoise", "serve", "--guard", str(guard), "--port", "0", "--json"]
    command += ["--runtime", runtime, *(part for setting in settings for part in ("--set", setting))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait(60)


Rows = Iterator[tuple[int, TextPair]]


async def _client(http: httpx2.AsyncClient, rows: Rows, until: float) -> list[Reply]:
    found = []
    while time.perf_counter() < until:
        row, text = next(rows)
        start, status, given, unsafe, flagged = time.perf_counter(), 0, False, None, None
        try:
            reply = await http.post("/v1/guard", json=text._asdict())
        except httpx2.RequestError:
            pass  # status 0
        else:
            status, given = reply.status_code, "retry-after" in reply.headers
            if status == 200:
                unsafe, flagged = reply.json()["unsafe_probability"], not reply.json()["is_safe"]
        found.append(Reply(row, status, time.perf_counter() - start, given, unsafe, flagged))
        if status == 429:
            await asyncio.sleep(_PAUSE)
    return found


async def load(url: str, texts: list[TextPair], clients: int, seconds: float) -> Load:
    """Let so many clients ask for some seconds; the rows are taken in turn, over and over."""
    rows = itertools.cycle(enumerate(texts))
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=60, trust_env=False) as http:
        await http.get("/ready")
        start, used = time.perf_counter(), time.process_time()
        found = await asyncio.gather(*(_client(http, rows, start + seconds) for _ in range(clients)))
        taken, used = time.perf_counter() - start, time.process_time() - used
    return Load([reply for own in found for reply in own], taken, used / taken / (os.cpu_count() or 1))


def batch_rate(guard: Guard, texts: list[TextPair]) -> float:
    """Rows per second of one call with all of them."""
    guard.read(texts[:64])
    start = time.perf_counter()
    guard.read(texts)
    return len(texts) / (time.perf_counter() - start)


def latency(loads: list[Load], batch: float) -> dict[str, Any]:
    """Percentiles over the answers of all rounds, and their rate."""
    replies = [reply for one in loads for reply in one.replies]
    milliseconds = [1000 * reply.seconds for reply in replies if reply.status == 200]
    rate = float(np.median([len(one.replies) / one.seconds for one in loads]))
    return {
        "p50_ms": round(float(np.percentile(milliseconds, 50)), 1),
        "p95_ms": round(float(np.percentile(milliseconds, 95)), 1),
        "rows_per_second": round(rate, 1),
        "share_of_batch": round(rate / batch, 2),
        "generator_cpu_share": round(float(np.mean([one.generator_share for one in loads])), 3),
        "other_than_200": sum(reply.status != 200 for reply in replies),
    }


def flood(found: Load, expected: Judged) -> dict[str, Any]:
    """What became of the requests above saturation; none may be lost, or flagged otherwise than alone."""
    statuses = Counter(reply.status for reply in found.replies)
    refused = [reply for reply in found.replies if reply.status == 429]
    judged = [reply for reply in found.replies if reply.unsafe_probability is not None]
    away = [abs(reply.unsafe_probability - expected.unsafe[reply.row]) for reply in judged]
    return {
        "clients": FLOOD,
        "queue": QUEUE,
        "requests": len(found.replies),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "lost": sum(count for status, count in statuses.items() if status not in (200, 429)),
        "refused_without_retry_after": sum(not reply.has_retry_after for reply in refused),
        "flipped": int(sum(reply.is_flagged != expected.flagged[reply.row] for reply in judged)),
        "largest_difference": round(float(max(away, default=0.0)), 6),
        "rows_per_second": round(len(judged) / found.seconds, 1),
        "generator_cpu_share": round(found.generator_share, 3),
    }


def measure(guard: Path, runtime: Runtime, rows: list[Answer], rounds: int, seconds: float) -> dict[str, Any]:
    """Latency, throughput and what happens above saturation, for one runtime."""
    texts = [row.text for row in rows]
    own = load_guard(guard, "cpu", runtime)
    expected = judge(own, texts)
    batches = [batch_rate(own, texts)]
    loads: dict[int, list[Load]] = {clients: [] for clients in CLIENTS}
    with serving(guard, runtime) as url:
        asyncio.run(load(url, texts, CLIENTS[-1], 1.0))
        for _ in range(rounds):
            for clients in CLIENTS:
                loads[clients].append(asyncio.run(load(url, texts, clients, seconds)))
    batches.append(batch_rate(own, texts))
    with serving(guard, runtime, f"batching.max_queue={QUEUE}") as url:
        above = asyncio.run(load(url, texts, FLOOD, seconds))
    batch = float(np.mean(batches))
    return {
        "batch_rows_per_second": round(batch, 1),
        "clients": {str(clients): latency(found, batch) for clients, found in loads.items()},
        "above_saturation": flood(above, expected),
    }


def main() -> None:
    parser = arguments(rounds=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--runtimes", nargs="+", choices=get_args(Runtime), default=get_args(Runtime))
    args = parser.parse_args()
    rows = answers(args.data, args.rows)
    found: dict[str, Any] = {}
    result = {
        "rows": len(rows),
        "rounds": args.rounds,
        "seconds": args.seconds,
        "torch_threads": torch.get_num_threads(),
        "max_wait_ms": Batching().max_wait_ms,
        "texts": "pku_saferlhf_mini" if args.data else corpus_path("pairs").name,
        "runtimes": found,
    }
    for name in args.runtimes:
        found[name] = measure(args.guard, name, rows, args.rounds, args.seconds)
        print(json.dumps({name: found[name]}), flush=True)
    save("guard_server", result)


if __name__ == "__main__":
    main()
