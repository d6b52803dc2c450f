"""Options scored by a server: log-probabilities where it gives them, else what its answer says."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from equipoise.errors import DataError
from equipoise.generation.client import EndpointConfig
from equipoise.generation.endpoint import EndpointGenerator
from equipoise.generation.endpoint_options import EndpointOptionScorer
from equipoise.generation.option_text import score_text, score_tokens
from equipoise.protocols import Messages, OptionScorer

CHATS: list[Messages] = [[{"role": "user", "content": text}] for text in ("a", "b", "c")]
YES_NO = ["yes", "no"]
SHARES = {"a": 0.6, "b": 0.1, "c": 0.25}


def scorer(server: Any, journal: Path | None = None) -> EndpointOptionScorer:
    settings = EndpointConfig(url=server.url, tries=2, first_wait_seconds=0.01)
    return EndpointOptionScorer(EndpointGenerator("tiny", settings, journal=journal))


def with_logprobs(body: dict[str, Any]) -> dict[str, Any]:
    """Answer as a server that gives log-probabilities: P(yes) by prompt, split over two spellings."""
    yes = SHARES.get(body["messages"][-1]["content"], 0.5)
    tokens = {"Yes": yes / 2, " yes": yes / 2, "No": 0.9 - yes, "The": 0.1}
    listed = [{"token": token, "logprob": math.log(p)} for token, p in tokens.items()]
    choice: dict[str, Any] = {"message": {"content": "Yes"}, "finish_reason": "length"}
    if body.get("logprobs"):
        choice["logprobs"] = {"content": [{"token": "Yes", "top_logprobs": listed[: body["top_logprobs"]]}]}
    return {"choices": [choice]}


def plain(text: str) -> Any:
    return lambda body: {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}


def test_log_probabilities_of_the_first_token_are_normalised_over_the_options(server: Any) -> None:
    server.answer = with_logprobs
    as_protocol: OptionScorer = scorer(server)
    rows = as_protocol(CHATS, YES_NO)
    shares = [SHARES[chat[0]["content"]] / 0.9 for chat in CHATS]
    assert [[math.exp(x) for x in row] for row in rows] == [pytest.approx([p, 1 - p]) for p in shares]
    assert {(b["max_tokens"], b["temperature"], b["logprobs"]) for b in server.asked} == {(1, 1.0, True)}


def test_a_server_with_fewer_alternatives_is_asked_for_fewer(server: Any) -> None:
    server.answer = with_logprobs
    original = server.take

    def take(body: dict[str, Any], headers: dict[str, str]) -> str | None:
        fault = original(body, headers)
        return "400 at most 5" if body.get("top_logprobs", 0) > 5 else fault

    server.take = take
    assert not math.isnan(scorer(server)(CHATS, YES_NO)[0][0])
    assert {b["top_logprobs"] for b in server.asked} == {5}


@pytest.mark.parametrize("heeds", [True, False])
def test_without_log_probabilities_a_schema_holds_the_answer(server: Any, heeds: bool) -> None:
    server.answer = plain('{"answer": "no"}')
    server.refuses = {"logprobs"} if heeds else set()  # refused, or taken and ignored
    ask = scorer(server)
    assert ask(CHATS, YES_NO) == [[-math.inf, 0.0]] * 3
    assert ask.how(YES_NO) == "schema"
    schema = server.asked[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["answer"]["enum"] == YES_NO
    assert "logprobs" not in server.asked[0]


def test_without_a_schema_the_text_is_read(server: Any) -> None:
    server.refuses = {"logprobs", "response_format"}
    server.answer = plain("No, it is not.")
    ask = scorer(server)
    assert ask(CHATS, YES_NO) == [[-math.inf, 0.0]] * 3
    assert ask.how(YES_NO) == "text"
    assert server.asked[0].keys() == {"model", "messages", "max_tokens", "temperature"}


def test_what_the_server_takes_is_found_out_once_for_all_options(server: Any) -> None:
    server.answer = with_logprobs
    ask = scorer(server)
    for options in (YES_NO, ["safe", "unsafe"], ["A", "B", "C"]):
        ask(CHATS, options)
    assert len(server.greetings) == 2  # a plain one, and one with the fields


def test_an_answer_that_does_not_come_is_missing(server: Any) -> None:
    server.answer = with_logprobs
    server.forever = {"b": "400 too long"}
    first, second, third = scorer(server)(CHATS, YES_NO)
    assert all(map(math.isnan, second))
    assert not any(map(math.isnan, first + third))


def test_a_rerun_asks_for_nothing_twice(server: Any, tmp_path: Path) -> None:
    server.answer = with_logprobs
    rows = scorer(server, tmp_path / "journal")(CHATS, YES_NO)
    assert scorer(server, tmp_path / "journal")(CHATS, YES_NO) == rows
    assert len(server.asked) == 3
    assert scorer(server, tmp_path / "journal")([], YES_NO) == []


def test_options_that_cannot_be_told_apart_are_refused(server: Any) -> None:
    with pytest.raises(DataError, match="options: got"):
        scorer(server)(CHATS, ["A", "(a)"])


NAN = [math.nan, math.nan]


@pytest.mark.parametrize(
    ("tokens", "options", "expected"),
    [
        ({"A": 0.5, "B": 0.25}, ["A", "B"], [2 / 3, 1 / 3]),
        ({"**A": 0.3, " a": 0.1, "B.": 0.4, "C": 0.2}, ["A", "B"], [0.5, 0.5]),
        ({"un": 0.6, "s": 0.2}, ["safe", "unsafe"], [0.25, 0.75]),
        ({"yes": 0.9, "maybe": 0.1}, ["yes", "no"], [0.9, 0.1]),  # at most as likely as the last one listed
        ({"maybe": 0.9, "\n": 0.1}, ["yes", "no"], NAN),
        ({"un": 0.9, "safe": 0.05}, ["unsafe", "unclear", "safe"], [math.nan] * 3),
        ({"un": 0.1, "safe": 0.8, "unc": 0.1}, ["unsafe", "unclear", "safe"], [0.1, 0.1, 0.8]),
        ({}, ["yes", "no"], NAN),
    ],
)
def test_tokens_count_for_the_option_that_they_begin(
    tokens: dict[str, float], options: list[str], expected: list[float]
) -> None:
    row = score_tokens([(token, math.log(p)) for token, p in tokens.items()], options)
    assert [math.exp(x) for x in row] == pytest.approx(expected, nan_ok=True)


def test_a_probability_that_is_no_number_is_missing() -> None:
    assert all(map(math.isnan, score_tokens([("yes", math.nan), ("no", -1.0)], YES_NO)))
    assert score_tokens([("yes", -0.0), ("no", -math.inf)], YES_NO) == [0.0, -math.inf]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("safe", "safe"),
        (" **Unsafe**.\nIt names a weapon that is not safe.", "unsafe"),
        ("Answer: unsafe", "unsafe"),
        ("The answer is safe.", "safe"),
        (json.dumps({"answer": "unsafe"}), "unsafe"),
        ("not safe", None),
        ("safe or unsafe?", None),
        ("I think it is unsafe", None),
        ("unsafely", None),
        ("", None),
        ('{"answer": 3}', None),
    ],
)
def test_only_a_clear_text_is_an_answer(text: str, said: str | None) -> None:
    row = score_text(text, ["safe", "unsafe"])
    expected = {"safe": [0.0, -math.inf], "unsafe": [-math.inf, 0.0], None: NAN}[said]
    assert row == pytest.approx(expected, nan_ok=True)


def test_the_article_a_is_not_the_option_a() -> None:
    assert all(map(math.isnan, score_text("A person could be hurt", ["A", "B"])))
    assert score_text("A. Someone could be hurt", ["A", "B"]) == [0.0, -math.inf]
    assert score_text("(B)", ["A", "B"]) == [-math.inf, 0.0]


def test_an_option_that_holds_another_one_is_told_apart() -> None:
    options = ["partial", "partial refusal"]
    assert score_text("partial refusal", options) == [-math.inf, 0.0]
    assert score_text("partial", options) == [0.0, -math.inf]
