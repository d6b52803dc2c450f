"""Chat completions as the OpenAI protocol has them: what a request asks, and the replies to it.

What a guard does not read is not let through: a request that brings more than messages of text and settings
of the sampling (tools, images, documents, log-probabilities ...) is refused, and a reply holds text that was
released, counts of tokens and nothing else of the upstream's.
"""

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, NamedTuple

from pydantic import JsonValue

from equipoise.generation.replies import FailedError, first_choice, parse_reply
from equipoise.models.windows import TextPair
from equipoise.protocols import Messages
from equipoise.records import Message, text_of

Chunk = dict[str, Any]
"""A JSON object of the protocol: a piece of a stream, or a whole completion."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_SAMPLING = {
    "frequency_penalty",
    "logit_bias",
    "max_completion_tokens",
    "max_tokens",
    "min_p",
    "presence_penalty",
    "reasoning_effort",
    "repetition_penalty",
    "seed",
    "stop",
    "temperature",
    "top_k",
    "top_p",
    "user",
}
"""Fields that go to the upstream as they are."""
_FINISHES = {"stop", "length", "content_filter"}
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


class GatewayError(Exception):
    """A request that gets no answer; where some of it went out already, no more follows."""

    def __init__(self, status: int, message: str, *, after: float | None = None) -> None:
        """Hold the HTTP status, what is wrong (without a user's text) and the seconds asked to wait."""
        super().__init__(message)
        self.status, self.after = status, after

    def envelope(self) -> Chunk:
        """Return the error as the protocol has it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.status}}


class ChatRequest(NamedTuple):
    """A request for one answer in text."""

    model: str
    messages: Messages
    """Roles and texts, nothing else: what is judged is what the upstream gets."""
    fields: dict[str, JsonValue]
    """What else the request says, for the upstream."""
    is_stream: bool
    wants_usage: bool
    """Whether the stream ends with the upstream's count of tokens."""

    @property
    def context(self) -> str:
        """The conversation as one text, in which the answer is judged."""
        return text_of(tuple(Message.model_validate(message) for message in self.messages))

    def prompts(self) -> list[TextPair]:
        """Return what is to be judged before an answer: the conversation, and its last user turn alone."""
        last = next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), self.context)
        return [TextPair(text, None) for text in dict.fromkeys((self.context, last))]


def read_request(body: Mapping[str, Any]) -> ChatRequest:
    """Return what a chat request asks; what cannot be judged, or not be read, raises GatewayError 400."""
    model, given = body.get("model"), body.get("messages")
    if not isinstance(model, str) or not model:
        raise GatewayError(400, "model: expected a name")
    if not isinstance(given, list) or not given:
        raise GatewayError(400, "messages: expected a list of messages")
    if body.get("n") not in (None, 1):
        raise GatewayError(400, "n: there is one choice to an answer here; expected 1")
    ours = {"model", "messages", "stream", "stream_options", "n", *_SAMPLING}
    for name in sorted(name for name, value in body.items() if value and name not in ours):
        raise GatewayError(400, f"{name:.40}: not taken here; expected messages and settings of the sampling")
    try:
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as exc:
        raise GatewayError(400, "the request holds a number or a text that no JSON can carry") from exc
    if not isinstance(body.get("stream") or False, bool):
        raise GatewayError(400, "stream: expected true or false")
    options = body.get("stream_options") or {}
    if not isinstance(options, Mapping):
        raise GatewayError(400, "stream_options: expected an object")
    return ChatRequest(
        model,
        [_message(f"messages.{i}", message) for i, message in enumerate(given)],
        {name: value for name, value in body.items() if name in _SAMPLING},
        is_stream=bool(body.get("stream")),
        wants_usage=options.get("include_usage") is True,
    )


def _message(where: str, message: object) -> dict[str, str]:
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(message, Mapping) or not isinstance(role, str) or role not in _ROLES:
        raise GatewayError(400, f"{where}.role: expected one of {', '.join(_ROLES)}")
    for name, value in message.items():
        if value and name not in {"role", "content", "name"}:
            raise GatewayError(400, f"{where}: holds a field that is not judged; expected role and content")
    return {"role": _ROLES[role], "content": "\n".join(texts_in(where, message.get("content")))}


