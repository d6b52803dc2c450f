"""A taxonomy of three categories, records, a server and a model, for the tests of judges."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log
from pathlib import Path
from typing import Any

import pytest

from equipoise.config import to_yaml
from equipoise.records import Answer, Exchange, Message, Pair
from equipoise.taxonomy import Taxonomy

NAMES = ("Noise", "Rudeness", "Litter")


@pytest.fixture
def three() -> Taxonomy:
    """A team's own taxonomy."""
    return Taxonomy.model_validate(
        {
            "name": "house",
            "version": 1,
            "severities": [
                {"name": "fine", "criterion": "Nobody minds."},
                {"name": "slight", "criterion": "One neighbour sighs."},
                {"name": "grave", "criterion": "The whole street complains."},
            ],
            "categories": [
                {
                    "id": name.lower(),
                    "name": name,
                    "definition": f"What makes {name.lower()}.",
                    "not_this": f"Talk about {name.lower()}.",
                }
                for name in NAMES
            ],
        }
    )


@pytest.fixture
def exchanges() -> list[Exchange]:
    """Three exchanges, one of them a chat."""
    return [
        Exchange(
            id="a", source="mine", licence="MIT", prompt="May I sing at night?", response="Sing softly."
        ),
        Exchange(id="b", licence="CC0-1.0", prompt="May I shout?", response="Shout at 3 o'clock."),
        Exchange(
            id="c",
            prompt=(
                Message(role="user", content="Hello"),
                Message(role="assistant", content="Good day"),
                Message(role="user", content="Where to put the bottle?"),
            ),
            response="Throw it out of the window.",
        ),
    ]


@pytest.fixture
def pairs() -> list[Pair]:
    """Two pairs."""
    texts = [
        ("How long to boil an egg?", "Eight minutes.", "No idea."),
        ("Tea or coffee?", "Tea.", "Go away."),
    ]
    return [
        Pair(id=f"p{i}", prompt=prompt, answers=(Answer(response=first), Answer(response=second)))
        for i, (prompt, first, second) in enumerate(texts)
    ]


class Server:
    """A chat server on loopback that answers with `say(text)`; it may give log-probabilities."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.say: Callable[[str], str] = lambda text: "no"
        self.gives_logprobs = False
        self.dead_after: int | None = None
        """Requests after which nothing is answered any more."""
        self.hang_after: int | None = None
        """Requests after which the next one sets `hung` and waits for `goes_on`."""
        self.hung = threading.Event()
        self.goes_on = threading.Event()
        self.url = ""

    def reply(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        text = body["messages"][-1]["content"]
        if self.dead_after is not None and len(self.asked) >= self.dead_after:
            return 503, {"error": {"message": "closed"}}
        if self.hang_after is not None and len(self.asked) >= self.hang_after:
            self.hung.set()
            self.goes_on.wait(30)
            return 503, {"error": {"message": "closed"}}
        if "logprobs" in body and not self.gives_logprobs:
            return 400, {"error": {"message": "no logprobs"}}
        answer = self.say(text)
        if text != "Hi":  # by which the client finds out what a server takes
            self.asked.append(text)
        choice: dict[str, Any] = {
            "message": {"role": "assistant", "content": answer},
            "finish_reason": "stop",
        }
        if "logprobs" in body:
            others = {"yes": "no", "no": "yes", "A": "B", "B": "A", "1": "2", "2": "1"}
            top = [{"token": answer, "logprob": log(0.8)}, {"token": others[answer], "logprob": log(0.2)}]
            choice["logprobs"] = {"content": [{"token": answer, "logprob": log(0.8), "top_logprobs": top}]}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            status, reply = state.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            raw = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # the client was killed
                self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(scope="session")
def roomy_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny llama with room for a whole prompt of a judge."""
    folder = tmp_path_factory.mktemp("roomy") / "roomy-llama"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return folder


@pytest.fixture
def house_yaml(three: Taxonomy, tmp_path: Path) -> Path:
    """The taxonomy as a file."""
    path = tmp_path / "house.yaml"
    path.write_text(to_yaml(three.model_dump(mode="json")))
    return path
