"""A server of the OpenAI chat protocol on loopback that fails as it is told to, and counts requests."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Body = dict[str, Any]
GREETING = "Hi"


def reply(text: object, **message: Any) -> Body:
    """Return a reply with this content and 7 + 3 tokens."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": "stop",
    }
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


class ChatServer:
    """What the server does and has seen; tests change it between requests."""

    def __init__(self) -> None:
        self.asked: list[Body] = []
        """Requests with a prompt of the user's, in order."""
        self.times: list[float] = []
        """When each of these came, seconds."""
        self.greetings: list[Body] = []
        """Requests by which the client finds out what the server takes."""
        self.headers: list[dict[str, str]] = []
        self.faults: dict[str, list[str]] = {}
        """What goes wrong when a prompt is asked, one after the other; `*` stands for any request."""
        self.forever: dict[str, str] = {}
        """What goes wrong always."""
        self.refuses: set[str] = set()
        """Fields that get status 400."""
        self.answer: Callable[[Body], Body] = lambda body: reply(
            f"{content(body)} {body.get('seed', 'greedy')}"
        )
        self.retry_after = "0.2"
        """What a 429 asks for, seconds."""
        self.streams = False
        self.delay = 0.0
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.url = ""

    def count(self) -> Counter[str]:
        """How often each (prompt, seed) was asked."""
        return Counter(f"{content(body)}/{body.get('seed')}" for body in self.asked)

    def take(self, body: Body, headers: dict[str, str]) -> str | None:
        """Write a request down and return the fault that is planned for it."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            name = content(body)
            (self.greetings if name == GREETING else self.asked).append(body)
            if name != GREETING:
                self.times.append(time.monotonic())
            self.headers.append(headers)
            for key in (name, "*"):
                if self.faults.get(key):
                    return self.faults[key].pop(0)
                if key in self.forever:
                    return self.forever[key]
            return f"400 {sorted(self.refuses & body.keys())}" if self.refuses & body.keys() else None

    def leave(self) -> None:
        with self._lock:
            self._at_once -= 1


def content(body: Body) -> str:
    return str(body["messages"][-1]["content"])


class Handler(BaseHTTPRequestHandler):
    """Answers one request as the server's state says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    chat: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.chat.take(body, dict(self.headers.items()))
        try:
            if self.chat.delay:
                time.sleep(self.chat.delay)
            self._respond(body, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.chat.leave()

    def _respond(self, body: Body, fault: str | None) -> None:
        whole = self.chat.answer(body)
        match (fault or "").split():
            case []:
                if self.chat.streams:
                    self._stream(whole["choices"][0]["message"]["content"], cut=False)
                else:
                    self._send(200, json.dumps(whole))
            case ["slow"]:
                time.sleep(1.0)
                self.close_connection = True
            case ["hangup"]:
                self.close_connection = True
            case ["html"]:
                self._send(200, "<html>")
            case ["empty"]:
                self._send(200, json.dumps({"choices": []}))
            case ["contentless"]:
                self._send(200, json.dumps(reply(None)))
            case ["short"]:
                self._send(200, json.dumps(whole), cut=10)
            case ["cutstream"]:
                self._stream("half an ans", cut=True)
            case [status, *said]:
                self._send(int(status), json.dumps({"error": {"message": " ".join(said)}}))

    def _send(self, status: int, text: str, *, cut: int = 0) -> None:
        raw = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        if status == 429:
            self.send_header("Retry-After", self.chat.retry_after)
        self.end_headers()
        self.wfile.write(raw[: len(raw) - cut])
        self.close_connection = bool(cut)

    def _stream(self, text: str, *, cut: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for letter in text:
            self._event({"choices": [{"delta": {"content": letter}}]})
        if not cut:
            self._event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            self._event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _event(self, chunk: Body) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """A running server; its `url` is the base address."""
    chat = ChatServer()
    web = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"chat": chat}))
    web.daemon_threads = True
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    chat.url = f"http://127.0.0.1:{web.server_address[1]}/v1"
    yield chat
    web.shutdown()
    web.server_close()
    thread.join()
