"""The generator that asks a server, against a server on loopback that fails as it is told to."""

import asyncio
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from equipoise.errors import ConfigError, RunStoppedError
from equipoise.generation.client import EndpointConfig
from equipoise.generation.endpoint import EndpointGenerator
from equipoise.protocols import Generator, Messages, Sampling

WARM = Sampling(max_new_tokens=8, temperature=1.0, samples=2)


def chats(*texts: str) -> list[Messages]:
    return [[{"role": "user", "content": text}] for text in texts]


def generator(server: Any, journal: Path | None = None, **settings: Any) -> EndpointGenerator:
    quick = {"first_wait_seconds": 0.01, "timeout_seconds": 10, "tries": 3, "concurrency": 4}
    config = EndpointConfig(url=server.url, **{**quick, **settings})
    return EndpointGenerator("tiny", config, journal=journal)


def test_greedy_texts_come_back_in_order(server: Any) -> None:
    as_protocol: Generator = generator(server)
    texts = [f"prompt {i}" for i in range(20)]
    assert as_protocol(chats(*texts), Sampling(max_new_tokens=8)) == [[f"{text} greedy"] for text in texts]
    assert server.asked[0] == {
        "model": "tiny",
        "messages": chats(server.asked[0]["messages"][0]["content"])[0],
        "max_tokens": 8,
        "temperature": 0.0,
    }  # and no other field


def test_every_sample_is_a_request_with_a_seed_of_its_own(server: Any) -> None:
    sampling = Sampling(max_new_tokens=8, temperature=0.7, top_p=0.9, samples=3, seed=5)
    texts = generator(server)(chats("a", "b"), sampling, ["x", "y"])
    assert len({text for row in texts for text in row}) == 6
    assert all({**b, "messages": 0, "seed": 0}.keys() == b.keys() for b in server.asked)
    assert {(b["temperature"], b["top_p"], b["max_tokens"]) for b in server.asked} == {(0.7, 0.9, 8)}
    assert not any("n" in b for b in server.asked)
    assert generator(server)(chats("b"), sampling, ["y"]) == [texts[1]]  # whatever else is asked
    assert generator(server)(chats("b"), sampling._replace(seed=6), ["y"]) != [texts[1]]
    assert all(0 <= b["seed"] < 2**31 for b in server.asked)


def test_the_same_words_are_asked_once_where_the_answer_is_greedy(server: Any) -> None:
    assert generator(server)(chats("a", "b", "a"), Sampling()) == [["a greedy"], ["b greedy"], ["a greedy"]]
    assert len(server.asked) == 2
    first, _, third = generator(server)(chats("a", "b", "a"), WARM)
    assert first != third  # draws of different prompts, though of the same words
    assert len(server.asked) == 8


def test_no_more_requests_at_a_time_than_allowed(server: Any) -> None:
    server.delay = 0.03
    generator(server, concurrency=3)(chats(*map(str, range(12))), Sampling())
    assert server.most_at_once == 3


def limit(fault: str) -> dict[str, float]:
    """Return a time limit that a slow server exceeds, and a busy test machine does not reach otherwise."""
    return {"timeout_seconds": 0.5} if fault == "slow" else {}


RETRIED = ["slow", "hangup", "html", "empty", "contentless", "short", "cutstream"]
RETRIED += ["408 late", "409 busy", "429 slow down", "500 oops", "503 loading"]


