"""Policies by name, policies in shadow, languages and review, in every protocol that has a place for them."""

import json
import logging
from typing import Any, NamedTuple

import pytest

from equipoise.errors import ConfigError
from equipoise.moderation.policies import Policy

LAX = Policy(name="lax", unsafe=0.9999)
DOUBT = Policy(name="doubt", unsafe=0.5, review=(0.9, 1.0))
QUIET = Policy(name="quiet", severity={2: 0.5}, shadow=True)
TURNS = [{"role": "user", "content": "the harm"}]


class Guess(NamedTuple):
    language: str
    is_sure: bool


def identify(text: str) -> Guess:
    return Guess("de" if "der" in text else "en", "?" not in text)


BODIES: dict[str, Any] = {
    "/v1/moderations": lambda text: {"input": text},
    "/v1/guard": lambda text: {"prompt": text},
    "/v1/guard/stream": lambda text: {"response": text},
    "/contentsafety/text:analyze": lambda text: {"text": text},
    "/beta/litellm_basic_guardrail_api": lambda text: {"texts": [text], "input_type": "request"},
    "/v1/chat/completions": lambda text: {"model": "m", "messages": [{"role": "user", "content": text}]},
    "/v1/completions": lambda text: {"model": "m", "prompt": text},
}


def beside(path: str, answer: Any) -> Any:
    """What stands beside the protocol's own answer."""
    if path == "/v1/guard/stream":
        return json.loads(answer.text.rstrip().rpartition("data: ")[2])
    found = answer.json()
    if path == "/v1/moderations":
        return found["results"][0]
    if path == "/v1/guard":
        return found
    return found["guard"][0] if path == "/v1/completions" else found["guard"]


FLAGGED: dict[str, Any] = {
    "/v1/moderations": lambda found: found["results"][0]["flagged"],
    "/v1/guard": lambda found: not found["is_safe"],
    "/contentsafety/text:analyze": lambda found: any(one["severity"] for one in found["categoriesAnalysis"]),
    "/beta/litellm_basic_guardrail_api": lambda found: found["action"] == "BLOCKED",
    "/v1/chat/completions": lambda found: found["choices"][0]["message"]["content"] != "safe",
    "/v1/completions": lambda found: found["choices"][0]["text"] != "safe",
}


def flagged(path: str, answer: Any) -> bool:
    if path == "/v1/guard/stream":
        return "event: stopped" in answer.text
    return bool(FLAGGED[path](answer.json()))


@pytest.fixture(scope="module")
def several(serve_shared: Any) -> Any:
    return serve_shared(policies=(QUIET, LAX, DOUBT), identify=identify, languages=("en", "fr"))


def named(path: str, text: str, policy: str) -> Any:
    body = BODIES[path](text)
    if "litellm" in path:
        return {**body, "additional_provider_specific_params": {"policy": policy}}
    return {**body, "policy": policy}


@pytest.mark.parametrize("path", BODIES)
def test_a_request_chooses_its_policy_and_the_first_enforced_one_is_the_default(
    several: Any, path: str
) -> None:
    usual = several.post(path, BODIES[path]("the harm"))
    assert not flagged(path, usual)
    assert beside(path, usual)["policy"] == "lax"
    strict = several.post(path, named(path, "the harm", "doubt"))
    assert flagged(path, strict)
    assert beside(path, strict)["policy"] == "doubt"


@pytest.mark.parametrize("path", BODIES)
def test_a_policy_in_shadow_is_told_and_decides_nothing(several: Any, path: str) -> None:
    answer = several.post(path, BODIES[path]("the harm is warm"))
    assert not flagged(path, answer)
    shadow = beside(path, answer)["shadow"]
    assert shadow.keys() == {"quiet"}
    assert (shadow["quiet"]["is_safe"], shadow["quiet"]["severity"]) == (False, 2)
    refused = several.post(path, named(path, "the harm", "quiet"))
    assert refused.status_code == 400
    assert "a policy in shadow decides nothing" in refused.text


@pytest.mark.parametrize("path", BODIES)
def test_a_verdict_in_the_band_of_doubt_asks_for_a_person(several: Any, path: str) -> None:
    for text, policy, review in (("the harm", "doubt", True), ("a coat", "doubt", False)):
        assert beside(path, several.post(path, named(path, text, policy)))["review"] is review
    assert beside(path, several.post(path, BODIES[path]("the harm")))["review"] is False


@pytest.mark.parametrize("path", BODIES)
def test_a_language_that_the_guard_does_not_know_is_said_and_asks_for_a_person(
    several: Any, path: str
) -> None:
    for text, language, supported, review in (
        ("der tide", "de", False, True),
        ("the tide", "en", True, False),
        ("tide ?", None, None, False),
    ):
        found = beside(path, several.post(path, BODIES[path](text)))
        assert (found["language"], found["supported"], found["review"]) == (language, supported, review)


@pytest.mark.parametrize("path", ["/beta/litellm_basic_guardrail_api", "/v1/guard/stream"])
def test_of_several_texts_none_hides_what_is_to_be_known_of_another(several: Any, path: str) -> None:
    """The first is the worst, the second in another language, the third alone is flagged in shadow."""
    texts = ["the harm " * 80, "der tide " * 80, "salt and warm " * 80]
    body = {"texts": texts, "input_type": "request"} if "litellm" in path else {"deltas": texts}
    found = beside(path, several.post(path, body))
    assert (found["supported"], found["language"], found["review"]) == (False, "de", True)
    assert (found["shadow"]["quiet"]["severity"], found["policy"]) == (2, "lax")


