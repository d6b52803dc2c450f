"""The gateway against an upstream on loopback: what is judged goes out, and nothing else ever does."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from equipoise.config import load_config
from equipoise.errors import ConfigError, ModelError
from equipoise.models.windows import TextPair
from equipoise.moderation.chat import GatewayError, read_request
from equipoise.moderation.gateway import GatewayConfig

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
HARM = "HARMFUL"
SMALL = ["stream.window=40", "stream.stride=8", "stream.hold_back=16"]
TEXT = "Mix flour, water, salt and yeast 😀, then wait until the dough has doubled. " * 3


def ask(prompt: str = "Bread?", **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": prompt}], **more}


def text_of(chunks: Sequence[Any]) -> str:
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])


def pieces(text: str, seed: int) -> list[str]:
    random = Random(seed)
    cuts = sorted(random.randint(0, len(text)) for _ in range(20)) if seed else list(range(len(text)))
    return [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]


@pytest.mark.parametrize("seed", range(4))
def test_a_harmless_stream_comes_through_unchanged(front: Any, upstream: Any, judge: Any, seed: int) -> None:
    upstream.says(*pieces(TEXT, seed))
    chunks, error = front.stream(ask(stream=True, temperature=0.5, n=1))
    assert error is None
    assert text_of(chunks) == TEXT
    assert {(c["id"], c["object"], c["model"]) for c in chunks} == {
        (chunks[0]["id"], "chat.completion.chunk", "tiny")
    }
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert chunks[-1]["guard"] == {
        "prompt": "passed",
        "answer": "passed",
        "severity": 0,
        "harm_categories": [],
        "unsafe_probability": 0.1,
    }
    assert upstream.asked == [{**ask(), "temperature": 0.5, "stream": True}]
    assert judge.read[0] == TextPair("Bread?", None)
    assert all(pair.prompt == "Bread?" and len(pair.response or "") <= 40 for pair in judge.read[1:])


@pytest.mark.parametrize("seed", range(6))
def test_a_harmful_part_that_straddles_chunks_never_comes_through(
    front: Any, upstream: Any, seed: int
) -> None:
    upstream.says(*pieces(f"{TEXT}{HARM}{TEXT}", seed))
    upstream.script = [*upstream.script[:-1], 5.0]
    chunks, error = front.stream(ask(stream=True))
    assert error is None
    assert text_of(chunks) == TEXT[: len(text_of(chunks))]
    assert len(text_of(chunks)) > len(TEXT) - 40
    assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"
    assert chunks[-1]["guard"] == {
        "prompt": "passed",
        "answer": "stopped",
        "severity": 1,
        "harm_categories": ["Cybercrime"],
        "unsafe_probability": 0.9,
    }


def test_a_stop_hangs_up_on_the_upstream(front: Any, upstream: Any) -> None:
    upstream.says(HARM, TEXT)
    upstream.script = [*upstream.script[:3], 5.0]

    async def run() -> None:
        async with front.gateway() as gateway:
            async for _ in gateway.stream(read_request(ask(stream=True))):
                pass
            async with asyncio.timeout(4):
                while not upstream.was_left:
                    await asyncio.sleep(0.01)

    asyncio.run(run())
    assert upstream.was_left


def test_tokens_are_counted_where_they_were_asked_for(front: Any, upstream: Any) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    upstream.says("Flour.", usage={**usage, "prompt_text": HARM})
    options = {"include_usage": True}
    chunks, error = front.stream(ask(stream=True, stream_options=options))
    assert error is None
    assert upstream.asked[0]["stream_options"] == options
    assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], usage)
    assert text_of(chunks) == "Flour."
    chunks, _ = front.stream(ask(stream=True))
    assert not any("usage" in chunk for chunk in chunks)


def test_an_unsafe_prompt_is_refused_and_not_sent_on(front: Any, upstream: Any) -> None:
    guard = {
        "prompt": "refused",
        "answer": None,
        "severity": 1,
        "harm_categories": ["Cybercrime"],
        "unsafe_probability": 0.9,
    }
    chunks, error = front.stream(ask(f"a {HARM} one", stream=True), "refusal_text=No.")
    assert error is None
    assert text_of(chunks) == "No."
    assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"
    assert chunks[-1]["guard"] == guard
    answer = front.complete(ask(f"a {HARM} one"), "refusal_text=No.")
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "No.", "refusal": None}
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    assert answer["guard"] == guard
    assert upstream.asked == []


def test_the_last_turn_is_judged_alone_too(front: Any, upstream: Any, judge: Any) -> None:
    turns = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "text", "text": "Bread"}, {"type": "text", "text": "rolls?"}]},
    ]
    upstream.answers("Flour.")
    front.complete({"model": "tiny", "messages": turns})
    context = "system: Be kind.\nuser: Hi\nassistant: Hello.\nuser: Bread\nrolls?"
    assert judge.read == [
        TextPair(context, None),
        TextPair("Bread\nrolls?", None),
        TextPair(context, "Flour."),
    ]
    assert upstream.asked[0]["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bread\nrolls?"},
    ]


def test_an_unsafe_prompt_goes_to_another_model_under_another_instruction(front: Any, upstream: Any) -> None:
    redirect = ["on_unsafe_prompt=redirect", "redirect_model=careful", "redirect_system=Decline kindly."]
    upstream.says("Flour. ", HARM)
    body = ask(f"a {HARM} one", stream=True)
    chunks, error = front.stream(body, *redirect)
    assert error is None
    assert upstream.asked[0]["model"] == chunks[0]["model"] == "careful"
    system = {"role": "system", "content": "Decline kindly."}
    assert upstream.asked[0]["messages"] == [system, *body["messages"]]
    assert HARM not in text_of(chunks)  # the answer is judged all the same
    assert (chunks[-1]["guard"]["prompt"], chunks[-1]["guard"]["answer"]) == ("redirected", "stopped")

    upstream.answers("No, but here is bread.")
    body["messages"].insert(0, {"role": "system", "content": "Be brief."})
    answer = front.complete({**body, "stream": False}, *redirect[::2])
    assert answer["choices"][0]["message"]["content"] == "No, but here is bread."
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert (answer["guard"]["prompt"], answer["guard"]["answer"]) == ("redirected", "passed")
    assert upstream.asked[1]["model"] == "tiny"
    first = {"role": "system", "content": "Decline kindly.\n\nBe brief."}
    assert upstream.asked[1]["messages"] == [first, *body["messages"][1:]]


def test_a_whole_answer_is_judged_whole(front: Any, upstream: Any, judge: Any) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    upstream.answers(TEXT, usage=usage)
    answer = front.complete(ask())
    assert answer["choices"][0]["message"]["content"] == TEXT
    assert answer["usage"] == usage
    assert judge.read == [TextPair("Bread?", None), TextPair("Bread?", TEXT)]
    upstream.answers(f"{TEXT}{HARM}{TEXT}")
    answer = front.complete(ask(), "refusal_text=No.")
    assert answer["choices"][0]["message"]["content"] == "No."
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    assert answer["guard"]["answer"] == "stopped"


def test_an_answer_that_the_guard_cannot_read_whole_is_read_in_windows(
    front: Any, upstream: Any, judge: Any
) -> None:
    judge.reads_chars = 40
    upstream.answers(f"{TEXT}{HARM}{TEXT}")
    assert front.complete(ask())["guard"]["answer"] == "stopped"
    upstream.answers(TEXT)
    answer = front.complete(ask())
    assert (answer["guard"]["answer"], answer["choices"][0]["message"]["content"]) == ("passed", TEXT)
    judge.fails = ModelError("x")
    with pytest.raises(GatewayError):
        front.complete(ask())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["on_unsafe_prompt=redirect"], "redirect takes redirect_model, redirect_system or both"),
        (["redirect_model=careful"], "refuse takes neither, got refuse"),
        (["stream.window=10"], "stream: window: too short"),
        (["on_unsafe_promt=refuse"], r"no such setting \(did you mean 'on_unsafe_prompt'\?\)"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(GatewayConfig, overrides=["upstream.url=http://host/v1", *overrides])
