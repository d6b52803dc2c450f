"""The gateway behind the server: chats go through, as far as the guard lets them."""

import json
from typing import Any, NamedTuple

import pytest

from equipoise.moderation.policies import Policy

CALM = "Take a long walk in the mountains. "
QUIET = Policy(name="quiet", severity={2: 0.5}, shadow=True)
CHAT = {"model": "big", "messages": [{"role": "user", "content": "Tell me of the weather."}]}


@pytest.fixture(scope="module")
def through(serve_shared: Any, upstream: Any) -> Any:
    small = {"window": 60, "stride": 10, "hold_back": 20}
    return serve_shared(gateway={"upstream": {"url": upstream.url}, "refusal_text": "No.", "stream": small})


@pytest.fixture(autouse=True)
def fresh(upstream: Any) -> None:
    upstream.pieces, upstream.asked, upstream.is_cut = [CALM] * 4, [], False


def chunks_of(answer: Any) -> list[Any]:
    return [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]


def text_in(chunks: list[Any]) -> str:
    return "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk.get("choices", ()))


class Guess(NamedTuple):
    language: str
    is_sure: bool = True


def identify(text: str) -> Guess:
    return Guess("de" if "der" in text.split() else "en")


@pytest.fixture(scope="module")
def watched(serve_shared: Any, upstream: Any) -> Any:
    """A gateway whose policy is not sure of harm, with another one in shadow."""
    policies = (Policy(name="calm", unsafe=0.9999, review=(0.9, 1.0)), QUIET)
    gateway = {"upstream": {"url": upstream.url}, "stream": {"window": 60, "stride": 10, "hold_back": 20}}
    return serve_shared(policies=policies, identify=identify, gateway=gateway)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("place", ["prompt", "answer"])
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("the tide ", {"review": False, "language": "en", "supported": True}),
        ("the harm is warm ", {"review": True, "language": "en", "supported": True}),
        ("der tide ", {"review": True, "language": "de", "supported": False}),
    ],
)
def test_what_a_person_should_know_of_prompt_and_answer_stands_beside_it(
    watched: Any, upstream: Any, *, stream: bool, place: str, said: str, expected: dict[str, Any]
) -> None:
    asked = said if place == "prompt" else "the tide "
    upstream.pieces = [CALM, CALM, said if place == "answer" else "", CALM * 2]
    body = {"model": "big", "messages": [{"role": "user", "content": asked}], "stream": stream}
    answer = watched.post("/v1/chat/completions", body)
    guard = chunks_of(answer)[-1]["guard"] if stream else answer.json()["guard"]
    assert (guard["prompt"], guard["answer"], guard["policy"]) == ("passed", "passed", "calm")
    assert guard == guard | expected
    assert guard["shadow"]["quiet"]["is_safe"] is ("harm" not in said)


def test_a_harmless_chat_goes_through_at_once_and_as_a_stream(through: Any, upstream: Any) -> None:
    whole = through.post("/v1/chat/completions", CHAT).json()
    assert whole["choices"][0]["message"]["content"] == CALM * 4
    answer = through.post("/v1/chat/completions", {**CHAT, "stream": True})
    assert text_in(chunks_of(answer)) == CALM * 4
    assert answer.text.endswith("data: [DONE]\n\n")
    assert [asked["model"] for asked in upstream.asked] == ["big", "big"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_unsafe_prompt_is_refused_and_goes_nowhere(through: Any, upstream: Any, stream: bool) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "the harm"}], "stream": stream}
    assert '"No."' in through.post("/v1/chat/completions", body).text
    assert upstream.asked == []


def test_an_unsafe_answer_stops_before_it_goes_out(through: Any, upstream: Any) -> None:
    upstream.pieces = [CALM, CALM, "the ha", "rm ", CALM, CALM]
    chunks = chunks_of(through.post("/v1/chat/completions", {**CHAT, "stream": True}))
    assert "harm" not in text_in(chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"
    whole = through.post("/v1/chat/completions", CHAT).json()["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == ("No.", "content_filter")


def test_a_stream_that_is_cut_off_ends_in_an_error(through: Any, upstream: Any) -> None:
    upstream.is_cut = True
    answer = through.post("/v1/chat/completions", {**CHAT, "stream": True})
    assert "error" in answer.text
    assert "[DONE]" not in answer.text


def test_the_guard_itself_is_asked_by_its_name(through: Any, upstream: Any) -> None:
    body = {"model": "equipoise-guard", "messages": [{"role": "user", "content": "the harm"}]}
    found = through.post("/v1/chat/completions", body).json()
    assert found["choices"][0]["message"]["content"] == "unsafe\nS1"
    assert through.post("/v1/completions", {"model": "big", "prompt": "a"}).status_code == 404
    assert upstream.asked == []


def test_a_policy_of_the_request_decides_and_is_not_sent_on(serve: Any, upstream: Any) -> None:
    policies = (Policy(name="strict", unsafe=0.5), Policy(name="lax", unsafe=1.0))
    server = serve(policies=policies, gateway={"upstream": {"url": upstream.url}, "policy_by_request": True})
    body = {**CHAT, "messages": [{"role": "user", "content": "the harm"}]}
    assert server.post("/v1/chat/completions", {**body, "policy": "lax"}).status_code == 200
    assert "policy" not in upstream.asked[0]
    finish = server.post("/v1/chat/completions", body).json()["choices"][0]["finish_reason"]
    assert (finish, len(upstream.asked)) == ("content_filter", 1)


def test_a_chat_with_what_is_not_judged_does_not_go_through(through: Any, upstream: Any) -> None:
    for more in ({"tools": [{"type": "function"}]}, {"n": 2}, {"messages": []}, {"policy": "none"}):
        answer = through.post("/v1/chat/completions", {**CHAT, **more})
        assert answer.status_code == 400
    assert upstream.asked == []


def test_whoever_is_guarded_does_not_choose_the_policy_unless_the_operator_says_so(
    serve: Any, upstream: Any
) -> None:
    policies = (Policy(name="strict", unsafe=0.1), Policy(name="loose", unsafe=0.9999))
    gateway = {"upstream": {"url": upstream.url}}
    body = {"model": "big", "messages": [{"role": "user", "content": "the harm"}], "policy": "loose"}
    fixed = serve(policies=policies, gateway=gateway)
    assert fixed.post("/v1/chat/completions", body).status_code == 400
    assert upstream.asked == []
    assert fixed.post("/v1/chat/completions", {**body, "model": "equipoise-guard"}).status_code == 200
    free = serve(policies=policies, gateway={**gateway, "policy_by_request": True})
    assert free.post("/v1/chat/completions", body).json()["guard"]["policy"] == "loose"


def test_a_conversation_that_is_too_long_for_the_guard_is_read_in_pieces(serve: Any, upstream: Any) -> None:
    server = serve(gateway={"upstream": {"url": upstream.url}, "refusal_text": "No."})
    filler = "take a long walk in the mountains " * 400

    def answer(middle: str) -> str:
        turns = [filler, middle, filler]
        messages = [{"role": "user", "content": turn} for turn in turns]
        found = server.post("/v1/chat/completions", {"model": "big", "messages": messages})
        assert found.status_code == 200, found.text
        return str(found.json()["choices"][0]["message"]["content"])

    assert answer("and the tide") == CALM * 4
    upstream.asked = []
    assert answer("the harm") == "No."
    assert upstream.asked == []
