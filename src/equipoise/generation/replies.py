"""What a server's reply says: the answer in it, or why there is none.

Nothing is trusted: a reply that is not as the protocol has it is a failure that is worth another try.
"""

import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

Reply = dict[str, Any]
"""A chat completion as the protocol has it, `{"choices": [...], "usage": {...}}`."""


class Answer(NamedTuple):
    """One response, or the reason why it is missing; and what the server counted."""

    text: str | None
    error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token: tuple[tuple[str, float], ...] = ()
    """The likeliest first tokens with their log-probabilities in nats, where these were asked for."""
    guard: dict[str, Any] | None = None
    """What a guard that chose this answer found."""


class FailedError(Exception):
    """A request that brought no answer."""

    def __init__(
        self, reason: str, *, retry: bool = True, status: int | None = None, after: float | None = None
    ) -> None:
        """Hold the reason, whether another try may help, the HTTP status and the seconds asked to wait."""
        super().__init__()
        self.reason, self.retry, self.status, self.after = reason, retry, status, after

    def __str__(self) -> str:
        """Return the reason."""
        return self.reason

    @property
    def is_about_server(self) -> bool:
        """Whether it may be the server that fails, and not this one request."""
        return self.retry or self.status in {401, 402, 403, 404}


def parse_reply(raw: bytes | str) -> Reply:
    """Return the JSON object of a reply; anything else raises FailedError."""
    try:
        reply = json.loads(raw)
    except ValueError as exc:
        raise FailedError("the reply is not JSON") from exc
    if not isinstance(reply, dict):
        raise FailedError("the reply is no JSON object")
    if reply.get("error"):
        raise FailedError(f"the reply is an error{_said(reply)}")
    return reply


def whole_text(text: str) -> str:
    """Return a text with `?` for half a surrogate pair, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def first_choice(reply: Reply) -> dict[str, Any]:
    """Return the first choice of a reply; one without choices raises FailedError."""
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise FailedError("the reply has no choices")
    return choices[0]


def read_answer(reply: Reply) -> Answer:
    """Return the answer of a reply; one without content raises FailedError.

    A refusal that a server keeps apart from the content is what the model said, and so is the answer.
    """
    choice = first_choice(reply)
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    texts = [t for t in (message.get("content"), message.get("refusal")) if isinstance(t, str)]
    if not texts:
        raise FailedError(f"the reply has no content (finish_reason {choice.get('finish_reason')!r:.40})")
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        text=whole_text(texts[0]),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        first_token=first_token(choice),
    )


def first_token(choice: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """Return the likeliest first tokens of a choice and their log-probabilities; empty where it has none."""
    try:
        listed = choice["logprobs"]["content"][0]["top_logprobs"]
        return tuple((str(entry["token"]), float(entry["logprob"])) for entry in listed)
    except (KeyError, IndexError, TypeError, ValueError):
        return ()


async def assemble(events: AsyncIterator[str]) -> Reply:
    """Make one reply of the data of a stream's events; a stream that was cut off raises FailedError."""
    texts: list[str] = []
    reply: Reply = {}
    finish = logprobs = None
    is_whole = False
    async for data in events:
        if data.strip() == "[DONE]":
            is_whole = True
            break
        chunk = parse_reply(data)
        reply["usage"] = chunk.get("usage") or reply.get("usage")
        if not chunk.get("choices"):
            continue
        choice = first_choice(chunk)
        delta = choice.get("delta")
        if isinstance(delta, dict) and isinstance(delta.get("content"), str):
            texts.append(delta["content"])
        logprobs = logprobs or choice.get("logprobs")
        if choice.get("finish_reason"):
            finish, is_whole = choice["finish_reason"], True
    if not is_whole:
        raise FailedError("the stream was cut off")
    choice = {"message": {"content": "".join(texts)}, "finish_reason": finish, "logprobs": logprobs}
    return {**reply, "choices": [choice]}


def message_of(raw: bytes) -> str:
    """Return what an error reply says, on one short line, as `: TEXT`, or an empty text."""
    try:
        reply = json.loads(raw)
    except ValueError:
        return ""
    return _said(reply) if isinstance(reply, dict) else ""


def _said(reply: dict[str, Any]) -> str:
    error = reply.get("error")
    said = error.get("message") if isinstance(error, dict) else error
    said = said or reply.get("detail") or reply.get("message")
    if isinstance(said, list | dict):
        said = json.dumps(said, ensure_ascii=False)
    line = " ".join(str(said or "").split())
    return f": {line[:200]}" if line else ""


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
