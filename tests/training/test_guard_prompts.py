"""A guard that learns from prompts with labels of their own."""

from pathlib import Path

import torch

from equipoise.records import Exchange, Prompt
from equipoise.taxonomy import load_taxonomy
from equipoise.training.guard import UNKNOWN, guard_rows

TAXONOMY = load_taxonomy("pku19")


def test_a_labelled_prompt_is_a_row_without_a_response() -> None:
    prompts = [
        Prompt(id="a", prompt="one", is_harmful=True, categories=frozenset({"Drugs"}), severity=3),
        Prompt(id="b", prompt="two", is_harmful=False),
        Prompt(id="c", prompt="three", is_harmful=True),
        Prompt(id="d", prompt="four"),
    ]
    texts, targets, kinds = guard_rows([], TAXONOMY, prompts)
    assert [tuple(text) for text in texts] == [("one", None), ("two", None), ("three", None)]
    assert kinds == ("prompt",)
    assert targets.unsafe.tolist() == [1, 0, 1]
    assert targets.level.tolist() == [3, 0, UNKNOWN]
    assert targets.categories[0].nonzero().flatten().tolist() == [TAXONOMY.index("Drugs")]
    assert targets.category_mask.sum(dim=1).tolist() == [19, 0, 0]


def test_a_prompts_own_label_counts_before_that_of_an_exchange() -> None:
    exchange = Exchange(id="e", prompt="one", response="x", is_safe=True, prompt_is_harmful=True)
    texts, targets, _ = guard_rows([exchange], TAXONOMY, [Prompt(id="p", prompt="one", is_harmful=False)])
    assert [tuple(text) for text in texts] == [("one", "x"), ("one", None)]
    assert torch.equal(targets.unsafe, torch.tensor([0, 0]))


def test_a_file_of_prompts_alone_is_enough(tmp_path: Path) -> None:
    from equipoise.training.guard import GuardConfig

    assert GuardConfig(prompts=(tmp_path / "prompts.jsonl",)).exchanges == ()
