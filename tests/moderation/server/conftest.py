"""Servers on loopback with guards whose answers are planted, so that every verdict is known beforehand."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
import torch
import uvicorn

from equipoise.models.backbone import load_encoder
from equipoise.models.guard import GuardCard, GuardModel
from equipoise.models.heads import GuardLogits
from equipoise.models.windows import PairBatch
from equipoise.moderation.guard import Guard
from equipoise.moderation.policies import Policy
from equipoise.moderation.server.app import create_app
from equipoise.moderation.server.engine import Engine
from equipoise.moderation.server.run import bind, url_of
from equipoise.moderation.server.service import Service
from equipoise.moderation.server.settings import Keys, ServeConfig
from equipoise.taxonomy import Taxonomy, load_taxonomy

collect_ignore = ["drive_page.py"]  # runs in the browser driver's own environment

HARM = {
    "harm": "Violence",
    "bread": "Sexual Content",
    "oven": "Copyright Issues",
    "salt": "Drugs",
    "flour": "Insulting Behavior",
}
"""Word that the planted guard flags -> category that it gives; `warm` and `coat` make it worse."""


def card_of(taxonomy: Taxonomy | None = None, **more: Any) -> GuardCard:
    given = {"taxonomy": taxonomy or load_taxonomy("pku19"), "backbone": "planted", "layers": 1, "hidden": 1}
    return GuardCard.model_validate(
        {**given, "targets": ("prompt", "response"), "knows_refusals": True, **more}
    )


class Planted:
    """A reader of token ids that flags words, and fails as it is told to."""

    batch_tokens = 8192

    def __init__(self, tokenizer: Any, card: GuardCard | None = None) -> None:
        self.card, self.tokenizer = card or card_of(), tokenizer
        self.sizes: list[int] = []
        """Windows of every call."""
        self.fault: Callable[[], None] = lambda: None
        self.is_nan = False

    def __call__(self, batch: PairBatch) -> GuardLogits:
        self.sizes.append(len(batch.ids))
        self.fault()
        names, levels = self.card.taxonomy.names, len(self.card.taxonomy.severities) - 1
        severity = torch.full((len(batch.ids), levels), -6.0)
        categories = torch.full((len(batch.ids), len(names)), -4.0)
        judged = torch.where((batch.parts == 2).any(1, keepdim=True), batch.parts == 2, batch.parts == 1)
        for row, (ids, mask) in enumerate(zip(batch.ids, judged, strict=True)):
            words = set(self.tokenizer.decode(ids[mask]).split())
            flagged = [name for word, name in HARM.items() if word in words and name in names]
            level = 1 + ("warm" in words) + 2 * ("coat" in words)
            if flagged or words & HARM.keys():
                severity[row, :level] = 6.0
            for name in flagged:
                categories[row, names.index(name)] = 3.0
        if self.is_nan:
            severity[:] = torch.nan
        return GuardLogits(severity, categories, torch.tensor([[2.0, 0.0, 0.0]]).repeat(len(batch.ids), 1))


class Running(NamedTuple):
    """A server that runs in a thread."""

    url: str
    service: Service
    reader: Planted
    client: httpx2.Client

    def post(self, path: str, body: Any, **more: Any) -> httpx2.Response:
        return self.client.post(path, json=body, **more)


@contextmanager
def running(service: Service, reader: Any = None) -> Iterator[Running]:
    """Serve on a free port until the end of the block; the guard is loaded by the caller, or not at all."""
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(create_app(service), log_config=None, access_log=False, lifespan="on", ws="none")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    url = url_of(listening).rstrip("/")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        with httpx2.Client(base_url=url, timeout=20, trust_env=False) as client:
            yield Running(url, service, reader, client)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


class Made(NamedTuple):
    """A service that is not running yet, and its guard."""

    service: Service
    reader: Planted


Make = Callable[..., Made]


@pytest.fixture(scope="session")
def make(tiny_encoder: Path) -> Make:
    """Make a service with a planted guard; `policies`, `keys` and settings may be given."""
    tokenizer = load_encoder(tiny_encoder, device="cpu").tokenizer

    def made(
        *,
        policies: tuple[Policy, ...] = (),
        keys: tuple[str, ...] = (),
        card: GuardCard | None = None,
        started: bool = True,
        identify: Any = None,
        **settings: Any,
    ) -> Made:
        reader = Planted(tokenizer, card)
        given = ServeConfig.model_validate({"guard": "unused", **settings})
        found = {policy.name: policy for policy in policies}

        def load(observe: Any) -> Engine:
            guard = Guard(reader)
            return Engine(
                guard,
                found or guard.policies,
                version="planted",
                batching=given.batching,
                languages=given.languages,
                identify=identify,
                observe=observe,
            )

        service = Service(given, load, Keys(keys))
        if started:
            service.start()
        return Made(service, reader)

    return made


Serve = Callable[..., Running]


@contextmanager
def starting(make: Make) -> Iterator[Serve]:
    with ExitStack() as stack:

        def started(**given: Any) -> Running:
            made = make(**given)
            return stack.enter_context(running(made.service, made.reader))

        yield started


@pytest.fixture(scope="session")
def start() -> Callable[[Service], AbstractContextManager[Running]]:
    """Serve a service of a test's own."""
    return running


@pytest.fixture
def serve(make: Make) -> Iterator[Serve]:
    """Start a server for one test; takes what `make` takes."""
    with starting(make) as started:
        yield started


@pytest.fixture(scope="module")
def serve_shared(make: Make) -> Iterator[Serve]:
    """Start a server that all tests of a module share."""
    with starting(make) as started:
        yield started


@pytest.fixture(scope="module")
def server(serve_shared: Serve) -> Running:
    """A server with a planted guard and default settings, for tests that change nothing of it."""
    return serve_shared()


@pytest.fixture(scope="session")
def random_guard(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny guard with random weights whose answers differ from text to text."""
    torch.manual_seed(5)
    card = card_of(backbone=str(tiny_encoder), layers=2, hidden=16)
    model = GuardModel(card, load_encoder(tiny_encoder, device="cpu"))
    with torch.no_grad():
        for head in (model.heads.severity, model.heads.categories, model.heads.refusal):
            head.weight.mul_(8)
    model.trunk.requires_grad_(False)
    folder = tmp_path_factory.mktemp("guard") / "random"
    folder.mkdir()
    model.save(folder)
    return folder


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
