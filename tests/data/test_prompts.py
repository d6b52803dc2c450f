"""Prompts of records: each once, with what is known of the harm that it asks for."""

from pathlib import Path

import pytest

from equipoise.data.io import read_records, write_records
from equipoise.data.prompts import PROMPTS, PromptsConfig, prompts_of
from equipoise.errors import DataError
from equipoise.lineage import produce
from equipoise.records import Answer, Exchange, Message, Pair, Prompt


def pair(prompt: str, *safe: bool | None) -> Pair:
    first, second = (Answer(response=f"answer {k}", is_safe=one) for k, one in enumerate(safe))
    return Pair(id=f"pair-{prompt}", licence="CC0-1.0", prompt=prompt, answers=(first, second))


def exchange(prompt: str, is_safe: bool | None, is_harmful: bool | None = None) -> Exchange:
    return Exchange(
        id=f"e-{prompt}", prompt=prompt, response="x", is_safe=is_safe, prompt_is_harmful=is_harmful
    )


def test_alike_prompts_stand_once_in_the_order_of_their_first_record() -> None:
    chat = (Message(role="user", content="Hi"), Message(role="assistant", content="Hello"))
    found = prompts_of(
        [pair("B?", True, False), exchange("a", True), pair("b ", True, True), Prompt(id="c", prompt=chat)]
    )
    assert [prompt.prompt for prompt in found] == ["B?", "a", chat]
    assert len({prompt.id for prompt in found}) == 3
    assert found[0].licence == "CC0-1.0"
    assert prompts_of([exchange("B?", True)])[0].id == found[0].id  # the id is the text's


@pytest.mark.parametrize(
    ("records", "told", "by_answers"),
    [
        ([pair("p", True, False)], None, True),
        ([pair("p", True, True)], None, False),
        ([pair("p", True, None)], None, None),
        ([pair("p", False, None)], None, True),
        ([pair("p", True, True), exchange("p", False)], None, True),
        ([exchange("p", False, is_harmful=False)], False, False),  # what is said stands
        ([Prompt(id="x", prompt="p", is_harmful=True), pair("p", True, True)], True, True),
        ([Prompt(id="x", prompt="p", is_harmful=True), exchange("p", True, is_harmful=False)], None, None),
        ([Prompt(id="x", prompt="p")], None, None),
    ],
)
def test_a_prompt_asks_for_harm_as_its_records_say_and_else_by_its_answers(records, told, by_answers) -> None:
    assert [prompt.is_harmful for prompt in prompts_of(records)] == [told]
    assert [prompt.is_harmful for prompt in prompts_of(records, by_answers=True)] == [by_answers]


def test_a_contested_prompt_keeps_no_other_label_of_harm() -> None:
    harmful = Prompt(id="x", prompt="p", is_harmful=True, severity=3, categories=frozenset({"Violence"}))
    (alone,) = prompts_of([harmful])
    assert (alone.severity, alone.categories) == (3, {"Violence"})
    (contested,) = prompts_of([harmful, exchange("p", True, is_harmful=False)])
    assert (contested.is_harmful, contested.severity, contested.categories) == (None, None, None)


def test_a_step_takes_some_of_one_kind(tmp_path: Path) -> None:
    write_records(tmp_path / "in.jsonl", [pair(f"p{i}", True, i % 2 == 0) for i in range(40)])
    config = PromptsConfig(files=(tmp_path / "in.jsonl",), by_answers=True, is_harmful=True, most=5)
    outcome = produce(tmp_path / "out.jsonl", PROMPTS, config)
    found = list(read_records(tmp_path / "out.jsonl", Prompt))
    assert len(found) == 5
    assert all(prompt.is_harmful for prompt in found)
    assert outcome.manifest.notes == {"records": 5, "prompts_in_all": 40}
    assert outcome.manifest.licences == ["CC0-1.0"]
    other = config.model_copy(update={"seed": 1})
    produce(tmp_path / "other.jsonl", PROMPTS, other)
    assert list(read_records(tmp_path / "other.jsonl", Prompt)) != found


def test_no_prompt_of_the_kind_is_said(tmp_path: Path) -> None:
    write_records(tmp_path / "in.jsonl", [pair("p", True, True)])
    config = PromptsConfig(files=(tmp_path / "in.jsonl",), is_harmful=True)
    with pytest.raises(DataError, match="no prompt of the 1 with is_harmful=true; expected at least one"):
        produce(tmp_path / "out.jsonl", PROMPTS, config)
