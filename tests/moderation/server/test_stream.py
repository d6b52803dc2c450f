"""`/v1/guard/stream`: what is judged comes out, and nothing else, also while the answer is still written."""

import json
import socket
from typing import Any

import pytest

SMALL = {"window": 60, "stride": 10, "hold_back": 20}
CALM = "The weather in the mountains changes quickly, so take a long walk. "
NDJSON = {"content-type": "application/x-ndjson"}


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    blocks = [block.split("\n") for block in text.split("\n\n") if block]
    return [(a.removeprefix("event: "), json.loads(b.removeprefix("data: "))) for a, b in blocks]


def released(events: list[tuple[str, dict[str, Any]]]) -> str:
    return "".join(data["text"] for name, data in events if name == "released")


@pytest.fixture(scope="module")
def small(serve_shared: Any) -> Any:
    return serve_shared(stream=SMALL)


def in_lines(server: Any, *deltas: str, opening: Any = None) -> Any:
    rows = [opening or {"prompt": "Tell me."}, *({"delta": delta} for delta in deltas)]
    body = "\n".join(json.dumps(row) for row in rows)
    return server.client.post("/v1/guard/stream", content=body.encode(), headers=NDJSON)


def test_a_harmless_answer_comes_out_whole_in_every_form(small: Any) -> None:
    text = CALM * 3 + "\u00fc \U0001f600."
    deltas = [text[i : i + 7] for i in range(0, len(text), 7)]
    for answer in (
        small.post("/v1/guard/stream", {"prompt": "Tell me.", "response": text}),
        small.post("/v1/guard/stream", {"deltas": deltas}),
        in_lines(small, *deltas),
        in_lines(small, *deltas, opening={"prompt": [{"role": "user", "content": "Tell me."}]}),
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = events_of(answer.text)
        assert released(events) == text
        assert (events[-1][0], events[-1][1]["offset"]) == ("done", len(text))


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_harmful_part_stops_the_stream_before_it_goes_out(small: Any, size: int) -> None:
    text = CALM * 2 + "the harm is warm " + CALM * 2
    events = events_of(in_lines(small, *(text[i : i + size] for i in range(0, len(text), size))).text)
    name, data = events[-1]
    assert name == "stopped"
    assert (data["severity"], data["harm_categories"], data["policy"]) == (2, ["Violence"], "default")
    assert released(events) == text[: data["offset"]]
    assert data["offset"] <= text.index("harm")
    first, last = data["window"]
    assert "harm" in text[first:last]


def test_pieces_come_out_while_the_rest_is_not_yet_written(small: Any) -> None:
    host, port = small.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:

        def send(row: dict[str, Any]) -> None:
            raw = json.dumps(row).encode() + b"\n"
            line.sendall(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")

        line.sendall(
            b"POST /v1/guard/stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"
        )
        send({"prompt": "Tell me."})
        send({"delta": CALM})
        got = b""
        while b"event: released" not in got:
            got += line.recv(1000)
        assert b"event: done" not in got
        send({"delta": CALM})
        line.sendall(b"0\r\n\r\n")
        while chunk := line.recv(1000):
            got += chunk
        assert b"event: done" in got


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "stream: expected"),
        (b'{"prompt": 3}\n', "prompt"),
        (b"no json\n", "not JSON"),
        (b'{"prompt": "a"}\n{"text": "b"}', "delta"),
        (b'{"prompt": "a", "policy": "none"}\n{"delta": "b"}', "no such policy"),
        (b'{"prompt": "a"}\n{"delta": "b", "more": 1}', "more"),
    ],
)
def test_lines_that_are_wrong_from_the_start_are_an_error_of_http(small: Any, raw: bytes, said: str) -> None:
    answer = small.client.post("/v1/guard/stream", content=raw, headers=NDJSON)
    if raw:
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]
    else:  # nothing was said, so nothing is released
        assert [(name, data["offset"]) for name, data in events_of(answer.text)] == [("done", 0)]


@pytest.mark.parametrize(
    "body",
    [{}, {"response": "a", "deltas": ["a"]}, {"response": 3}, {"deltas": "a"}, {"response": "a", "x": 1}],
)
def test_a_body_needs_an_answer_in_one_form(small: Any, body: Any) -> None:
    assert small.post("/v1/guard/stream", body).status_code == 400


def test_what_fails_in_the_middle_ends_the_stream_with_an_error(small: Any) -> None:
    calls = 0

    def fault() -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError("gone")

    small.reader.fault = fault
    try:
        events = events_of(in_lines(small, *[CALM] * 12).text)
    finally:
        small.reader.fault = lambda: None
    assert [name for name, _ in events[-1:]] == ["failed"]
    assert "done" not in [name for name, _ in events]
    assert events[-1][1]["error"]["type"] == "server_error"
    assert 0 < len(released(events)) < len(CALM * 12)


def test_a_line_that_is_wrong_in_the_middle_ends_the_stream_with_an_error(small: Any) -> None:
    rows = [json.dumps({"prompt": "a"}), *[json.dumps({"delta": CALM})] * 4, "{broken"]
    answer = small.client.post("/v1/guard/stream", content="\n".join(rows).encode(), headers=NDJSON)
    events = events_of(answer.text)
    assert events[-1][0] == "failed"
    assert events[-1][1]["error"]["type"] == "invalid_request_error"
    assert "done" not in [name for name, _ in events]