def texts_in(where: str, content: object) -> list[str]:
    """Return the texts of a message's content, one or several parts; others raise GatewayError 400."""
    texts = []
    for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise GatewayError(400, f"{where}.content: expected a text, or parts of type text")
        texts.append(text)
    return texts


class UpstreamText:
    """Reads the text out of an upstream's stream, and remembers how it ended."""

    def __init__(self, *, wants_usage: bool) -> None:
        """Begin before the first event; with `wants_usage` it reads on to the count of tokens."""
        self.finish_reason = "stop"
        self.usage: dict[str, JsonValue] | None = None
        self._wants_usage = wants_usage

    async def texts(self, events: AsyncIterator[str]) -> AsyncGenerator[str, None]:
        """Yield the text as it comes; a stream that is malformed or cut off raises FailedError."""
        is_whole = False
        async for data in events:
            if data.strip() == "[DONE]":
                return
            chunk = parse_reply(data)
            self.usage = usage_of(chunk) or self.usage
            if not chunk.get("choices"):
                if is_whole and self.usage:
                    return
                continue
            choice = first_choice(chunk)
            if not is_whole:
                yield _text(choice)
            if choice.get("finish_reason"):
                is_whole, self.finish_reason = True, finish_of(choice)
                if self.usage or not self._wants_usage:
                    return
        if not is_whole:
            raise FailedError("the stream was cut off")


def _text(choice: Mapping[str, Any]) -> str:
    delta = choice.get("delta") or {}
    if not isinstance(delta, Mapping):
        raise FailedError("the stream holds a piece that is no text")
    said = [delta.get(name) for name in ("content", "refusal")]
    if not all(text is None or isinstance(text, str) for text in said):
        raise FailedError("the stream holds a piece that is no text")
    return "".join(text for text in said if text)


def finish_of(choice: Mapping[str, Any]) -> str:
    """Return why an upstream ended, `stop` where it gives a reason that no text has."""
    reason = choice.get("finish_reason")
    return reason if isinstance(reason, str) and reason in _FINISHES else "stop"


def usage_of(reply: Mapping[str, Any]) -> dict[str, JsonValue] | None:
    """Return the upstream's counts of tokens, None where it gives none."""
    usage = reply.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    return {name: usage[name] for name in _COUNTS if isinstance(usage.get(name), int)} or None


class Reply:
    """Forms the replies to one request, under one id."""

    def __init__(self, model: str) -> None:
        """Begin; `model` is the name that answers."""
        self._shared = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, text: str, finish: str, guard: Chunk, usage: dict[str, JsonValue] | None = None) -> Chunk:
        """Return a whole completion."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        counted = {} if usage is None else {"usage": usage}
        return self._form("chat.completion", [choice], **counted, guard=guard)

    def begin(self) -> Chunk:
        """Return the first chunk of a stream, which names the role."""
        return self._piece({"role": "assistant", "content": ""})

    def piece(self, text: str) -> Chunk:
        """Return a chunk of text."""
        return self._piece({"content": text})

    def end(self, finish: str, guard: Chunk) -> Chunk:
        """Return the chunk that says how the answer ended, and what the guard found."""
        return {**self._piece({}, finish), "guard": guard}

    def count(self, usage: dict[str, JsonValue]) -> Chunk:
        """Return the chunk with the count of tokens, which comes last where it was asked for."""
        return self._form("chat.completion.chunk", [], usage=usage)

    def _piece(self, delta: Chunk, finish: str | None = None) -> Chunk:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return self._form("chat.completion.chunk", [choice])

    def _form(self, kind: str, choices: list[Chunk], **more: JsonValue) -> Chunk:
        return {**self._shared, "object": kind, "choices": choices, **more}


async def sse(chunks: AsyncIterator[Chunk]) -> AsyncIterator[bytes]:
    """Yield a stream's chunks as server-sent events; one that fails ends in an error and has no [DONE]."""
    try:
        async for chunk in chunks:
            yield _event(json.dumps(chunk))
    except GatewayError as error:
        yield _event(json.dumps(error.envelope()))
    else:
        yield _event("[DONE]")


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
