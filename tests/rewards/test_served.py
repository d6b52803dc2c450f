"""A reward server: what is sent and taken, and that no number is ever made up."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from equipoise.config import parse_config
from equipoise.errors import ConfigError, RunStoppedError
from equipoise.records import Exchange, Message
from equipoise.rewards.served import RewardServer, ServedScores

Body = dict[str, Any]


class Desk:
    """What the server does: tests change it."""

    def __init__(self) -> None:
        self.asked: list[Body] = []
        self.keys: list[str | None] = []
        self.faults: list[int] = []
        """Statuses of the next replies, before good ones."""
        self.answer: Callable[[list[Body]], Any] = lambda rows: {
            "rewards": [len(row["response"]) for row in rows],
            "costs": {"harm": [-1.5 for _ in rows], "other": [0 for _ in rows]},
            "note": "not read",
        }
        self.url = ""


@pytest.fixture
def desk(serve_json: Callable[..., Any]) -> Iterator[Desk]:
    state = Desk()

    def reply(asked: Any) -> tuple[int, Any]:
        state.asked.append(asked.body)
        state.keys.append(asked.headers.get("Authorization"))
        status = state.faults.pop(0) if state.faults else 200
        rows = asked.body["exchanges"]
        return status, state.answer(rows) if status == 200 else {"error": "the model is loading"}

    with serve_json(reply) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/score"
        yield state
        server.shutdown()


def served(
    desk: Desk,
    *,
    reward: bool = True,
    costs: tuple[str, ...] = ("harm",),
    groups: tuple[str, ...] = (),
    **more: Any,
) -> ServedScores:
    settings = RewardServer(url=desk.url, first_wait_seconds=0.01, **more)
    return ServedScores(settings, reward=reward, costs=costs, groups=groups)


def exchanges(count: int) -> list[Exchange]:
    return [Exchange(id=f"p{i}#0", prompt=f"Say {i}", response="a" * i) for i in range(count)]


def test_each_response_gets_its_own_scores_whatever_the_requests_are(desk: Desk) -> None:
    found = served(desk, batch_size=3, concurrency=2)(exchanges(8))
    assert found.rewards == [float(i) for i in range(8)]
    assert found.costs == {"harm": [-1.5] * 8}
    assert sorted(len(body["exchanges"]) for body in desk.asked) == [2, 3, 3]


def test_what_is_sent_is_what_is_documented_and_nothing_else(desk: Desk) -> None:
    chat = (Message(role="user", content="Hi"), Message(role="assistant", content="Hello"))
    served(desk)([Exchange(id="p#1", prompt=chat, response="yes", source="elsewhere", is_safe=True)])
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert desk.asked == [{"exchanges": [{"id": "p#1", "prompt": turns, "response": "yes"}]}]


def test_only_what_is_asked_for_need_be_there(desk: Desk) -> None:
    desk.answer = lambda rows: {"costs": {"harm": [1 for _ in rows]}}
    assert served(desk, reward=False)(exchanges(2)) == (None, {"harm": [1.0, 1.0]}, {})
    desk.answer = lambda rows: {"rewards": [2 for _ in rows]}
    assert served(desk, costs=())(exchanges(2)) == ([2.0, 2.0], {}, {})


def test_groups_have_rewards_of_their_own(desk: Desk) -> None:
    desk.answer = lambda rows: {"groups": {"old": [3 for _ in rows], "young": [len(rows) for _ in rows]}}
    ask = served(desk, reward=False, costs=(), groups=("young",), batch_size=2)
    assert ask(exchanges(3)) == (None, {}, {"young": [2.0, 2.0, 1.0]})
    asking_for_more = served(desk, reward=False, costs=(), groups=("young", "olds"))
    with pytest.raises(
        RunStoppedError, match=r"groups: no 'olds' \(did you mean 'old'\?\); the reply has: old,"
    ):
        asking_for_more(exchanges(3))


def test_the_server_is_asked_again_until_it_answers(desk: Desk) -> None:
    desk.faults = [503, 429, 500]
    assert served(desk)(exchanges(2)).rewards == [0.0, 1.0]
    assert len(desk.asked) == 4


def test_a_dead_server_stops_the_run_and_is_named_with_tries_and_error(desk: Desk) -> None:
    desk.faults = [503] * 9
    with pytest.raises(
        RunStoppedError, match=rf"{desk.url}: gave no scores: status 503: the model is loading \(3 tries\)"
    ):
        served(desk, tries=3)(exchanges(2))
    gone = ServedScores(RewardServer(url="http://127.0.0.1:9/score", tries=2, first_wait_seconds=0.01))
    with pytest.raises(
        RunStoppedError, match=r":9/score: gave no scores: no reply \(ConnectError\) \(2 tries\)"
    ):
        gone(exchanges(1))


WRONG: dict[str, tuple[Any, str]] = {
    "none": ({}, "rewards: expected 2 numbers, got missing"),
    "few": ({"rewards": [1]}, "rewards: expected 2 numbers, got 1"),
    "no list": ({"rewards": 3}, "rewards: expected 2 numbers, got no list"),
    "null": ({"rewards": [1, None]}, "rewards: p1#0: expected a finite number, got None"),
    "NaN": (b'{"rewards": [NaN, 1]}', "rewards: p0#0: expected a finite number, got nan"),
    "endless": (b'{"rewards": [1, -Infinity]}', "rewards: p1#0: expected a finite number, got -inf"),
    "huge": (b'{"rewards": [1, 1' + b"0" * 400 + b"]}", "rewards: p1#0: expected a finite number, got 1000"),
    "truth": ({"rewards": [1, True]}, "rewards: p1#0: expected a finite number, got True"),
    "text": ({"rewards": [1, "2"]}, "rewards: p1#0: expected a finite number, got '2'"),
    "cost": ({"rewards": [1, 2]}, "costs: no 'harm'; the reply has: none"),
    "near": ({"rewards": [1, 2], "costs": {"harms": [1, 2]}}, r"no 'harm' \(did you mean 'harms'\?\)"),
    "few costs": ({"rewards": [1, 2], "costs": {"harm": [1]}}, "costs.harm: expected 2 numbers, got 1"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_one_finite_number_each_stops_the_run_at_once(desk: Desk, what: str) -> None:
    answer, message = WRONG[what]
    desk.answer = lambda _: answer
    with pytest.raises(RunStoppedError, match=message) as stopped:
        served(desk)(exchanges(2))
    assert "\n" not in str(stopped.value)
    assert len(desk.asked) == 1


def test_the_key_comes_from_the_environment(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    served(desk, api_key_env="MY_KEY")(exchanges(1))
    assert desk.keys == ["Bearer s3cret"]
    with pytest.raises(ConfigError, match=r"scoring.server.api_key_env: NO_SUCH is not set"):
        served(desk, api_key_env="NO_SUCH")


def test_it_can_be_asked_where_an_event_loop_runs(desk: Desk) -> None:
    async def inside() -> Any:
        return served(desk)(exchanges(2))

    assert asyncio.run(inside()).rewards == [0.0, 1.0]


def test_an_address_is_taken_as_it_stands() -> None:
    assert RewardServer(url="http://host").url == "http://host"
    with pytest.raises(ConfigError, match="url: expected an address"):
        parse_config(RewardServer, {"url": "host"}, "server")
    with pytest.raises(ConfigError, match=r"scoring.server.url: holds a name, a password or a query"):
        RewardServer(url="http://me:secret@host/score")
