"""What each protocol's client gets from a running server, for verdicts that are known beforehand.

The planted guard flags words: `harm` is Violence, `salt` Drugs, `bread` Sexual Content, `oven` Copyright
Issues, `flour` Insulting Behavior; `warm` makes it moderate and `coat` severe.
"""

from typing import Any

import pytest

from equipoise.models.windows import TextPair
from equipoise.moderation.batch import judge_texts
from equipoise.moderation.guard import Guard
from equipoise.moderation.server.azure import eight, four
from equipoise.protocols import Verdict
from equipoise.taxonomy import load_crosswalk, load_taxonomy

SAFE = "take a coat"
TURNS = [{"role": "user", "content": "the harm"}, {"role": "assistant", "content": SAFE}]
OPENAI = [target.id for target in load_crosswalk("pku19-openai13").targets]


def moderation(server: Any, given: Any, **more: Any) -> Any:
    answer = server.post("/v1/moderations", {"input": given, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_text_gets_one_result_with_all_thirteen_keys(server: Any) -> None:
    found = moderation(server, SAFE, model="omni-moderation-2024-09-26")
    assert found["id"].startswith("modr-")
    assert found["model"] == "omni-moderation-2024-09-26"
    (result,) = found["results"]
    assert result["flagged"] is False
    assert len(OPENAI) == 13
    for key in ("categories", "category_scores", "category_applied_input_types"):
        assert list(result[key]) == OPENAI
    assert not any(result["categories"].values())


def test_a_flagged_text_is_flagged_in_their_words_and_in_ours(server: Any) -> None:
    (result,) = moderation(server, "harm salt warm")["results"]
    assert result["flagged"] is True
    assert [name for name, flagged in result["categories"].items() if flagged] == ["illicit", "violence"]
    marginal = 1 / (1 + 2.718281828459045**-6) / (1 + 2.718281828459045**-3)
    assert result["category_scores"]["violence"] == pytest.approx(marginal, abs=1e-6)
    assert result["severity"] == 2
    assert list(result["native_categories"]) == list(load_taxonomy("pku19").names)
    assert result["native_categories"]["Drugs"] == {
        "flagged": True,
        "score": pytest.approx(marginal, abs=1e-6),
        "severity": 2,
    }
    assert result["native_categories"]["Cybercrime"]["severity"] == 0
    assert result["thresholds"]["unsafe"] == {"prompt": 0.5, "response": 0.5}
    assert (result["policy"], result["calibrated"], result["review"]) == ("default", False, False)


def test_a_category_that_they_have_no_word_for_still_flags(server: Any) -> None:
    (result,) = moderation(server, "an oven")["results"]
    assert result["flagged"] is True
    assert not any(result["categories"].values())
    assert result["native_categories"]["Copyright Issues"]["flagged"] is True


def test_what_cannot_be_told_scores_zero_and_the_model_says_so(server: Any) -> None:
    (result,) = moderation(server, "harm bread salt flour oven")["results"]
    told = server.client.get("/v1/models").json()["data"][0]["openai"]
    assert set(told["unreachable"]) == set(load_crosswalk("pku19-openai13").unreachable)
    for name in told["unreachable"]:
        assert result["category_scores"][name] == 0
        assert result["category_applied_input_types"][name] == []
    assert told["without_counterpart"] == ["Copyright Issues", "Privacy Violation"]


def test_a_list_gets_a_result_each_in_order(server: Any) -> None:
    found = moderation(server, [SAFE, "the harm", SAFE, "salt"])["results"]
    assert [result["flagged"] for result in found] == [False, True, False, True]


def test_parts_of_one_message_get_one_result(server: Any) -> None:
    parts = [{"type": "text", "text": SAFE}, {"type": "text", "text": "the harm"}]
    (result,) = moderation(server, parts)["results"]
    assert result["flagged"] is True


def test_an_answer_in_a_conversation_is_judged_in_its_context(server: Any) -> None:
    parts = [{"type": "conversation", "messages": turns} for turns in (TURNS, TURNS[:1])]
    found = moderation(server, parts)["results"]
    assert [(r["target"], r["flagged"]) for r in found] == [("response", False), ("prompt", True)]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}], "input.1"),
        ([], "input"),
        ("  ", "input"),
        (["a", ""], "input.1"),
        (["a", 3], "input.1"),
        ([[1, 2]], "input"),
        (7, "input"),
        ([{"type": "text", "text": "a"}, {"type": "conversation", "messages": TURNS}], "input"),
        ([{"type": "conversation", "messages": []}], "input.0.messages"),
        ([{"type": []}], "input"),
        ([{"type": "conversation", "messages": [{"role": "tool", "content": "x"}]}], "input.0.messages"),
    ],
)
def test_an_input_that_cannot_be_judged_is_named(server: Any, given: Any, param: str) -> None:
    answer = server.post("/v1/moderations", {"input": given})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert error.keys() == {"message", "type", "param", "code"}


