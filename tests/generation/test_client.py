"""The settings of a server, the connection to it, and its replies."""

import asyncio
import json
from typing import Any

import pytest

from equipoise.config import load_config
from equipoise.errors import ConfigError
from equipoise.generation.client import Client, EndpointConfig, retry_after
from equipoise.generation.replies import Answer, FailedError, assemble, read_answer

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}


def post(server: Any, key: str | None = None, **settings: Any) -> Any:
    async def once() -> Any:
        async with Client(EndpointConfig(url=server.url, **settings), key) as client:
            return await client.post(BODY)

    return asyncio.run(once())


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("https://host/v1/", "https://host/v1"),
        ("https://host/openai/v2", "https://host/openai/v2"),
    ],
)
def test_the_address_is_the_base_of_the_protocol(given: str, base: str) -> None:
    assert EndpointConfig(url=given).url == base


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("url=localhost:8000", "url: expected an address such as http://localhost:8000/v1, got"),
        ("url=http://me:secret@host/v1", "url: holds a name, a password or a query"),
        ("url=http://host/v1?key=secret", "url: holds a name, a password or a query"),
        ("concurrency=0", "concurrency: .*got 0"),
        ("tries=0", "tries: .*got 0"),
        ("timeout_seconds=0", "timeout_seconds: .*got 0"),
        ("extra={n: 2}", "extra: 'n' is set by the sampling and the endpoint"),
        ("concurency=3", r"concurency: no such setting \(did you mean 'concurrency'\?\)"),
        ("price.prompt=-1", "price.prompt: .*got -1"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(EndpointConfig, overrides=["url=http://host/v1", override])


def test_the_key_is_sent_and_shown_nowhere(server: Any) -> None:
    key = "sk-a-very-secret-key"
    server.forever = {"*": f"401 bad key {key}"}
    with pytest.raises(FailedError) as raised:
        post(server, key)
    assert server.headers[0]["Authorization"] == f"Bearer {key}"
    assert raised.value.reason == "status 401: bad key ***"


def test_an_address_with_a_password_in_it_is_not_shown() -> None:
    with pytest.raises(ConfigError) as raised:
        EndpointConfig(url="http://me:secret@host/v1")
    assert "secret" not in str(raised.value)


def test_without_a_key_none_is_sent(server: Any) -> None:
    post(server)
    assert "Authorization" not in server.headers[0]


def test_a_proxy_of_the_environment_does_not_stand_before_loopback(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert read_answer(post(server)).text == "a greedy"
    elsewhere = EndpointConfig(url="http://model.invalid/v1")

    async def once() -> Any:
        async with Client(elsewhere, None) as client:
            return await client.post(BODY)

    with pytest.raises(FailedError, match="ConnectError"):  # by the proxy: the name was not looked up
        asyncio.run(once())


def test_who_gets_no_connection_in_time_is_told_to_come_again(server: Any) -> None:
    server.delay = 1.0

    async def both() -> list[Any]:
        settings = EndpointConfig(url=server.url, concurrency=1)
        async with Client(settings, None, queue_seconds=0.1) as client:
            return await asyncio.gather(client.post(BODY), client.post(BODY), return_exceptions=True)

    answered, failed = sorted(asyncio.run(both()), key=lambda one: isinstance(one, FailedError))
    assert read_answer(answered).text == "a greedy"
    assert (failed.status, failed.retry, failed.after) == (429, True, 1.0)


def test_a_stream_is_the_same_answer_asked_for_or_not(server: Any) -> None:
    plain = read_answer(post(server))
    server.streams = True
    assert read_answer(post(server)) == plain == Answer("a greedy", None, 7, 3)


def test_a_redirect_is_not_followed(server: Any) -> None:
    server.forever = {"*": "302 elsewhere"}
    with pytest.raises(FailedError, match="status 302") as raised:
        post(server)
    assert not raised.value.retry


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), ("0.5", 0.5), ("-2", 0.0), ("nan", None), ("inf", 600.0), ("9999", 600.0), ("soon", None)],
)
def test_how_long_to_wait(value: str, seconds: float | None) -> None:
    assert retry_after(value, now=0.0) == seconds


MESSAGE = {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"choices": [{"message": MESSAGE}]}, Answer("yes")),
        ({"choices": [{"message": {"content": ""}}]}, Answer("")),  # a model may say nothing
        ({"choices": [{"message": {"content": None, "refusal": "No."}}]}, Answer("No.")),
        (
            {"choices": [{"message": MESSAGE}], "usage": {"prompt_tokens": 4, "completion_tokens": 2}},
            Answer("yes", None, 4, 2),
        ),
        ({"choices": [{"message": MESSAGE}], "usage": {"prompt_tokens": "4"}}, Answer("yes")),
        ({"choices": [{"message": MESSAGE}], "usage": {"completion_tokens": -1}}, Answer("yes")),
        ({"choices": [{"message": MESSAGE, "logprobs": {"content": []}}]}, Answer("yes")),
        (
            {
                "choices": [
                    {
                        "message": MESSAGE,
                        "logprobs": {"content": [{"top_logprobs": [{"token": "y", "logprob": -0.5}]}]},
                    }
                ]
            },
            Answer("yes", first_token=(("y", -0.5),)),
        ),
    ],
)
def test_what_a_reply_says(reply: Any, expected: Answer) -> None:
    assert read_answer(reply) == expected


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"choices": None},
        {"choices": []},
        {"choices": ["yes"]},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": ["yes"]}}]},
    ],
)
def test_a_reply_without_an_answer_is_a_failure_worth_another_try(reply: Any) -> None:
    with pytest.raises(FailedError) as raised:
        read_answer(reply)
    assert raised.value.retry


def stream(*chunks: Any) -> Any:
    async def events() -> Any:
        for chunk in chunks:
            yield chunk if isinstance(chunk, str) else json.dumps(chunk)

    return asyncio.run(assemble(events()))


def delta(text: str | None, finish: str | None = None) -> Any:
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish}]}


def test_a_stream_ends_with_a_reason_or_a_mark() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    for chunks in (
        [delta("ye"), delta("s"), delta(None, "stop"), usage],
        [delta("ye"), delta("s"), usage, "[DONE]", "what comes after is not read"],
    ):
        assert read_answer(stream(*chunks)) == Answer("yes", None, 1, 2)


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([delta("ye")], "the stream was cut off"),
        ([], "the stream was cut off"),
        ([delta("ye"), '{"choices": [{"de'], "the reply is not JSON"),
        ([delta("ye"), "[1]"], "the reply is no JSON object"),
        ([delta("ye"), {"error": "out of memory"}], "the reply is an error: out of memory"),
        ([delta("ye"), {"error": {"message": "out of\nmemory"}}], "the reply is an error: out of memory"),
    ],
)
def test_a_stream_that_breaks_off_is_a_failure(chunks: Any, reason: str) -> None:
    with pytest.raises(FailedError) as raised:
        stream(*chunks)
    assert (raised.value.reason, raised.value.retry) == (reason, True)
