"""A guard in front of a server of the OpenAI chat protocol, without an HTTP framework.

The prompt is judged before the server is asked, and the answer before it goes out: a stream by `streaming`,
a whole answer at once. Whatever goes wrong, on the server's side or on the guard's, is a GatewayError and
never an answer that was not judged. What is longer than the guard reads at once is judged piece by piece, to
its end. A policy that blocks nothing (shadow mode) is the judge's affair:
its verdicts say safe, whatever they say beside it.

    async with Client(settings.upstream, read_key(settings.upstream)) as client:
        gateway = Gateway(client, judge, settings)
        async for chunk in gateway.stream(read_request(body)): ...
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from equipoise.config import Config, IsAside
from equipoise.generation.client import Client, EndpointConfig
from equipoise.generation.replies import FailedError, first_choice, read_answer
from equipoise.models.windows import TextPair
from equipoise.moderation.chat import (
    ChatRequest,
    Chunk,
    GatewayError,
    Reply,
    UpstreamText,
    finish_of,
    usage_of,
)
from equipoise.moderation.guarded import REFUSAL_TEXT
from equipoise.moderation.streaming import (
    FAILURES,
    Done,
    Event,
    Failed,
    Released,
    Stopped,
    StreamConfig,
    guard_stream_async,
    is_sound,
)
from equipoise.protocols import Messages, Verdict

Judge = Callable[[Sequence[TextPair]], Awaitable[Sequence[Verdict]]]
"""Gives one verdict per text, by the policy that the caller has chosen. It may raise a GatewayError of its
own, for example 429 where it is overloaded."""

Reader = Callable[[Sequence[str]], Awaitable[Sequence[Verdict]]]
"""Gives one verdict per window of a text."""

_MENDABLE = {400, 404, 413, 422}
"""Statuses of the upstream that tell the client what is wrong with its request."""


class UpstreamConfig(EndpointConfig):
    """The server behind a gateway, and how to treat it."""

    concurrency: Annotated[int, Field(ge=1), IsAside()] = 64
    """Answers that it writes at a time; who asks for more is told to come again."""


class GatewayConfig(Config):
    """Settings of a gateway."""

    upstream: UpstreamConfig
    policy_by_request: bool = False
    """Whether a request may name the policy that judges it: whoever is guarded could take a weak one."""
    on_unsafe_prompt: Literal["refuse", "redirect"] = "refuse"
    redirect_model: str | None = None
    """Name of another model of the upstream's, which answers unsafe prompts."""
    redirect_system: str | None = None
    """Instruction that is put before the conversation of an unsafe prompt."""
    refusal_text: str = REFUSAL_TEXT
    """Said in place of an answer."""
    stream: StreamConfig = StreamConfig()

    @model_validator(mode="after")
    def _redirects_somewhere(self) -> Self:
        has_place = self.redirect_model is not None or self.redirect_system is not None
        if has_place != (self.on_unsafe_prompt == "redirect"):
            raise ValueError(
                "on_unsafe_prompt: redirect takes redirect_model, redirect_system or both, "
                f"and refuse takes neither, got {self.on_unsafe_prompt}"
            )
        return self


class _Way(NamedTuple):
    """What becomes of a prompt."""

    action: Literal["passed", "refused", "redirected"]
    verdict: Verdict
    """On the prompt; the worst one."""
    request: ChatRequest
    """What the upstream is asked."""