def test_the_models_page_describes_the_guard(server: Any) -> None:
    listed = server.client.get("/v1/models").json()
    (one,) = listed["data"]
    assert (listed["object"], one["object"], one["id"]) == ("list", "model", "equipoise-guard")
    assert server.client.get("/v1/models/equipoise-guard").json() == one
    assert server.client.get("/v1/models/gpt").status_code == 404
    assert one["categories"] == list(load_taxonomy("pku19").names)


AZURE = "/contentsafety/text:analyze?api-version=2024-09-01"


@pytest.mark.parametrize(
    ("text", "violence"), [(SAFE, 0), ("the harm", 2), ("the harm is warm", 4), ("harm coat", 6)]
)
def test_azure_gets_four_categories_with_a_severity_each(server: Any, text: str, violence: int) -> None:
    found = server.post(AZURE, {"text": text}).json()
    assert found["blocklistsMatch"] == []
    assert found["categoriesAnalysis"] == [
        {"category": "Hate", "severity": 0},
        {"category": "SelfHarm", "severity": 0},
        {"category": "Sexual", "severity": 0},
        {"category": "Violence", "severity": violence},
    ]
    assert found["guard"]["severity"] == violence // 2


def test_azure_gets_the_categories_and_the_scale_it_asks_for(server: Any) -> None:
    body = {"text": "bread harm coat", "categories": ["Sexual"], "outputType": "EightSeverityLevels"}
    (only,) = server.post(AZURE, body).json()["categoriesAnalysis"]
    assert only == {"category": "Sexual", "severity": 7}


def test_azure_hears_of_errors_in_its_own_form(server: Any) -> None:
    for body, target in (({"text": ""}, "text"), ({"text": "a", "blocklistNames": ["b"]}, "blocklistNames")):
        answer = server.post(AZURE, body)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["target"]) == ("InvalidRequestBody", target)
        assert answer.headers["x-ms-error-code"] == "InvalidRequestBody"


@pytest.mark.parametrize("top", [1, 2, 3, 5])
def test_eight_levels_say_more_than_four_and_never_something_else(top: int) -> None:
    last = (0, 0)
    for severity in range(top + 1):
        for lean in (0.0, 0.5, 0.99):  # mass on the level itself, the rest spread over all above zero
            rest = [(1 - lean) / top] * top
            levels = [0.0, *rest] if severity else [1.0] + [0.0] * top
            levels[severity] += lean if severity else 0.0
            harm = () if severity == 0 else ("Violence",)
            verdict = Verdict(severity == 0, 1 - levels[0], severity, tuple(levels), harm, {}, False)
            fine, coarse = eight(verdict, top), four(verdict, top)
            assert coarse in {0, 2, 4, 6}
            assert fine // 2 * 2 == coarse  # how Azure makes four levels of eight
            assert (fine == 0) == (severity == 0)
            assert coarse >= last[1]
            last = (fine, coarse)
    assert last[1] == 6


LITELLM = "/beta/litellm_basic_guardrail_api"


def guardrail(server: Any, *texts: str, **more: Any) -> Any:
    body = {"texts": texts, "input_type": "request", "request_data": {}, "litellm_call_id": "c", **more}
    answer = server.post(LITELLM, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_litellm_passes_what_is_safe_and_blocks_all_where_one_text_is_not(server: Any) -> None:
    assert guardrail(server, SAFE, "yes")["action"] == "NONE"
    blocked = guardrail(server, SAFE, "the harm is warm")
    assert blocked["action"] == "BLOCKED"
    assert blocked["blocked_reason"] == "unsafe, severity 2: Violence (policy default)"


def test_litellm_may_send_messages_in_place_of_texts_but_not_nothing(server: Any) -> None:
    parts = [{"type": "text", "text": SAFE}, {"type": "text", "text": "the harm"}]
    for content in ("the harm", parts):
        messages = [{"role": "system", "content": None}, {"role": "user", "content": content}]
        for more in ({}, {"texts": None}, {"texts": []}, {"texts": [" "]}):
            body = {"input_type": "request", "structured_messages": messages, **more}
            assert server.post(LITELLM, body).json()["action"] == "BLOCKED"
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "the harm"}}]}
    body = {"input_type": "response", "texts": [], "structured_messages": [call]}
    assert server.post(LITELLM, body).json()["action"] == "BLOCKED"
    unread: list[Any] = [{"content": [{"type": "image_url"}]}, {"content": 5}, "the harm"]
    for body in ({}, {"text": ["the harm"]}, *({"structured_messages": [one]} for one in unread)):
        assert server.post(LITELLM, {"input_type": "request", **body}).status_code == 400
    assert server.post(LITELLM, {"input_type": "request", "texts": []}).json()["action"] == "NONE"