@pytest.mark.parametrize("fault", RETRIED)
def test_a_failure_that_may_pass_is_tried_again(server: Any, fault: str) -> None:
    server.faults = {"b": [fault, fault]}
    assert generator(server, **limit(fault))(chats("a", "b", "c"), Sampling()) == [
        ["a greedy"],
        ["b greedy"],
        ["c greedy"],
    ]
    assert server.count() == Counter({"a/None": 1, "b/None": 3, "c/None": 1})


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("slow", "no reply within 0.5 s (3 tries)"),
        ("hangup", "no reply (RemoteProtocolError) (3 tries)"),
        ("html", "the reply is not JSON (3 tries)"),
        ("empty", "the reply has no choices (3 tries)"),
        ("contentless", "the reply has no content (finish_reason 'stop') (3 tries)"),
        ("short", "no reply (RemoteProtocolError) (3 tries)"),
        ("cutstream", "the stream was cut off (3 tries)"),
        ("500 oops", "status 500: oops (3 tries)"),
        ("429 slow down", "status 429: slow down (3 tries)"),
    ],
)
def test_after_the_last_try_the_answer_is_missing_and_says_why(
    server: Any, fault: str, reason: str, tmp_path: Path
) -> None:
    server.forever = {"b": fault}
    ask = generator(server, tmp_path / "journal", **limit(fault))
    answers = [row[0] for row in ask.answers(chats("a", "b", "c"), Sampling())]
    assert [a.text for a in answers] == ["a greedy", None, "c greedy"]
    assert [a.error for a in answers] == [None, reason, None]
    assert server.count()["b/None"] == 3

    server.forever = {}
    assert generator(server, tmp_path / "journal")(chats("a", "b", "c"), Sampling())[1] == ["b greedy"]
    assert server.count() == Counter({"a/None": 1, "b/None": 4, "c/None": 1})  # only what was missing


@pytest.mark.parametrize("status", ["400 too long", "413 too large", "422 what?"])
def test_what_the_server_refuses_is_not_asked_again(server: Any, status: str) -> None:
    server.forever = {"b": status}
    code, said = status.split(" ", 1)
    (answer,) = generator(server).answers(chats("b"), Sampling())[0]
    assert (answer.text, answer.error) == (None, f"status {code}: {said}")
    assert len(server.asked) == 1


def test_all_requests_wait_as_long_as_the_server_asks(server: Any) -> None:
    server.delay, server.retry_after, server.faults = 0.05, "0.8", {"a": ["429 slow down"]}
    generator(server, concurrency=2)(chats(*"abcdefgh"), Sampling())
    waited = [later - earlier for earlier, later in pairwise(server.times)]
    assert len(waited) == 8
    assert max(waited) >= 0.7
    assert waited.index(max(waited)) <= 3  # only what had been sent when the answer came


def test_a_missing_answer_stops_a_plain_call_unless_a_text_stands_for_it(server: Any) -> None:
    server.forever = {"b": "html"}
    with pytest.raises(RunStoppedError, match="1 of 2 answers are missing"):
        generator(server)(chats("a", "b"), Sampling())
    ask = EndpointGenerator("tiny", generator(server).settings, missing="")
    assert ask(chats("a", "b"), Sampling()) == [["a greedy"], [""]]


def test_a_server_that_dies_stops_the_run_and_what_it_said_is_kept(server: Any, tmp_path: Path) -> None:
    texts = [f"prompt {i}" for i in range(30)]
    whole = server.answer

    def dies(body: Any) -> Any:
        if len(server.asked) > 10:
            server.forever = {"*": "503 gone"}
        return whole(body)

    server.answer = dies
    with pytest.raises(RunStoppedError, match=r"the server is dead: status 503: gone \(3 tries\)"):
        generator(server, tmp_path / "journal")(chats(*texts), Sampling())
    server.forever, server.answer, before = {}, whole, len(server.asked)
    assert generator(server, tmp_path / "journal")(chats(*texts), Sampling()) == [
        [f"{t} greedy"] for t in texts
    ]
    kept = 30 - (len(server.asked) - before)
    assert kept >= 8
    assert len((tmp_path / "journal").read_text().splitlines()) == 30


def test_one_poisoned_prompt_does_not_count_as_a_dead_server(server: Any) -> None:
    server.forever = {"poison": "500 crashed"}
    answers = generator(server, concurrency=1).answers(chats("poison", "poison too", "a"), Sampling())
    assert [row[0].text for row in answers] == [None, "poison too greedy", "a greedy"]


