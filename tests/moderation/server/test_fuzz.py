"""Malformed, huge, binary, nested, empty and foreign requests: an answer or a client's error, no crash."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from equipoise.moderation.server.app import JUDGING

JUDGED = [route.path for module in JUDGING for route in module.router.routes if "POST" in route.methods]
PATHS = [*JUDGED, "/v1/models", "/"]
HUGE = b'{"input": "' + b"a" * (1 << 20) + b'"}'
"""More bytes than a request may have."""
FIELDS = (
    "input prompt response messages policy text texts categories outputType blocklistNames model stream n "
    "input_type tool_calls images additional_provider_specific_params threshold deltas delta role content "
    "type max_tokens temperature user stream_options"
)
NAMES = FIELDS.split()
WORDS = [
    "user",
    "assistant",
    "request",
    "response",
    "conversation",
    "image_url",
    "EightSeverityLevels",
    "default",
]

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from([*WORDS, "text", "", " ", "\x00", "\u202e", "Wie wird das Wetter morgen?", "a" * 5000])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
objects = st.dictionaries(st.sampled_from(NAMES), values, max_size=8)
turn = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]), "content": values})
likely = st.fixed_dictionaries(
    {},
    optional={
        "input": st.text() | st.lists(st.text() | objects, max_size=5) | values,
        "prompt": st.text() | st.lists(turn, max_size=3) | values,
        "response": st.text() | values,
        "messages": st.lists(turn | objects, max_size=4) | values,
        "text": st.text() | values,
        "texts": st.lists(st.text(), max_size=4) | values,
        "deltas": st.lists(st.text(), max_size=6) | values,
        "input_type": st.sampled_from(["request", "response"]) | values,
        "model": st.text() | values,
        "stream": st.booleans() | values,
    },
)
raw = (
    likely.map(lambda value: json.dumps(value).encode())
    | objects.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=300)
    | st.just(HUGE)
    | st.integers(1, 5000).map(lambda n: b'{"input":' + b"[" * n + b"]" * n + b"}")
    | st.tuples(likely, st.integers(0, 200)).map(lambda t: json.dumps(t[0]).encode()[: t[1]])
)
kinds = st.sampled_from(["application/json", "application/x-ndjson", "text/plain", ""])
requests = st.tuples(st.sampled_from(PATHS), raw, kinds)


def check_answer(client: httpx2.Client, path: str, body: bytes, kind: str) -> None:
    answer = client.post(path, content=body, headers={"content-type": kind} if kind else {})
    assert answer.status_code in {200, 400, 405, 413}, (path, body, answer.text)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests)
def test_no_request_breaks_the_server(server: Any, request: tuple[str, bytes, str]) -> None:
    check_answer(server.client, *request)


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    (line,) = [text for text in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in text]
    return int(line.split()[1]) * 1024


@pytest.mark.slow
def test_ten_thousand_requests_leave_no_memory_behind(random_guard: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "equipoise",
        "serve",
        "--guard",
        str(random_guard),
        "--port",
        "0",
        "--json",
    ]
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    ) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            held: list[int] = []
            with httpx2.Client(base_url=url, trust_env=False, timeout=60) as client:

                @settings(
                    max_examples=1000, deadline=None, database=None, suppress_health_check=list(HealthCheck)
                )
                @given(request=requests)
                def thousand(request: tuple[str, bytes, str]) -> None:
                    check_answer(client, *request)

                for _ in range(10):
                    thousand()
                    held.append(resident(process.pid))
                assert client.post("/v1/guard", json={"prompt": "hello"}).status_code == 200
            assert held[-1] <= 1.05 * held[0], held
        finally:
            process.kill()