class Gateway:
    """Answers chat requests by an upstream server, as far as the guard lets it."""

    def __init__(self, client: Client, judge: Judge, settings: GatewayConfig) -> None:
        """Hold an open client, and the guard."""
        self.settings = settings
        self._client, self._judge = client, judge

    async def complete(self, request: ChatRequest) -> Chunk:
        """Return a whole chat completion; an unsafe prompt or answer gets the text of a refusal.

        Raises:
            GatewayError: there is no answer, or no judgement.
        """
        way = await self._decide(request)
        reply = Reply(way.request.model)
        if way.action == "refused":
            return reply.whole(self.settings.refusal_text, "content_filter", _found(way, None))
        with _upstream_failures():
            got = await self._client.post(self._body(way.request))
            text, finish = read_answer(got).text or "", finish_of(first_choice(got))
        verdict = await self._judge_whole(request, text)
        if not verdict.is_safe:
            text, finish = self.settings.refusal_text, "content_filter"
        return reply.whole(text, finish, _found(way, verdict), usage_of(got))

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        """Yield the chunks of a chat completion; each holds text that was judged.

        Nothing is yielded before there is something to say, so that an error that comes first can be a
        status of HTTP.

        Raises:
            GatewayError: there is no answer, or no judgement; what follows is not known to be safe.
        """
        way = await self._decide(request)
        reply = Reply(way.request.model)
        if way.action == "refused":
            yield reply.begin()
            yield reply.piece(self.settings.refusal_text)
            yield reply.end("content_filter", _found(way, None))
            return
        upstream = UpstreamText(wants_usage=request.wants_usage)
        body = self._body(way.request, stream=True)
        with _upstream_failures():
            async with (
                aclosing(self._client.stream(body)) as events,
                aclosing(upstream.texts(events)) as texts,
            ):
                has_begun, reader = False, self._reader(request.context)
                async for event in guard_stream_async(texts, reader, self.settings.stream):
                    chunk = _chunk(event, reply, upstream, way)
                    if not has_begun:
                        has_begun = True
                        yield reply.begin()
                    yield chunk
        if request.wants_usage and upstream.usage is not None:
            yield reply.count(upstream.usage)

    async def _decide(self, request: ChatRequest) -> _Way:
        verdicts = list(await self._verdicts(request.prompts()))
        if all(verdict.is_safe for verdict in verdicts):  # the conversation is first, and holds the last turn
            verdicts[0] = await self._read_on(request.context, verdicts[0], self._reader(None))
        worst = max(verdicts, key=lambda v: (not v.is_safe, v.severity, v.unsafe_probability))
        if worst.is_safe:
            return _Way("passed", worst, request)
        if self.settings.on_unsafe_prompt == "refuse":
            return _Way("refused", worst, request)
        elsewhere = request._replace(
            model=self.settings.redirect_model or request.model,
            messages=_instructed(request.messages, self.settings.redirect_system),
        )
        return _Way("redirected", worst, elsewhere)

    async def _verdicts(self, texts: Sequence[TextPair]) -> Sequence[Verdict]:
        try:
            verdicts = await self._judge(texts)
        except FAILURES as exc:
            raise GatewayError(503, f"the guard gave no answer ({type(exc).__name__})") from exc
        if len(verdicts) != len(texts) or not all(is_sound(verdict) for verdict in verdicts):
            raise GatewayError(503, "the guard's answer is not finite, or not whole")
        return verdicts

    async def _judge_whole(self, request: ChatRequest, text: str) -> Verdict:
        (verdict,) = await self._verdicts([TextPair(request.context, text)])
        return await self._read_on(text, verdict, self._reader(request.context))

    async def _read_on(self, text: str, verdict: Verdict, reader: Reader) -> Verdict:
        """Judge what the guard did not read; a text that is too long for it goes through as a stream does."""
        if verdict.is_safe and verdict.truncated:
            async for event in guard_stream_async(_once(text), reader, self.settings.stream):
                if isinstance(event, Failed):
                    raise GatewayError(event.status, event.reason)
                if isinstance(event, Stopped):
                    return event.verdict
        return verdict

    def _reader(self, context: str | None) -> Reader:
        """Judge windows of an answer in its context, or without one those of a prompt."""

        async def judge(windows: Sequence[str]) -> Sequence[Verdict]:
            pairs = [TextPair(w, None) if context is None else TextPair(context, w) for w in windows]
            return await self._judge(pairs)

        return judge

    def _body(self, request: ChatRequest, *, stream: bool = False) -> dict[str, Any]:
        body: dict[str, Any] = {**request.fields, **self.settings.upstream.extra}
        body |= {"model": request.model, "messages": request.messages, "stream": stream}
        if stream and request.wants_usage:
            body["stream_options"] = {"include_usage": True}
        return body


async def _once(text: str) -> AsyncIterator[str]:
    yield text


def _instructed(messages: Messages, instruction: str | None) -> Messages:
    """Put an instruction first; many chat templates take no second system message."""
    if instruction is None:
        return messages
    if messages[0]["role"] == "system":
        both = f"{instruction}\n\n{messages[0]['content']}"
        return [{"role": "system", "content": both}, *messages[1:]]
    return [{"role": "system", "content": instruction}, *messages]


def _chunk(event: Event, reply: Reply, upstream: UpstreamText, way: _Way) -> Chunk:
    match event:
        case Released(text):
            return reply.piece(text)
        case Stopped():
            return reply.end("content_filter", _found(way, event.verdict))
        case Done():
            return reply.end(upstream.finish_reason, _found(way, None, was_answered=True))
        case Failed():
            raise GatewayError(event.status, event.reason)


def _found(way: _Way, answer: Verdict | None, *, was_answered: bool = False) -> Chunk:
    """Return what the guard did, beside the fields of the protocol."""
    stopped = answer is not None and not answer.is_safe
    worst = answer if answer is not None and stopped else way.verdict
    return {
        "prompt": way.action,
        "answer": "stopped" if stopped else "passed" if was_answered or answer is not None else None,
        "severity": worst.severity,
        "harm_categories": list(worst.categories),
        "unsafe_probability": round(worst.unsafe_probability, 6),
    }


@contextmanager
def _upstream_failures() -> Iterator[None]:
    """Make a GatewayError of a request that the upstream did not answer."""
    try:
        yield
    except FailedError as failed:
        if failed.status in _MENDABLE:
            raise GatewayError(failed.status, f"upstream: {failed.reason}") from failed
        if failed.status == 429:
            raise GatewayError(429, "upstream: too many requests", after=failed.after) from failed
        status = 504 if isinstance(failed.__cause__, TimeoutError) else 502
        reason = failed.reason.partition(":")[0]  # not what the upstream says, which nobody judged
        raise GatewayError(status, f"upstream: {reason}", after=failed.after) from failed
