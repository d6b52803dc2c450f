"""Chat requests: what is taken, what is refused, and that no request is a crash."""

import json
from math import nan
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from equipoise.models.windows import TextPair
from equipoise.moderation.chat import GatewayError, read_request

USER = {"role": "user", "content": "Bread?"}


def request(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [USER], **more}


def test_a_request_is_its_messages_and_settings() -> None:
    reply = {
        "role": "assistant",
        "content": "Hello.",
        "refusal": None,
        "tool_calls": None,
        "annotations": [],
        "audio": None,
    }
    messages = [{"role": "user", "content": "Hi", "name": "A"}, reply, USER]
    extra = {"temperature": 0.5, "seed": 0, "stop": ["\n"], "logprobs": False, "tools": [], "n": 1}
    found = read_request(request(messages=messages, stream=True, **extra))
    assert found.messages == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        USER,
    ]
    assert found.fields == {"temperature": 0.5, "seed": 0, "stop": ["\n"]}
    assert (found.model, found.is_stream, found.wants_usage) == ("tiny", True, False)
    assert found.prompts() == [
        TextPair("user: Hi\nassistant: Hello.\nuser: Bread?", None),
        TextPair("Bread?", None),
    ]


def test_one_turn_is_judged_once() -> None:
    assert read_request(request()).prompts() == [TextPair("Bread?", None)]
    alone = read_request(request(messages=[{"role": "system", "content": "Be kind."}]))
    assert alone.prompts() == [TextPair("system: Be kind.", None)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 7}, "model: expected a name"),
        ({"messages": []}, "messages: expected a list"),
        ({"messages": "Hi"}, "messages: expected a list"),
        ({"messages": ["Hi"]}, "messages.0.role: expected one of system, developer, user, assistant"),
        ({"messages": [{"role": [], "content": "Hi"}]}, "messages.0.role"),
        ({"messages": [USER, {"role": "tool", "content": "Hi"}]}, "messages.1.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: expected a text, or parts of type text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": ["Hi"]}]}, "messages.0.content"),
        (
            {"messages": [{**USER, "tool_calls": [{"id": "x"}]}]},
            "messages.0: holds a field that is not judged",
        ),
        ({"n": 2}, "n: there is one choice"),
        ({"n": []}, "n: there is one choice"),
        ({"stream": "yes"}, "stream: expected true or false"),
        ({"stream_options": [1]}, "stream_options: expected an object"),
        ({"tools": [{"type": "function"}]}, "tools: not taken here"),
        ({"logprobs": True}, "logprobs: not taken here"),
        ({"documents": ["x"]}, "documents: not taken here"),
        ({"x" * 100: 1}, "x" * 40 + ": not taken here"),
        ({"temperature": nan}, "the request holds a number or a text that no JSON can carry"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "the request holds a number or a text"),
        ({"stop": ["\ude00"]}, "the request holds a number or a text"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GatewayError) as raised:
        read_request({**request(), **change})
    assert raised.value.status == 400
    assert str(raised.value).startswith(message)
    assert raised.value.envelope()["error"]["type"] == "invalid_request_error"


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["model", "messages", "stream", "n", "stream_options", "stop", "tools"]
PARTS = ["role", "content", "name", "tool_calls"]


@settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(st.sampled_from(NAMES), ANY),
    st.lists(st.dictionaries(st.sampled_from(PARTS), ANY | st.just("user")), max_size=2),
)
def test_any_json_is_a_request_or_a_refusal(body: dict[str, Any], messages: list[Any]) -> None:
    for given_body in (body, {"model": "tiny", **body, "messages": messages}):
        try:
            found = read_request(given_body)
        except GatewayError:
            continue
        assert found.prompts()
        json.dumps([found.messages, found.fields], ensure_ascii=False, allow_nan=False).encode()
