"""A gateway between a judge with a marker and an upstream on loopback that sends what it is told to."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from math import nan
from typing import Any

import pytest

from equipoise.config import load_config
from equipoise.generation.client import Client
from equipoise.models.windows import TextPair
from equipoise.moderation.chat import GatewayError, read_request
from equipoise.moderation.gateway import Gateway, GatewayConfig
from equipoise.protocols import Verdict

HARM = "HARMFUL"
SMALL = ["stream.window=40", "stream.stride=8", "stream.hold_back=16"]
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(data: object) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return f"data: {text}\n\n".encode()


def piece(text: object, **more: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, **more}]})


def whole(status: int, body: object, *headers: str) -> bytes:
    raw = (body if isinstance(body, str) else json.dumps(body)).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(raw)}", "Content-Type: application/json"]
    return "\r\n".join([*lines, "Connection: close", *headers, "", ""]).encode() + raw


class Upstream:
    """Sends `script` to whoever asks: bytes, or a number for seconds of silence."""

    def __init__(self) -> None:
        self.script: Sequence[bytes | float] = []
        self.asked: list[Any] = []
        self.was_left = False
        """Whether the client went away before the script's end."""
        self.url = ""
        self._busy: set[Any] = set()

    def says(self, *texts: str, usage: object = None) -> None:
        """Stream these texts, and end as one should."""
        counted = [] if usage is None else [event({"choices": [], "usage": usage})]
        end = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        self.script = [EVENTS, *map(piece, texts), end, *counted, event("[DONE]")]

    def answers(self, text: object, **more: Any) -> None:
        """Give one whole answer."""
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self.script = [whole(200, {"choices": [choice], **more})]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        try:
            yield
        finally:
            await asyncio.gather(*self._busy)
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._busy.add(asyncio.current_task())
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length:")[2].split("\r\n")[0])
            self.asked.append(json.loads(await reader.readexactly(length)))
            for part in self.script:
                if isinstance(part, bytes):
                    writer.write(part)
                    await writer.drain()
                elif await self._hears_an_end(reader, part):
                    self.was_left = True
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            self.was_left = True
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self._busy.discard(asyncio.current_task())

    async def _hears_an_end(self, reader: asyncio.StreamReader, seconds: float) -> bool:
        try:
            return await asyncio.wait_for(reader.read(1), seconds) == b""
        except TimeoutError:
            return False


def verdict(is_safe: bool, *, truncated: bool = False) -> Verdict:
    p = 0.1 if is_safe else 0.9
    harm = () if is_safe else ("Cybercrime",)
    levels = (1 - p, p, 0.0, 0.0)
    return Verdict(is_safe, p, 0 if is_safe else 1, levels, harm, {"Cybercrime": p}, truncated)


class Judge:
    """Flags whatever holds the marker, in a prompt or in an answer; remembers what it read."""

    def __init__(self) -> None:
        self.read: list[TextPair] = []
        self.fails: BaseException | str | None = None
        """What goes wrong when an answer is judged."""
        self.reads_chars = 10_000

    async def __call__(self, texts: Sequence[TextPair]) -> list[Verdict]:
        self.read += texts
        if self.fails is not None and texts[0].response is not None:
            if isinstance(self.fails, BaseException):
                raise self.fails
            if self.fails == "short":
                return []
            return [verdict(True)._replace(unsafe_probability=nan) for _ in texts]
        found = []
        for prompt, response in texts:
            text = prompt if response is None else response
            found.append(
                verdict(HARM not in text[: self.reads_chars], truncated=len(text) > self.reads_chars)
            )
        return found


class Front:
    """A gateway in front of the upstream; the settings are made small."""

    def __init__(self, upstream: Upstream, judge: Any) -> None:
        self.upstream, self.judge = upstream, judge

    @asynccontextmanager
    async def gateway(self, *overrides: str) -> AsyncIterator[Gateway]:
        async with self.upstream.running():
            given = [f"upstream.url={self.upstream.url}", *SMALL, *overrides]
            settings = load_config(GatewayConfig, overrides=given)
            async with Client(settings.upstream, None) as client:
                yield Gateway(client, self.judge, settings)

    def stream(self, body: dict[str, Any], *overrides: str) -> tuple[list[Any], GatewayError | None]:
        """Return the chunks, and the error that ended them."""
        chunks: list[Any] = []

        async def run() -> None:
            async with self.gateway(*overrides) as gateway:
                async for chunk in gateway.stream(read_request(body)):
                    chunks.append(chunk)

        try:
            asyncio.run(run())
        except GatewayError as error:
            return chunks, error
        return chunks, None

    def complete(self, body: dict[str, Any], *overrides: str) -> Any:
        async def run() -> Any:
            async with self.gateway(*overrides) as gateway:
                return await gateway.complete(read_request(body))

        return asyncio.run(run())


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def judge() -> Judge:
    return Judge()


@pytest.fixture
def front(upstream: Upstream, judge: Judge) -> Front:
    return Front(upstream, judge)