def test_a_chat_with_nothing_but_an_answer_is_judged(server: Any) -> None:
    answer = {"role": "assistant", "content": "the harm"}
    for messages in ([answer], [{"role": "user", "content": ""}, answer]):
        found = server.post("/v1/chat/completions", {"model": "m", "messages": messages})
        assert found.status_code == 200, found.text
        assert found.json()["choices"][0]["message"]["content"].startswith("unsafe")


def test_completions_are_not_streamed(server: Any) -> None:
    answer = server.post("/v1/completions", {"model": "m", "prompt": SAFE, "stream": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")


def test_litellm_may_ask_for_another_threshold_and_for_answers(server: Any) -> None:
    params = {"additional_provider_specific_params": {"threshold": 0.9999, "language": "en"}}
    assert guardrail(server, "the harm", **params)["action"] == "NONE"
    assert guardrail(server, "the harm", input_type="response")["action"] == "BLOCKED"
    assert guardrail(server, "", "  ")["action"] == "NONE"  # nothing was said


def test_litellm_has_the_arguments_of_calls_judged_and_no_images(server: Any) -> None:
    calls = [{"type": "function", "function": {"name": "say", "arguments": "the harm"}}]
    assert guardrail(server, SAFE, tool_calls=calls, tools=[{"x": 1}])["action"] == "BLOCKED"
    for more in ({"images": ["x"]}, {"tool_calls": [{"function": {}}]}, {"input_type": "both"}):
        answer = server.post(LITELLM, {"texts": ["a"], "input_type": "request", **more})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SAFE, "safe"),
        ("the harm", "unsafe\nS1"),
        ("salt bread harm", "unsafe\nS1,S2,S3,S12"),
        ("flour", "unsafe"),  # no hazard code for it
    ],
)
def test_the_guard_answers_as_llama_guard_does_however_few_tokens(server: Any, text: str, said: str) -> None:
    body = {"model": "equipoise-guard", "messages": [{"role": "user", "content": text}], "max_tokens": 3}
    found = server.post("/v1/chat/completions", {**body, "temperature": 1e-20}).json()
    (choice,) = found["choices"]
    assert choice["message"]["content"] == said
    assert (found["object"], choice["finish_reason"]) == ("chat.completion", "stop")
    (text_choice,) = server.post("/v1/completions", {"model": "m", "prompt": text}).json()["choices"]
    assert text_choice["text"] == said


def test_the_last_answer_of_a_chat_is_judged_in_its_context(server: Any) -> None:
    for turns, said in ((TURNS, "safe"), ([*TURNS, {"role": "user", "content": "salt"}], "unsafe\nS1,S2")):
        found = server.post("/v1/chat/completions", {"model": "m", "messages": turns}).json()
        assert found["choices"][0]["message"]["content"] == said


def test_a_chat_may_ask_for_a_stream(server: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "harm"}], "stream": True}
    answer = server.post("/v1/chat/completions", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert '"content": "unsafe\\nS1"' in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")


def test_the_native_answer_has_the_fields_of_moderate(server: Any) -> None:
    text = TextPair("the harm", "salt and warm")
    found = server.post("/v1/guard", text._asdict()).json()
    (expected,) = judge_texts(Guard(server.reader), [text])
    assert found == found | expected
    more = {"refusal", "refusal_probabilities", "review", "calibrated", "language", "supported", "shadow"}
    assert found.keys() - expected.keys() <= more | {"guard", "version"}
    assert found["refusal"] == "none"


def test_the_native_endpoint_takes_a_prompt_an_answer_or_a_chat(server: Any) -> None:
    for body, target, is_safe in (
        ({"prompt": "the harm"}, "prompt", False),
        ({"prompt": "the harm", "response": SAFE}, "response", True),
        ({"prompt": TURNS, "response": "salt"}, "response", False),
        ({"response": "salt"}, "response", False),
        ({"prompt": "the harm", "response": "."}, "response", True),
        ({"messages": TURNS}, "response", True),
        ({"messages": TURNS[:1]}, "prompt", False),
        ({"messages": TURNS[1:]}, "response", True),
    ):
        found = server.post("/v1/guard", body).json()
        assert (found["target"], found["is_safe"]) == (target, is_safe), body


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "prompt: missing, and no response either; expected one of them or both"),
        ({"prompt": " "}, "prompt: empty; expected a text"),
        ({"prompt": "a", "messages": TURNS}, "messages: stand beside prompt or response"),
        ({"messages": []}, "messages: Tuple should have at least 1 item"),
        ({"prompt": "a", "polcy": "strict"}, "polcy: Extra inputs are not permitted"),
        ({"prompt": "a", "policy": "strict"}, "policy: no such policy; expected one of: default"),
    ],
)
def test_the_native_endpoint_says_what_is_wrong(server: Any, body: Any, said: str) -> None:
    answer = server.post("/v1/guard", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(said)
