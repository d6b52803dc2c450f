"""`/v1/chat/completions` and `/v1/completions`: the guard as Llama Guard answers, or the server behind it.

Asked as a model it says `safe`, or `unsafe` and a line of hazard codes, whatever `max_tokens` is: that is
what NeMo Guardrails and others that run a guard as a language model read. The text is taken as it stands;
a template with instructions around it would be judged with it. With an upstream server every other model
name goes there through the gateway.
"""

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel

from equipoise.models.windows import TextPair
from equipoise.moderation.chat import ChatRequest, Chunk, Reply, read_request, sse
from equipoise.moderation.gateway import Gateway
from equipoise.moderation.policies import Policy
from equipoise.moderation.server.answers import (
    Watch,
    guarded,
    judge,
    pair_of,
    read_whole,
    service_of,
    worst,
)
from equipoise.moderation.server.bodies import described, parse, read_object
from equipoise.moderation.server.engine import Engine, Judged
from equipoise.moderation.server.errors import RequestError
from equipoise.records import Message

router = APIRouter()


class CompletionRequest(BaseModel):
    """Texts to judge, each by itself; other fields of the protocol change nothing."""

    model: str = ""
    prompt: str | list[str]
    stream: Literal[False] | None = None
    policy: str | None = None


@router.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    """Answer as a guard, or through the gateway."""
    service = service_of(request)
    body = await read_object(request, service.settings.limits)
    named = body.pop("policy", None)
    asked = read_request(body)
    gateway = service.settings.gateway
    if gateway is None or asked.model == service.settings.name:
        return await _as_guard(request, asked, service.choice(named))
    watch = Watch(request, service.choice(named, allowed=gateway.policy_by_request))
    through = Gateway(request.app.state.upstream, watch, gateway)
    if not asked.is_stream:
        return JSONResponse(_with(watch, await through.complete(asked)))
    return await streamed(_all_with(watch, through.stream(asked)))


@router.post("/v1/completions", openapi_extra=described(CompletionRequest))
async def completions(request: Request) -> JSONResponse:
    """Answer as a guard; completions of an upstream server are not offered."""
    service = service_of(request)
    body = parse(CompletionRequest, await read_object(request, service.settings.limits))
    if service.settings.gateway is not None and body.model != service.settings.name:
        raise RequestError(404, "model: only chat goes to the server behind", param="model")
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise RequestError(400, "prompt: empty", param="prompt")
    engine = service.ready_engine
    texts = [TextPair(prompt, None) for prompt in prompts]
    found = read_whole(await judge(request, texts, service.choice(body.policy)))
    choices = [
        {"index": i, "text": said(one, engine), "logprobs": None, "finish_reason": "stop"}
        for i, one in enumerate(found)
    ]
    answer: dict[str, Any] = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion"}
    answer |= {"created": int(time.time()), "model": body.model, "choices": choices}
    return JSONResponse({**answer, "guard": [guarded(one) for one in found]})


def said(found: Judged, engine: Engine) -> str:
    """Return a verdict as Llama Guard puts it; without a hazard code there is no second line."""
    if found.verdict.is_safe:
        return "safe"
    codes = ",".join(engine.mlcommons.flagged(found.verdict))
    return f"unsafe\n{codes}" if codes else "unsafe"


async def streamed(chunks: AsyncGenerator[Chunk, None]) -> Response:
    """Return chunks as a stream; what fails before the first is an error of HTTP."""
    first = await anext(chunks)

    async def all_of_them() -> AsyncIterator[Chunk]:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    return StreamingResponse(sse(all_of_them()), media_type="text/event-stream")


def _with(watch: Watch, chunk: Chunk) -> Chunk:
    """Put what goes beside a verdict into the field of the guard, where a chunk has one."""
    return {**chunk, "guard": {**chunk["guard"], **watch.told()}} if "guard" in chunk else chunk


async def _all_with(watch: Watch, chunks: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Chunk, None]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield _with(watch, chunk)


async def _as_guard(request: Request, asked: ChatRequest, policy: Policy) -> Response:
    """Judge the last turn: an answer in its context; a question in its context and by itself."""
    engine = service_of(request).ready_engine
    messages = tuple(Message.model_validate(message) for message in asked.messages)
    pair = pair_of(messages)
    asks = [text for text in asked.prompts() if text.prompt.strip()]
    found = await judge(request, asks if pair.response is None else [pair], policy)
    one = worst(read_whole(found, together=True))
    reply = Reply(asked.model)
    if not asked.is_stream:
        return JSONResponse(reply.whole(said(one, engine), "stop", guarded(one)))

    async def chunks() -> AsyncGenerator[Chunk, None]:
        yield reply.begin()
        yield reply.piece(said(one, engine))
        yield reply.end("stop", guarded(one))

    return await streamed(chunks())
