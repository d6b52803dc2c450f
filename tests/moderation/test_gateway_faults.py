"""The gateway where the upstream or the guard fails: an error, and never a word that was not judged."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from equipoise.errors import ModelError
from equipoise.models.windows import TextPair
from equipoise.moderation.chat import GatewayError, read_request, sse
from equipoise.protocols import Verdict

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
HARM = "HARMFUL"
TEXT = "Mix flour, water, salt and yeast, then wait until the dough has doubled. " * 3


def ask(prompt: str = "Bread?", **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": prompt}], **more}


def text_of(chunks: Sequence[Any]) -> str:
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])


LONG = [b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % (b"bread " * 5) for _ in range(4)]


def status(number: int, *headers: str) -> list[bytes | float]:
    body = json.dumps({"error": {"message": f"too long: {HARM}"}}).encode()
    lines = [f"HTTP/1.1 {number} X", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return ["\r\n".join(lines).encode() + body]


HTML = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>"
BEFORE = {
    "nothing": ([], 502, "upstream: no reply (RemoteProtocolError)"),
    "500": (status(500), 502, "upstream: status 500"),
    "401": (status(401), 502, "upstream: status 401"),
    "400": (status(400), 400, f"upstream: status 400: too long: {HARM}"),
    "429": (status(429, "Retry-After: 7"), 429, "upstream: too many requests"),
    "silent": ([5.0], 504, "upstream: no reply within 0.5 s"),
}
"""What goes wrong before the answer -> status, message."""

WITHIN = {
    "html": ([HTML], 502),
    "cut": ([EVENTS, *LONG], 502),
    "hung": ([EVENTS, *LONG, 5.0], 504),
    "trickle": ([EVENTS, *[part for one in LONG * 9 for part in (0.1, one)]], 504),
    "no json": ([EVENTS, *LONG, b"data: {oops\n\n"], 502),
    "no object": ([EVENTS, *LONG, b"data: [1]\n\n"], 502),
    "binary": ([EVENTS, *LONG, b"\xff\xfe\x00\n\n"], 502),
    "an error": ([EVENTS, *LONG, b'data: {"error": {"message": "HARMFUL"}}\n\n'], 502),
    "no text": ([EVENTS, *LONG, b'data: {"choices": [{"delta": {"content": 7}}]}\n\n'], 502),
    "a text for a piece": ([EVENTS, *LONG, b'data: {"choices": [{"delta": "x"}]}\n\n'], 502),
    "choices of nothing": ([EVENTS, *LONG, b'data: {"choices": [7]}\n\n'], 502),
    "half an event": ([EVENTS, *LONG, b'data: {"choices": [{"delta": {"cont'], 502),
}
"""What goes wrong in the stream -> status."""


@pytest.mark.parametrize("fault", BEFORE)
def test_an_upstream_that_does_not_answer_is_an_error(front: Any, upstream: Any, fault: str) -> None:
    upstream.script, number, message = BEFORE[fault]
    limits = ["upstream.timeout_seconds=0.5"] if number == 504 else []
    chunks, error = front.stream(ask(stream=True), *limits)
    assert chunks == []
    assert (error.status, str(error)) == (number, message)
    assert error.after == (7.0 if fault == "429" else None)
    with pytest.raises(GatewayError) as raised:
        front.complete(ask(), *limits)
    assert (raised.value.status, str(raised.value)) == (number, message)


def test_an_upstream_that_is_not_there_is_an_error(front: Any) -> None:
    with pytest.raises(GatewayError, match=r"upstream: no reply \(ConnectError\)"):
        front.complete(ask(), "upstream.url=http://127.0.0.1:9/v1")


@pytest.mark.parametrize("fault", WITHIN)
def test_a_stream_that_breaks_is_an_error_and_what_was_held_back_stays(
    front: Any, upstream: Any, fault: str
) -> None:
    upstream.script, number = WITHIN[fault]
    limits = ["upstream.timeout_seconds=0.5"] if number == 504 else []
    chunks, error = front.stream(ask(stream=True), *limits)
    assert error.status == number
    assert HARM not in str(error)
    sent = "bread " * 5 * sum(part in LONG for part in upstream.script)
    assert sent.startswith(text_of(chunks))
    assert len(text_of(chunks)) <= max(0, len(sent) - 16)
    assert (fault == "html") == (chunks == [])
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)


def test_a_broken_stream_ends_in_an_error_event_and_is_not_done(front: Any, upstream: Any) -> None:
    async def run(script: list[bytes]) -> list[str]:
        upstream.script = script
        async with front.gateway() as gateway:
            chunks = gateway.stream(read_request(ask(stream=True)))
            return [raw.decode() async for raw in sse(chunks)]

    broken = asyncio.run(run([EVENTS, *LONG]))
    assert all(line.startswith("data: {") and line.endswith("}\n\n") for line in broken)
    assert json.loads(broken[-1][6:])["error"] == {
        "message": "upstream: the stream was cut off",
        "type": "server_error",
        "param": None,
        "code": 502,
    }
    assert asyncio.run(run([EVENTS, *LONG, b"data: [DONE]\n\n"]))[-1] == "data: [DONE]\n\n"


FAULTS = [
    (ModelError("x"), 503, "the guard gave no answer (ModelError)"),
    (TimeoutError(), 503, "the guard gave no answer (TimeoutError)"),
    (GatewayError(429, "busy", after=1.0), 429, "busy"),
    ("nan", 503, "the guard's answer is not finite"),
]


@pytest.mark.parametrize(("fails", "number", "message"), FAULTS)
def test_without_a_judgement_there_is_no_answer(
    front: Any, upstream: Any, *, judge: Any, fails: Any, number: int, message: str
) -> None:
    judge.fails = fails
    upstream.says(TEXT)
    chunks, error = front.stream(ask(stream=True))
    assert chunks == []
    assert (error.status, str(error)) == (number, message)
    upstream.answers(TEXT)
    with pytest.raises(GatewayError, match=r"the guard|busy") as raised:
        front.complete(ask())
    assert raised.value.status == number


def test_without_a_judgement_of_the_prompt_the_upstream_is_not_asked(front: Any, upstream: Any) -> None:
    async def gone(texts: Sequence[TextPair]) -> list[Verdict]:
        raise ModelError("x")

    async def few(texts: Sequence[TextPair]) -> list[Verdict]:
        return []

    for broken in (gone, few):
        front.judge = broken
        chunks, error = front.stream(ask(stream=True))
        assert (chunks, error.status) == ([], 503)
    assert upstream.asked == []


@pytest.mark.parametrize(
    "body",
    [
        "<html>",
        {"choices": []},
        {"choices": [{"message": {"tool_calls": [1]}}]},
        {"error": {"message": HARM}},
    ],
    ids=str,
)
def test_a_reply_without_an_answer_in_it_is_an_error(front: Any, upstream: Any, body: Any) -> None:
    raw = (body if isinstance(body, str) else json.dumps(body)).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(raw)}\r\nConnection: close\r\n\r\n".encode()
    upstream.script = [head + raw]
    with pytest.raises(GatewayError) as raised:
        front.complete(ask())
    assert raised.value.status == 502
    assert HARM not in str(raised.value)
