"""A guard that learns from prompts with labels of their own."""

from pathlib import Path

import pytest
import torch

from equipoise.records import Exchange, Prompt
from equipoise.taxonomy import load_taxonomy
from equipoise.training.guard_rows import NO_GROUP, by_group, guard_rows

TAXONOMY = load_taxonomy("pku19")


def test_a_labelled_prompt_is_a_row_without_a_response() -> None:
    prompts = [
        Prompt(id="a", prompt="one", is_harmful=True, categories=frozenset({"Drugs"}), severity=3),
        Prompt(id="b", prompt="two", is_harmful=False),
        Prompt(id="c", prompt="three", is_harmful=True),
        Prompt(id="d", prompt="four"),
    ]
    texts, targets, kinds, _ = guard_rows([], TAXONOMY, prompts)
    assert [tuple(text) for text in texts] == [("one", None), ("two", None), ("three", None)]
    assert kinds == ("prompt",)
    assert targets.unsafe.tolist() == [1, 0, 1]
    assert targets.passed.tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert targets.failed.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert targets.categories[0].nonzero().flatten().tolist() == [TAXONOMY.index("Drugs")]
    assert targets.category_weight.sum(dim=1).tolist() == [19, 0, 0]


def test_a_prompts_own_label_counts_before_that_of_an_exchange() -> None:
    exchange = Exchange(id="e", prompt="one", response="x", is_safe=True, prompt_is_harmful=True)
    own = Prompt(id="p", prompt="one", is_harmful=False)
    texts, targets, _, contradicting = guard_rows([exchange], TAXONOMY, [own])
    assert contradicting == 0
    assert [tuple(text) for text in texts] == [("one", "x"), ("one", None)]
    assert torch.equal(targets.unsafe, torch.tensor([0, 0]))


def test_a_file_of_prompts_alone_is_enough(tmp_path: Path) -> None:
    from equipoise.training.guard import GuardConfig

    assert GuardConfig(prompts=(tmp_path / "prompts.jsonl",)).exchanges == ()


@pytest.mark.parametrize("links", ["harmful", "benign", "both"])
def test_look_alike_prompts_are_a_group_whoever_names_the_other(links: str) -> None:
    prompts = [
        Prompt(id="h", prompt="kill a person", is_harmful=True, twin=None if links == "benign" else "b"),
        Prompt(id="x", prompt="bake bread", is_harmful=False),
        Prompt(id="b", prompt="kill a process", is_harmful=False, twin=None if links == "harmful" else "h"),
    ]
    targets = guard_rows([], TAXONOMY, prompts).targets
    assert targets.group[0] == targets.group[2] != NO_GROUP
    assert targets.group[1] == NO_GROUP
    assert by_group(targets) == [[0, 2], [1]]


def test_two_benign_twins_of_one_prompt_are_in_its_group() -> None:
    prompts = [
        Prompt(id="h", prompt="kill a person", is_harmful=True, twin="b"),
        Prompt(id="b", prompt="kill a process", is_harmful=False, twin="h"),
        Prompt(id="c", prompt="kill time", is_harmful=False, twin="h"),
    ]
    assert len(set(guard_rows([], TAXONOMY, prompts).targets.group.tolist())) == 1
