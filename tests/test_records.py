"""Records: what is refused, what None means, and that JSON gives back what went in."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from equipoise.records import (
    REFUSALS,
    Answer,
    Exchange,
    Judgement,
    Labels,
    Message,
    Pair,
    Prompt,
    Score,
    messages_of,
    text_of,
)

CHAT = (Message(role="system", content="Be kind."), Message(role="user", content="Hello"))
FULL = Exchange(
    id="e1",
    source="hand",
    licence="CC0-1.0",
    label_origin="authors",
    annotators=("a", "b"),
    provenance={"column": [1, None, {"deep": "x"}]},
    prompt="How do I skip a queue?",
    response="Push in.",
    is_safe=False,
    severity=1,
    categories=frozenset({"Insulting Behavior", "Disrupting Public Order"}),
    rated=frozenset({"Insulting Behavior", "Disrupting Public Order", "Drugs"}),
    category_severity={"Insulting Behavior": 1},
    refusal="none",
)
PAIR = Pair(
    id="p1",
    source="hand",
    licence="CC0-1.0",
    label_origin="human",
    annotators=("a",),
    provenance={"row": 3},
    prompt=CHAT,
    answers=(
        Answer(response="No.", is_safe=True, severity=0, categories=frozenset(), refusal="full"),
        Answer(response="Yes.", is_safe=False, severity=2, categories=frozenset({"Drugs"})),
    ),
    better=1,
    safer=0,
    overall="tie",
    taxonomy="mine",
)
JUDGEMENT = Judgement(
    id="j1", subject="p1", annotator="ann", labels=Labels(severity=2), safer="tie", seconds=1.5
)
PROMPT = Prompt(id="q1", prompt=CHAT, is_harmful=False, twin="q2", severity=0)
EVERY_RECORD = [FULL, PAIR, JUDGEMENT, PROMPT]
LABELS = ["is_safe", "severity", "categories", "rated", "category_severity", "refusal"]


def test_a_response_is_an_exchange_with_what_is_known_of_its_prompt() -> None:
    asked = PROMPT.model_copy(update={"taxonomy": "mine", "provenance": {"response_type": "comply"}})
    found = asked.exchange("Hello!", 2)
    assert found == Exchange(
        id="q1#2",
        prompt=CHAT,
        prompt_is_harmful=False,
        response="Hello!",
        taxonomy="mine",
        provenance={"response_type": "comply"},
    )
    assert asked.exchange("Hello!").id == "q1"


@pytest.mark.parametrize("record", EVERY_RECORD, ids=lambda r: type(r).__name__)
def test_json_gives_back_the_same_record(record: Exchange | Pair | Judgement | Prompt) -> None:
    assert type(record).model_validate_json(record.model_dump_json()) == record
    assert type(record).model_validate(json.loads(record.model_dump_json())) == record


def test_not_labelled_is_none_and_stays_apart_from_labelled_harmless() -> None:
    bare = Exchange(id="x", prompt="p", response="r")
    harmless = Exchange(id="x", prompt="p", response="r", categories=frozenset())
    assert all(getattr(bare, name) is None for name in LABELS)
    assert bare != harmless
    assert json.loads(bare.model_dump_json())["categories"] is None
    assert json.loads(harmless.model_dump_json())["categories"] == []
    for record in (bare, harmless):
        assert Exchange.model_validate_json(record.model_dump_json()).categories == record.categories


def test_what_a_source_does_not_state_is_unknown() -> None:
    record = Prompt(id="x", prompt="p")
    assert (record.licence, record.source, record.taxonomy) == ("unknown", "unknown", "pku19")


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Exchange, {"id": "x", "prompt": "p", "response": "r", "is_sfae": True}),
        (Exchange, {"id": "x", "prompt": [{"role": "user", "content": "p", "name": "n"}], "response": "r"}),
        (Pair, {"id": "x", "prompt": "p", "answers": [{"response": "a", "score": 1}, {"response": "b"}]}),
        (Judgement, {"id": "x", "subject": "s", "annotator": "a", "labels": {"severty": 1}}),
    ],
)
def test_an_unknown_field_is_refused_at_every_depth(kind: type[Exchange], data: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(data)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_severity_takes_the_four_levels(level: int) -> None:
    assert Labels.model_validate({"severity": level}).severity == level


@pytest.mark.parametrize("level", [-1, 4, "2", 2.0, 1.5, True])
def test_severity_refuses_everything_else(level: object) -> None:
    with pytest.raises(ValidationError):
        Labels.model_validate({"severity": level})
    with pytest.raises(ValidationError):
        Labels.model_validate({"category_severity": {"Drugs": level}})


@pytest.mark.parametrize("choice", [2, -1, "0", "both", True])
def test_a_preference_is_an_index_or_a_tie(choice: object) -> None:
    with pytest.raises(ValidationError):
        Pair.model_validate({**PAIR.model_dump(), "better": choice})


def test_a_pair_has_two_answers() -> None:
    with pytest.raises(ValidationError):
        Pair.model_validate({"id": "x", "prompt": "p", "answers": [{"response": "only"}]})


@pytest.mark.parametrize("bad", [[["Drugs"]], [{"Drugs": 1}], [1], "Drugs", {"Drugs": True}])
def test_categories_that_are_no_list_of_names_are_refused_as_data(bad: object) -> None:
    with pytest.raises(ValidationError):
        Labels.model_validate({"categories": bad})
    with pytest.raises(ValidationError):
        Labels.model_validate_json(json.dumps({"categories": bad}))


@pytest.mark.parametrize("given_as", [["b", "a", "b"], ("b", "a"), {"a", "b"}, frozenset({"a", "b"})])
def test_any_collection_of_names_is_a_set(given_as: object) -> None:
    assert Labels.model_validate({"categories": given_as}).categories == frozenset({"a", "b"})


@given(st.frozensets(st.text()))
def test_json_lists_names_in_sorted_order(names: frozenset[str]) -> None:
    assert Labels(categories=names).model_dump()["categories"] == sorted(names)


def test_the_json_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "from equipoise.records import Labels;"
        "print(Labels(categories=frozenset('abcdefgh'), rated=frozenset('hgfe')).model_dump_json())"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(texts) == 1


@pytest.mark.parametrize("record", [*EVERY_RECORD, CHAT[0], PAIR.answers[0]], ids=lambda r: type(r).__name__)
def test_records_are_frozen(record: Exchange | Message) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(record, next(iter(type(record).model_fields)), "other")


@pytest.mark.parametrize("index", [0, 1])
def test_an_answer_of_a_pair_becomes_an_exchange_with_its_own_labels(index: int) -> None:
    exchange = PAIR.exchange(index)
    answer = PAIR.answers[index]
    assert exchange.id == f"p1#{index}"
    assert exchange.response == answer.response
    assert all(getattr(exchange, name) == getattr(answer, name) for name in LABELS)
    for name in ("prompt", "source", "licence", "label_origin", "annotators", "provenance", "taxonomy"):
        assert getattr(exchange, name) == getattr(PAIR, name)


def test_confidence_is_a_probability_and_time_does_not_run_backwards() -> None:
    for bad in ({"confidence": 1.1}, {"confidence": -0.1}, {"seconds": -1}):
        with pytest.raises(ValidationError):
            Judgement.model_validate({**JUDGEMENT.model_dump(), **bad})


@pytest.mark.parametrize(("polarity", "harm"), [("higher_is_worse", 2.0), ("higher_is_better", -2.0)])
def test_harm_of_a_score_follows_its_polarity(polarity: str, harm: float) -> None:
    assert Score(2.0, polarity).harm == harm


def test_the_refusal_classes_are_those_the_records_accept() -> None:
    assert [Labels(refusal=name).refusal for name in REFUSALS] == ["none", "partial", "full"]
    with pytest.raises(ValidationError):
        Labels.model_validate({"refusal": "maybe"})


@pytest.mark.parametrize(
    ("prompt", "text", "messages"),
    [
        ("Hi", "Hi", [{"role": "user", "content": "Hi"}]),
        ((Message(role="user", content="Hi"),), "Hi", [{"role": "user", "content": "Hi"}]),
        (
            CHAT,
            "system: Be kind.\nuser: Hello",
            [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}],
        ),
    ],
)
def test_a_prompt_as_text_and_as_messages(prompt: object, text: str, messages: list[dict[str, str]]) -> None:
    assert text_of(prompt) == text
    assert messages_of(prompt) == messages
