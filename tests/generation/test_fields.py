"""Fields that servers refuse are found out with greetings of ours."""

from typing import Any

import pytest

from equipoise.errors import ConfigError
from equipoise.generation.client import EndpointConfig
from equipoise.generation.endpoint import EndpointGenerator
from equipoise.protocols import Messages, Sampling

CHAT: list[Messages] = [[{"role": "user", "content": "a"}]]
WARM = Sampling(max_new_tokens=8, temperature=1.0, top_p=0.9)


def generator(server: Any, **settings: Any) -> EndpointGenerator:
    config = EndpointConfig(url=server.url, tries=2, first_wait_seconds=0.01, **settings)
    return EndpointGenerator("tiny", config)


def test_one_greeting_settles_all_fields_and_is_said_once(server: Any) -> None:
    ask = generator(server)
    ask(CHAT, WARM)
    ask(CHAT, WARM._replace(seed=1))
    (greeting,) = server.greetings
    assert greeting["max_tokens"] == 1
    assert {"seed", "top_p", "temperature"} <= greeting.keys()
    ask(CHAT, Sampling())  # another temperature
    assert len(server.greetings) == 2


def test_a_seed_that_is_refused_is_left_out_and_said(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server.refuses = {"seed"}
    assert generator(server)(CHAT, WARM) == [["a greedy"]]
    assert "seed" not in server.asked[0]
    assert len(server.asked) == 1
    assert capsys.readouterr().err == (
        f"{server.url}: model 'tiny': the server does not take 'seed'; it is left out\n"
    )


@pytest.mark.parametrize("name", ["top_p", "temperature"])
def test_a_field_that_the_user_wants_is_not_left_out(server: Any, name: str) -> None:
    server.refuses = {name}
    with pytest.raises(ConfigError, match=f"model 'tiny': the server refuses '{name}', got"):
        generator(server)(CHAT, WARM)
    assert server.asked == []


def test_an_extra_field_is_needed_too(server: Any) -> None:
    server.refuses = {"reasoning_effort"}
    with pytest.raises(ConfigError, match="refuses 'reasoning_effort', got \"low\""):
        generator(server, extra={"reasoning_effort": "low"})(CHAT, WARM)


def test_a_server_may_know_the_length_by_its_other_name(server: Any) -> None:
    server.refuses = {"max_tokens"}
    ask = generator(server)
    ask(CHAT, WARM)
    ask(CHAT, WARM._replace(seed=1))
    assert [body.get("max_completion_tokens") for body in server.asked] == [8, 8]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("401 who?", "status 401: who\\?; expected the key to be right"),
        ("404 no such model", "status 404: no such model; expected the address or the model's name"),
        ("400 pinned to another", "refuses a plain request: status 400: pinned to another"),
    ],
)
def test_a_server_that_refuses_every_word_is_the_users_mistake(server: Any, fault: str, message: str) -> None:
    server.forever = {"*": fault}
    with pytest.raises(ConfigError, match=message):
        generator(server)(CHAT, WARM)


def test_a_server_that_is_still_loading_is_waited_for(server: Any) -> None:
    server.faults = {"*": ["503 loading"] * 3}
    assert generator(server)(CHAT, WARM)[0][0].startswith("a ")
    assert server.asked[0]["seed"] is not None  # the field was not taken for the culprit
