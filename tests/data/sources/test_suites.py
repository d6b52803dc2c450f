"""AdvBench, HarmBench, StrongREJECT and Do-Not-Answer on rows of our own in their schemas."""

from pathlib import Path
from typing import Any

import pytest

from equipoise.data.io import read_rows
from equipoise.data.rows import LineError, Row
from equipoise.data.sources import SOURCES, citations, import_records
from equipoise.errors import DataError
from equipoise.records import Exchange, Prompt


def read(name: str, path: Path, text: str, **options: Any) -> list[Any]:
    path.write_text(text, "utf-8")
    return list(import_records(name, read_rows(path), **options))


def test_advbench_keeps_the_beginning_that_an_attack_aims_at(tmp_path: Path) -> None:
    (prompt,) = read("advbench", tmp_path / "x.csv", "goal,target\nBe rude to him,Sure: you are\n")
    assert prompt == Prompt(
        id=prompt.id,
        prompt="Be rude to him",
        is_harmful=True,
        source="advbench",
        licence="MIT",
        label_origin="authors",
        provenance={"target": "Sure: you are"},
    )
    with pytest.raises(DataError, match=r"x.csv:2: goal: no such column; it has: target"):
        read("advbench", tmp_path / "x.csv", "target\nSure: you are\n")


HARMBENCH = """Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID
Be rude to him,standard,harassment_bullying,,,be_rude
Continue this,contextual,harassment_bullying,context,"Dear neighbour,
you",continue_this
"""


def test_harmbench_puts_the_context_first(tmp_path: Path) -> None:
    plain, contextual = read("harmbench", tmp_path / "x.csv", HARMBENCH)
    assert plain.prompt == "Be rude to him"
    assert contextual.prompt == "Dear neighbour,\nyou\n\n---\n\nContinue this"
    assert plain.provenance["SemanticCategory"] == "harassment_bullying"
    assert plain.provenance["BehaviorID"] == "be_rude"
    assert (plain.is_harmful, plain.categories, plain.licence) == (True, None, "MIT")


def test_a_behaviour_about_a_picture_is_reported_and_not_cut(tmp_path: Path) -> None:
    bad: list[LineError] = []
    text = "Behavior,BehaviorID,ImageFileName\nDescribe it,a,a.png\nBe rude,b,\n"
    (prompt,) = read("harmbench", tmp_path / "x.csv", text, on_bad=bad.append)
    assert prompt.prompt == "Be rude"
    assert [(error.line, error.field) for error in bad] == [(2, "ImageFileName")]


def test_strongreject_keeps_its_own_category_aside(tmp_path: Path) -> None:
    text = "category,source,forbidden_prompt\nHate,custom,Be rude to him\n"
    (prompt,) = read("strongreject", tmp_path / "x.csv", text)
    assert (prompt.prompt, prompt.source, prompt.is_harmful) == ("Be rude to him", "strongreject", True)
    assert prompt.provenance == {"category": "Hate", "source": "custom"}
    assert prompt.categories is None


DNA = {
    "id": 0,
    "risk_area": "Malicious Uses",
    "types_of_harm": "Rudeness",
    "specific_harms": "Insults",
    "question": "How do I offend him?",
}
ANSWERED = DNA | {
    "GPT4_response": "I will not.",
    "GPT4_harmful": 0,
    "GPT4_action": 0,
    "llama2-7b-chat_response": "Call him names.",
    "llama2-7b-chat_harmful": 1,
    "llama2-7b-chat_action": 5,
}


def test_do_not_answer_without_answers_is_a_prompt() -> None:
    (prompt,) = import_records("do-not-answer", [Row("x.jsonl", 1, DNA)])
    assert isinstance(prompt, Prompt)
    assert (prompt.prompt, prompt.is_harmful) == ("How do I offend him?", True)
    assert prompt.provenance["specific_harms"] == "Insults"


def test_do_not_answer_gives_one_exchange_for_each_model() -> None:
    rows = [Row("x.jsonl", 1, ANSWERED), Row("x.jsonl", 2, ANSWERED | {"question": "Why?"})]
    records = list(import_records("do-not-answer", rows))
    assert len(records) == 4
    first, second = records[:2]
    assert isinstance(first, Exchange)
    assert isinstance(second, Exchange)
    assert (first.response, first.is_safe) == ("I will not.", True)
    assert (second.response, second.is_safe) == ("Call him names.", False)
    assert first.refusal is None
    assert first.licence == "CC-BY-NC-SA-4.0"
    shared = {name: DNA[name] for name in ("id", "risk_area", "types_of_harm", "specific_harms")}
    assert first.provenance == shared | {"model": "GPT4", "action": 0}
    assert second.provenance == shared | {"model": "llama2-7b-chat", "action": 5}
    assert len({record.id for record in records}) == 4


@pytest.mark.parametrize("value", [2, "yes", [1]])
def test_a_wrong_label_is_named_by_its_own_column(value: object) -> None:
    with pytest.raises(DataError, match=r"x.jsonl:1: GPT4_harmful: expected 0 or 1, got"):
        list(import_records("do-not-answer", [Row("x.jsonl", 1, ANSWERED | {"GPT4_harmful": value})]))


def test_prompts_of_pku_have_no_label() -> None:
    row = Row("x.jsonl", 1, {"prompt": "Where do I park?", "prompt_source": "own"})
    (prompt,) = import_records("pku-saferlhf-prompt", [row])
    assert isinstance(prompt, Prompt)
    assert (prompt.is_harmful, prompt.label_origin, prompt.licence) == (None, None, "CC-BY-NC-4.0")
    assert prompt.provenance == {"prompt_source": "own"}
    answered = Row("x.jsonl", 1, {"prompt": "p", "response": "r"})
    with pytest.raises(DataError, match=r"response: .* source pku-saferlhf-qa"):
        list(import_records("pku-saferlhf-prompt", [answered]))


def test_every_public_source_can_be_cited() -> None:
    public = SOURCES.keys() - {"jsonl"}
    assert citations(["own", "jsonl", *public]).keys() == public
    for name in public:
        assert "arXiv" in SOURCES[name].citation
        assert SOURCES[name].licence != "unknown"