def test_a_server_that_is_not_there_stops_the_run(server: Any) -> None:
    settings = EndpointConfig(url="http://127.0.0.1:9/v1", tries=2, first_wait_seconds=0.01)
    with pytest.raises(RunStoppedError, match=r"127.0.0.1:9/v1: .*dead: no reply \(ConnectError\)"):
        EndpointGenerator("tiny", settings)(chats("a"), Sampling())


def test_a_key_that_is_refused_later_stops_the_run(server: Any) -> None:
    ask = generator(server)
    ask(chats("a"), Sampling())
    server.forever = {"*": "401 expired"}
    with pytest.raises(RunStoppedError, match="status 401: expired"):
        ask(chats("b"), Sampling())


def test_the_same_prompts_need_no_server_at_all_the_second_time(server: Any, tmp_path: Path) -> None:
    first = generator(server, tmp_path / "journal").answers(chats("a", "b"), WARM, ["x", "y"])
    server.forever = {"*": "500 gone"}
    asked = len(server.asked) + len(server.greetings)
    assert generator(server, tmp_path / "journal").answers(chats("b", "a"), WARM, ["y", "x"]) == first[::-1]
    assert len(server.asked) + len(server.greetings) == asked
    assert first[0][0].prompt_tokens == 7


def test_another_model_sampling_or_field_is_another_question(server: Any, tmp_path: Path) -> None:
    settings = EndpointConfig(url=server.url, journal=tmp_path / "journal")
    thinking = settings.model_copy(update={"extra": {"chat_template_kwargs": {"enable_thinking": False}}})
    EndpointGenerator("tiny", settings)(chats("a"), Sampling())
    for ask, sampling in [
        (EndpointGenerator("other", settings), Sampling()),
        (EndpointGenerator("tiny", thinking), Sampling()),
        (EndpointGenerator("tiny", settings), Sampling(max_new_tokens=4)),
        (EndpointGenerator("tiny", settings), Sampling(temperature=0.5)),
    ]:
        before = len(server.asked)
        ask(chats("a"), sampling)
        assert len(server.asked) == before + 1
    assert server.asked[2]["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_journal_that_the_user_names_is_used_instead(server: Any, tmp_path: Path) -> None:
    settings = EndpointConfig(url=server.url, journal=tmp_path / "theirs")
    EndpointGenerator("tiny", settings, journal=tmp_path / "ours")(chats("a"), Sampling())
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]


def test_samples_that_do_not_differ_are_said(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ask = generator(server)
    ask(chats(*"abcd"), WARM)
    assert capsys.readouterr().err == ""
    server.answer = lambda body: {"choices": [{"message": {"content": "always"}}]}
    ask(chats("a"), WARM._replace(seed=1))
    ask(chats(*"abcd"), Sampling())
    assert capsys.readouterr().err == ""
    for seed in (2, 3):
        ask(chats(*"abcd"), WARM._replace(seed=seed))
    said = f"{server.url}: the samples of each prompt are all the same; does the server sample?\n"
    assert capsys.readouterr().err == said  # once


def test_it_works_where_an_event_loop_runs_already(server: Any) -> None:
    async def notebook() -> list[list[str]]:
        return generator(server)(chats("a"), Sampling())

    assert asyncio.run(notebook()) == [["a greedy"]]


def test_half_a_surrogate_pair_does_not_reach_a_file(server: Any) -> None:
    whole = server.answer
    server.answer = lambda body: {**whole(body), "choices": [{"message": {"content": "caf\udce9"}}]}
    assert generator(server)(chats("a"), Sampling()) == [["caf?"]]


def test_a_key_that_is_not_set_is_the_users_mistake(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"endpoint.api_key_env: NO_SUCH_KEY is not set"):
        generator(server, api_key_env="NO_SUCH_KEY")
