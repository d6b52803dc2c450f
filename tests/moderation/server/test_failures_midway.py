"""What fails when an answer has begun: what was not judged stays in, and the end is no good one."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx2
import pytest

from equipoise.errors import ModelError

PIECE = "Take a long walk in the mountains. "
TEXT = PIECE * 40
CHAT = {"model": "big", "messages": [{"role": "user", "content": "Tell me of the weather."}]}
SMALL = {"window": 60, "stride": 10, "hold_back": 20}


@pytest.fixture(scope="module")
def served(serve_shared: Any, upstream: Any) -> Any:
    gateway = {"upstream": {"url": upstream.url}, "stream": SMALL}
    return serve_shared(gateway=gateway, stream=SMALL)


@pytest.fixture(autouse=True)
def mended(served: Any, upstream: Any) -> Iterator[None]:
    upstream.pieces = [PIECE] * 40
    yield
    served.reader.fault, served.reader.is_nan = (lambda: None), False


def _error(server: Any) -> None:
    raise ModelError("take a coat")


def _bug(server: Any) -> None:
    raise ZeroDivisionError("take a coat")


def _nan(server: Any) -> None:
    server.reader.is_nan = True


def _late(server: Any) -> None:
    raise TimeoutError  # as the queue does for a guard that does not come back


FAULTS: dict[str, tuple[Callable[[Any], None], int]] = {
    "nan": (_nan, 503),
    "error": (_error, 503),
    "bug": (_bug, 500),
    "late": (_late, 504),
}
"""What the guard does, and the status where nothing went out yet."""


def fail_after(server: Any, calls: int, fault: str) -> None:
    """Let the guard answer so often, and then no more."""
    count = 0

    def failing() -> None:
        nonlocal count
        count += 1
        if count > calls:
            FAULTS[fault][0](server)

    server.reader.fault = failing


def received(server: Any, path: str, **body: Any) -> tuple[int, str]:
    """Status and text of an answer, as far as it came."""
    got, status = b"", 0
    with suppress(httpx2.RemoteProtocolError), server.client.stream("POST", path, **body) as answer:
        status = answer.status_code
        for chunk in answer.iter_raw():
            got += chunk
    return status, got.decode()


def objects(text: str) -> list[Any]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_whole_answer_that_is_not_judged_stays_behind_the_gateway(served: Any, fault: str) -> None:
    fail_after(served, 1, fault)  # the prompt was judged
    status, text = received(served, "/v1/chat/completions", json=CHAT)
    assert status == FAULTS[fault][1]
    assert json.loads(text).keys() == {"error"}
    assert "walk" not in text


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("calls", [1, 4])
def test_a_stream_through_the_gateway_ends_where_the_guard_does(served: Any, fault: str, calls: int) -> None:
    fail_after(served, calls, fault)
    status, text = received(served, "/v1/chat/completions", json={**CHAT, "stream": True})
    assert "[DONE]" not in text
    if calls == 1:  # nothing went out, so it is an error of HTTP
        assert (status, json.loads(text).keys()) == (FAULTS[fault][1], {"error"})
        return
    choices = [choice for one in objects(text) for choice in one.get("choices", ())]
    said = "".join(choice["delta"].get("content", "") for choice in choices)
    assert 0 < len(said) < len(TEXT) - SMALL["hold_back"]
    assert TEXT.startswith(said)
    assert {choice["finish_reason"] for choice in choices} == {None}
    assert ("error" in objects(text)[-1]) == (fault != "bug")  # a bug breaks the connection


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("in_lines", [False, True])
def test_a_stream_that_is_judged_ends_where_the_guard_does(served: Any, fault: str, in_lines: bool) -> None:
    fail_after(served, 2, fault)
    body: dict[str, Any] = {"json": {"response": TEXT}}
    if in_lines:
        lines = [{"prompt": "Tell me."}, *({"delta": PIECE} for _ in range(40))]
        raw = "\n".join(json.dumps(line) for line in lines).encode()
        body = {"content": raw, "headers": {"content-type": "application/x-ndjson"}}
    _, text = received(served, "/v1/guard/stream", **body)
    assert "event: done" not in text
    said = "".join(one.get("text", "") for one in objects(text))
    assert 0 < len(said) < len(TEXT) - SMALL["hold_back"]
    assert TEXT.startswith(said)
    assert ("event: failed" in text) == (fault != "bug")
