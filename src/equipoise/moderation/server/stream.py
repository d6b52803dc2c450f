"""`/v1/guard/stream`: an answer in pieces goes in, what of it may be shown comes out as server-sent events.

The body is one JSON object with `response` or `deltas`, or, to have the answer judged while it is written,
lines of JSON (`application/x-ndjson`): first `{"prompt": ..., "policy": ...}`, then `{"delta": ...}`, each
line when there is something to say. Events are `released`, then `stopped`, `failed` or `done`; the last one
tells the policy, and whether a person should look. Nothing is released that was not judged; see
`moderation.streaming` for what that guarantees.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, model_validator
from starlette.types import Receive, Scope, Send

from equipoise.models.windows import TextPair
from equipoise.moderation.chat import GatewayError
from equipoise.moderation.server.answers import Watch, service_of
from equipoise.moderation.server.bodies import as_object, described, parse, read_object, too_large
from equipoise.moderation.server.errors import RequestError
from equipoise.moderation.server.native import Turns
from equipoise.moderation.server.settings import Limits
from equipoise.moderation.streaming import Done, Event, Failed, Released, Stopped, guard_stream_async
from equipoise.protocols import Verdict
from equipoise.records import text_of

router = APIRouter()

LINES = "application/x-ndjson"


class Opening(BaseModel):
    """What an answer is judged against; the first line of a body in lines."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | Turns = ""
    policy: str | None = None


class Delta(BaseModel):
    """A further line: more of the answer."""

    model_config = ConfigDict(extra="forbid")

    delta: str


class StreamRequest(Opening):
    """A whole answer, in one piece or in several."""

    response: str | None = None
    deltas: list[str] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "StreamRequest":
        if (self.response is None) == (self.deltas is None):
            raise ValueError("expected response or deltas")
        return self


@router.post("/v1/guard/stream", openapi_extra=described(StreamRequest))
async def stream(request: Request) -> Response:
    """Judge an answer while it comes."""
    service = service_of(request)
    in_lines = request.headers.get("content-type", "").split(";")[0].strip().lower() == LINES
    if in_lines:
        lines = _lines(request, service.settings.limits)
        opening = parse(Opening, await anext(lines, {}))
        deltas = _deltas(lines)
    else:
        body = parse(StreamRequest, await read_object(request, service.settings.limits))
        opening, deltas = body, _each(body.deltas if body.response is None else [body.response])
    policy = service.choice(opening.policy)
    prompt = opening.prompt if isinstance(opening.prompt, str) else text_of(opening.prompt)

    watch = Watch(request, policy)

    async def verdicts(windows: Sequence[str]) -> Sequence[Verdict]:
        return await watch([TextPair(prompt, window) for window in windows])

    events = guard_stream_async(deltas, verdicts, service.settings.stream)
    first = await anext(aiter(events))
    if isinstance(first, Failed):
        raise RequestError(first.status, first.reason)
    sent = _sent(first, events, watch)
    return _TwoWay(sent) if in_lines else StreamingResponse(sent, media_type="text/event-stream")


class _TwoWay(Response):
    """A stream that goes out while the request still comes in; starlette's own would read of that itself."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncGenerator[bytes, None]) -> None:
        self.content = content
        self.status_code, self.background = 200, None
        self.init_headers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with aclosing(self.content):
            async for chunk in self.content:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _sent(first: Event, events: AsyncIterator[Event], watch: Watch) -> AsyncGenerator[bytes, None]:
    """Yield events as they go over the line; one that fails ends the stream and releases nothing more."""
    offset = 0
    try:
        yield _event(first, watch)
        offset = first.offset
        async for event in events:
            yield _event(event, watch)
            offset = event.offset
    except GatewayError as error:
        yield _form("failed", {"offset": offset, **error.envelope()})


def _event(event: Event, watch: Watch) -> bytes:
    match event:
        case Released(text, offset):
            return _form("released", {"offset": offset, "text": text})
        case Stopped(offset, severity, categories, window, verdict):
            found = {"severity": severity, "harm_categories": list(categories), "window": list(window)}
            found |= {"unsafe_probability": round(verdict.unsafe_probability, 6)}
            return _form("stopped", {"offset": offset, **found, **watch.told()})
        case Failed(offset, reason, status):
            return _form("failed", {"offset": offset, **RequestError(status, reason).envelope()})
        case Done(offset):
            return _form("done", {"offset": offset, **watch.told()})


def _form(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


async def _lines(request: Request, limits: Limits) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the objects of a body in lines, each as soon as its line is complete."""
    size, rest = 0, b""
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(limits.body_seconds):
                chunk = await anext(stream, None)
        except TimeoutError as exc:
            raise RequestError(408, f"nothing came for {limits.body_seconds:g} s") from exc
        if chunk is None:
            break
        size += len(chunk)
        if size > limits.max_request_bytes:
            raise too_large(limits)
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line.strip():
                yield as_object(line)
    if rest.strip():
        yield as_object(rest)


async def _deltas(lines: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    async for line in lines:
        yield parse(Delta, line).delta


async def _each(texts: Sequence[str] | None) -> AsyncIterator[str]:
    for text in texts or ():
        yield text
