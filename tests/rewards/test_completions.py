"""Answers put together from sentences: every class, both sets of wordings, and what is refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from equipoise.config import to_yaml
from equipoise.errors import ConfigError, DataError
from equipoise.records import Exchange, Prompt
from equipoise.rewards.completions import class_of, load_templates
from equipoise.rewards.rules import CLASSES, load_rule_set

RULES = load_rule_set("style")


def asked(number: int, **changes: Any) -> Prompt:
    values = {"id": str(number), "prompt": f"Question {number}?", "is_harmful": number % 2 == 0}
    return Prompt(**({"licence": "CC0-1.0"} | values | changes))


FOUR = [asked(n) for n in range(4)]


def test_every_prompt_gets_answers_of_every_class_of_the_types_that_suit_it() -> None:
    found = load_templates("style").write(FOUR, RULES)
    kinds = {(e.prompt, RULES.type_of(e), class_of(e)) for e in found}
    assert kinds == {
        (one.prompt, kind, name)
        for one in FOUR
        for kind in (("hard_refuse", "safe_refuse") if one.is_harmful else ("comply",))
        for name in CLASSES
    }
    assert max(Counter(e.id for e in found).values()) == 1
    assert {e.licence for e in found} == {"CC0-1.0"}


def test_held_back_wordings_are_in_no_answer_of_the_fit() -> None:
    templates = load_templates("style")
    many = [asked(n) for n in range(80)]
    fitted = " ".join(e.response for e in templates.write(many, RULES))
    held = " ".join(e.response for e in templates.write(many, RULES, held_back=True))
    for wordings in templates.sentences.values():
        middle = len(wordings) // 2
        assert not any(text in fitted for text in wordings[middle:])
        assert not any(text in held for text in wordings[:middle])
        assert any(text in held for text in wordings[middle:])


def test_an_answer_depends_on_its_prompt_and_the_seed_alone() -> None:
    templates = load_templates("style")
    both, alone = templates.write(FOUR, RULES), templates.write(FOUR[1:], RULES)
    assert alone == both[-len(alone) :]
    assert templates.write(FOUR, RULES, seed=1) != both


def test_prompts_of_which_nothing_is_known_are_refused() -> None:
    with pytest.raises(DataError, match="9: is_harmful is not known"):
        load_templates("style").write([asked(9, is_harmful=None)], RULES)


def test_an_unknown_class_is_refused_by_its_place() -> None:
    one = Exchange(id="x", prompt="?", response="!", provenance={"class": "good"})
    with pytest.raises(DataError, match=r"x: provenance\.class: got 'good'; expected one of ideal, "):
        class_of(one)


def test_templates_that_name_no_sentence_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    answers = {"comply": {"ideal": [["helo"]]}}
    path.write_text(to_yaml({"sentences": {"hello": ["Hi.", "Hello."]}, "answers": answers}), "utf-8")
    with pytest.raises(ConfigError, match=r"no sentence 'helo' \(did you mean 'hello'\?\)"):
        load_templates(str(path))
    with pytest.raises(ConfigError, match="no completions are built in for the rules 'mine'"):
        load_templates("mine")