def test_a_policy_in_shadow_is_logged_and_counted(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(policies=(LAX, QUIET))
    caplog.set_level(logging.INFO, logger="equipoise.server")
    server.post("/v1/moderations", {"input": ["the harm is warm", "the harm", "a coat"]})
    counted = server.client.get("/metrics").text
    fields = [record.fields for record in caplog.records if record.message == "request"]
    (asked,) = [line for line in fields if line["path"] == "/v1/moderations"]
    assert (asked["flagged"], asked["shadow_flagged"]) == (0, {"quiet": 1})
    for line in (
        'equipoise_verdicts_total{policy="quiet",severity="2",shadow="true"} 1.0',
        'equipoise_flagged_total{category="Violence",policy="quiet",shadow="true"} 1.0',
        'equipoise_verdicts_total{policy="lax",severity="0",shadow="false"} 3.0',
    ):
        assert line in counted, line


def test_the_list_of_policies_shows_their_thresholds(several: Any) -> None:
    listed = several.client.get("/v1/policies").json()
    assert listed["default"] == "lax"
    assert [(p["name"], p["enforced"]) for p in listed["policies"]] == [
        ("quiet", False),
        ("lax", True),
        ("doubt", True),
    ]
    assert listed["policies"][2]["review"] == [0.9, 1.0]
    assert listed["policies"][0]["severity"] == {"2": 0.5}


def test_a_text_that_was_read_in_part_asks_for_a_person(several: Any) -> None:
    found = several.post("/v1/guard", {"prompt": "take a coat " * 2000}).json()
    assert (found["truncated"], found["review"]) == (True, True)


def test_a_prompt_of_some_windows_is_read_whole(several: Any) -> None:
    filler = "take a coat " * 60
    found = several.post("/v1/guard", {"prompt": f"{filler} bread {filler}", "policy": "doubt"}).json()
    assert (found["truncated"], found["harm_categories"]) == (False, ["Sexual Content"])


def test_a_long_context_alone_asks_for_nobody(several: Any) -> None:
    found = several.post("/v1/guard", {"prompt": "take a coat " * 100, "response": "the tide"}).json()
    assert (found["truncated"], found["context_truncated"], found["review"]) == (False, True, False)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/moderations", {"input": "LONG"}),
        ("/contentsafety/text:analyze", {"text": "LONG"}),
        ("/beta/litellm_basic_guardrail_api", {"texts": ["LONG"], "input_type": "request"}),
        ("/v1/chat/completions", {"model": "g", "messages": [{"role": "user", "content": "LONG"}]}),
        ("/v1/completions", {"model": "g", "prompt": "LONG"}),
    ],
)
def test_a_text_that_was_read_in_part_passes_nowhere_that_cannot_say_so(
    server: Any, path: str, body: Any
) -> None:
    def with_text(text: str) -> Any:
        return server.post(path, json.loads(json.dumps(body).replace("LONG", text)))

    assert with_text("take a coat " * 2000).status_code == 413
    assert with_text("the harm is warm and " + "take a coat " * 2000).status_code == 200  # flagged anyhow
    assert with_text("take a coat " * 60).status_code == 200


def test_what_is_unsafe_is_said_although_another_text_was_read_in_part(server: Any) -> None:
    long = "take a coat " * 2000
    litellm = {"texts": [long, "the harm"], "input_type": "request"}
    assert server.post("/beta/litellm_basic_guardrail_api", litellm).json()["action"] == "BLOCKED"
    messages = [{"role": "user", "content": long}, {"role": "user", "content": "the harm"}]
    found = server.post("/v1/chat/completions", {"model": "g", "messages": messages}).json()
    assert found["choices"][0]["message"]["content"].startswith("unsafe")
    assert server.post("/v1/moderations", {"input": [long, "the harm"]}).status_code == 413


@pytest.fixture(scope="module")
def fixed(serve_shared: Any) -> Any:
    return serve_shared(policies=(Policy(name="calm", unsafe=0.9999), QUIET), policy_by_request=False)


@pytest.mark.parametrize("path", BODIES)
def test_where_a_request_may_not_choose_it_gets_the_default_policy_or_an_error(fixed: Any, path: str) -> None:
    assert fixed.post(path, BODIES[path]("the tide")).status_code == 200
    answer = fixed.post(path, named(path, "the harm", "calm"))
    assert (answer.status_code, "not for a request to choose" in answer.text) == (400, True)


def test_where_a_request_may_not_choose_it_sets_no_threshold(fixed: Any) -> None:
    path = "/beta/litellm_basic_guardrail_api"
    answer = fixed.post(
        path, {**BODIES[path]("the harm"), "additional_provider_specific_params": {"threshold": 1}}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "threshold")


def test_policies_that_are_all_in_shadow_cannot_serve(make: Any) -> None:
    with pytest.raises(ConfigError, match="all are in shadow"):
        make(policies=(QUIET,))
