"""The gateway behind the server: chats go through, as far as the guard lets them."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from equipoise.moderation.policies import Policy

CALM = "Take a long walk in the mountains. "
CHAT = {"model": "big", "messages": [{"role": "user", "content": "Tell me of the weather."}]}


class Upstream:
    """Says `pieces`, as a stream or at once; remembers what it was asked."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.is_cut = False
        """Whether the stream breaks off before its end."""
        self.url = ""


def event(**choice: Any) -> bytes:
    return f"data: {json.dumps({'choices': [{'index': 0, **choice}]})}\n\n".encode()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    said = Upstream()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            said.asked.append(body)
            self.send_response(200)
            if body["stream"]:
                parts = [event(delta={"content": text}) for text in said.pieces]
                parts += [] if said.is_cut else [event(delta={}, finish_reason="stop"), b"data: [DONE]\n\n"]
                raw, kind = b"".join(parts), "text/event-stream"
            else:
                message = {"role": "assistant", "content": "".join(said.pieces)}
                raw = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
                kind = "application/json"
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        said.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield said
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def through(serve_shared: Any, upstream: Any) -> Any:
    small = {"window": 60, "stride": 10, "hold_back": 20}
    return serve_shared(gateway={"upstream": {"url": upstream.url}, "refusal_text": "No.", "stream": small})


@pytest.fixture(autouse=True)
def fresh(upstream: Upstream) -> None:
    upstream.pieces, upstream.asked, upstream.is_cut = [CALM] * 4, [], False


def chunks_of(answer: Any) -> list[Any]:
    return [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]


def text_in(chunks: list[Any]) -> str:
    return "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk.get("choices", ()))


def test_a_harmless_chat_goes_through_at_once_and_as_a_stream(through: Any, upstream: Upstream) -> None:
    whole = through.post("/v1/chat/completions", CHAT).json()
    assert whole["choices"][0]["message"]["content"] == CALM * 4
    answer = through.post("/v1/chat/completions", {**CHAT, "stream": True})
    assert text_in(chunks_of(answer)) == CALM * 4
    assert answer.text.endswith("data: [DONE]\n\n")
    assert [asked["model"] for asked in upstream.asked] == ["big", "big"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_unsafe_prompt_is_refused_and_goes_nowhere(through: Any, upstream: Upstream, stream: bool) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "the harm"}], "stream": stream}
    assert '"No."' in through.post("/v1/chat/completions", body).text
    assert upstream.asked == []


def test_an_unsafe_answer_stops_before_it_goes_out(through: Any, upstream: Upstream) -> None:
    upstream.pieces = [CALM, CALM, "the ha", "rm ", CALM, CALM]
    chunks = chunks_of(through.post("/v1/chat/completions", {**CHAT, "stream": True}))
    assert "harm" not in text_in(chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"
    whole = through.post("/v1/chat/completions", CHAT).json()["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == ("No.", "content_filter")


def test_a_stream_that_is_cut_off_ends_in_an_error(through: Any, upstream: Upstream) -> None:
    upstream.is_cut = True
    answer = through.post("/v1/chat/completions", {**CHAT, "stream": True})
    assert "error" in answer.text
    assert "[DONE]" not in answer.text


def test_the_guard_itself_is_asked_by_its_name(through: Any, upstream: Upstream) -> None:
    body = {"model": "equipoise-guard", "messages": [{"role": "user", "content": "the harm"}]}
    found = through.post("/v1/chat/completions", body).json()
    assert found["choices"][0]["message"]["content"] == "unsafe\nS1"
    assert through.post("/v1/completions", {"model": "big", "prompt": "a"}).status_code == 404
    assert upstream.asked == []


def test_a_policy_of_the_request_decides_and_is_not_sent_on(serve: Any, upstream: Any) -> None:
    policies = (Policy(name="strict", unsafe=0.5), Policy(name="lax", unsafe=1.0))
    server = serve(policies=policies, gateway={"upstream": {"url": upstream.url}})
    body = {**CHAT, "messages": [{"role": "user", "content": "the harm"}]}
    assert server.post("/v1/chat/completions", {**body, "policy": "lax"}).status_code == 200
    assert "policy" not in upstream.asked[0]
    finish = server.post("/v1/chat/completions", body).json()["choices"][0]["finish_reason"]
    assert (finish, len(upstream.asked)) == ("content_filter", 1)


def test_a_chat_with_what_is_not_judged_does_not_go_through(through: Any, upstream: Upstream) -> None:
    for more in ({"tools": [{"type": "function"}]}, {"n": 2}, {"messages": []}, {"policy": "none"}):
        answer = through.post("/v1/chat/completions", {**CHAT, **more})
        assert answer.status_code == 400
    assert upstream.asked == []
