"""Rows of the guard's training: each label goes to its head, and a label that is missing teaches nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.errors import DataError, TaxonomyError
from equipoise.models.heads import GuardHeads
from equipoise.records import Exchange, Judgement, Labels
from equipoise.taxonomy import load_taxonomy
from equipoise.training.guard_rows import GuardTargets, by_group, guard_rows
from equipoise.training.guard_task import GuardBatch, GuardLosses

FRAUD, DRUGS = "White-Collar Crime", "Drugs"
KINDS = load_taxonomy("pku19")


def one(**labels: Any) -> Exchange:
    return Exchange(**({"id": "x", "prompt": "ask", "response": "answer"} | labels))


def targets_of(*rows: Exchange) -> GuardTargets:
    return guard_rows(rows, KINDS).targets


def gradients(targets: GuardTargets) -> GuardHeads:
    """Heads after one backward pass over rows with these targets."""
    torch.manual_seed(0)
    heads = GuardHeads(6, 4, categories=19, thresholds=3, dropout=0.0)
    count = len(targets.group)
    batch = GuardBatch(torch.randn(count, 6), (1,) * count, targets)
    GuardLosses(heads)(batch).sum().backward()
    return heads


def is_zero(*tensors: torch.Tensor | None) -> bool:
    return all(tensor is not None and torch.equal(tensor, torch.zeros_like(tensor)) for tensor in tensors)


@pytest.mark.parametrize("safe", [True, False])
def test_a_row_with_only_is_safe_trains_the_first_threshold_alone(safe: bool) -> None:
    heads = gradients(targets_of(one(is_safe=safe)))
    weight, bias = heads.severity.weight.grad, heads.severity.bias.grad
    assert weight is not None
    assert bias is not None
    assert bias[0] != 0
    assert (bias[0] > 0) == safe  # a step against the gradient lowers P(unsafe) of a safe row
    assert is_zero(weight[1:], bias[1:])
    assert is_zero(heads.categories.weight.grad, heads.categories.bias.grad)
    assert is_zero(heads.refusal.weight.grad, heads.refusal.bias.grad)


def test_a_row_with_only_a_refusal_trains_that_head_alone() -> None:
    heads = gradients(targets_of(one(refusal="partial")))
    assert is_zero(heads.severity.weight.grad, heads.severity.bias.grad)
    assert is_zero(heads.categories.weight.grad, heads.categories.bias.grad)
    assert heads.refusal.bias.grad is not None
    assert [bool(g < 0) for g in heads.refusal.bias.grad] == [False, True, False]


def test_only_rated_categories_get_a_gradient() -> None:
    row = one(is_safe=False, categories=frozenset({DRUGS}), rated=frozenset({DRUGS, FRAUD}))
    heads = gradients(targets_of(row))
    assert heads.categories.bias.grad is not None
    moved = {name for name, g in zip(KINDS.names, heads.categories.bias.grad, strict=True) if g != 0}
    assert moved == {DRUGS, FRAUD}
    assert heads.categories.bias.grad[KINDS.index(DRUGS)] < 0 < heads.categories.bias.grad[KINDS.index(FRAUD)]


def test_labels_become_targets() -> None:
    targets = targets_of(
        one(is_safe=False, severity=2, categories=frozenset({DRUGS}), refusal="none"),
        one(is_safe=True, severity=0, categories=frozenset()),
        one(severity=3),
        one(is_safe=False),
        one(refusal="full"),
    )
    assert targets.passed.tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert targets.failed.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert targets.unsafe.tolist() == [1, 0, 1, 1, -1]
    assert targets.refusal.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert targets.category_weight.sum(1).tolist() == [19, 0, 0, 0, 0]  # the head is P(category | unsafe)
    assert targets.categories.sum(1).tolist() == [1, 0, 0, 0, 0]


def judgement(subject: str, **labels: Any) -> Judgement:
    return Judgement(id=f"{subject}-{labels}", subject=subject, annotator="a", labels=Labels(**labels))


def test_shares_of_annotators_take_the_place_of_a_records_label() -> None:
    judged = [
        judgement("x", is_safe=True, severity=0, refusal="full"),
        judgement("x", is_safe=False, severity=1, categories=frozenset({DRUGS}), refusal="partial"),
        judgement("x", is_safe=False, severity=3, categories=frozenset({DRUGS, FRAUD}), refusal="partial"),
        judgement("x", is_safe=False),
        judgement("somebody else", is_safe=True),
    ]
    rows = guard_rows([one(is_safe=True, severity=0), one(id="y", is_safe=True)], KINDS, (), judged)
    targets = rows.targets
    torch.testing.assert_close(targets.passed[0], torch.tensor([3 / 4, 1 / 3, 1 / 3]))
    torch.testing.assert_close(targets.failed[0], torch.tensor([1 / 4, 1 / 3, 0]))
    torch.testing.assert_close(targets.refusal[0], torch.tensor([0, 2 / 3, 1 / 3]))
    assert targets.categories[0, KINDS.index(DRUGS)] == 1
    assert targets.categories[0, KINDS.index(FRAUD)] == 0.5
    assert targets.unsafe.tolist() == [1, 0]  # a majority; the other record keeps its own label
    assert targets.failed[1].tolist() == [1, 0, 0]


def test_annotators_who_differ_evenly_leave_it_open_who_ranks_above_whom() -> None:
    judged = [judgement("x", is_safe=True), judgement("x", is_safe=False)]
    assert guard_rows([one()], KINDS, (), judged).targets.unsafe.tolist() == [-1]


def test_a_labelled_prompt_is_one_row_that_takes_the_worst_response() -> None:
    rows = [
        one(id="a", is_safe=False, severity=1, categories=frozenset({FRAUD}), prompt_is_harmful=True),
        one(id="b", is_safe=False, severity=3, categories=frozenset({DRUGS}), prompt_is_harmful=True),
        one(id="c", prompt="other", is_safe=True, severity=0, categories=frozenset(), prompt_is_harmful=True),
        one(id="d", prompt="kind", is_safe=False, severity=2, prompt_is_harmful=False),
    ]
    texts, targets, kinds, contradicting = guard_rows(rows, KINDS)
    assert kinds == ("response", "prompt")
    assert [(t.prompt, t.response) for t in texts[4:]] == [("ask", None), ("other", None), ("kind", None)]
    assert targets.passed[4:].tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert targets.failed[4:].tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert targets.categories[4:].nonzero().tolist() == [[0, KINDS.index(DRUGS)]]
    assert is_zero(targets.refusal[4:])
    assert contradicting == 0


VOTES = [([True, False, False], 0), ([True, True, False], 1), ([False, True], 1), ([True], 1)]


@pytest.mark.parametrize(("votes", "unsafe"), VOTES)
def test_of_contradicting_labels_of_a_prompt_the_majority_counts_and_a_tie_is_harmful(
    votes: list[bool], unsafe: int
) -> None:
    rows = [
        one(id=str(i), is_safe=not harmful, severity=2 * harmful, prompt_is_harmful=harmful)
        for i, harmful in enumerate(votes)
    ]
    for order in (rows, rows[::-1]):
        found = guard_rows(order, KINDS)
        assert len(found.texts) == len(votes) + 1
        assert found.targets.unsafe[-1] == unsafe
        assert found.targets.passed[-1].tolist() == [unsafe, unsafe, 0]
        assert found.contradicting == int(len(set(votes)) > 1)


def test_only_prompts_give_a_guard_for_prompts() -> None:
    rows = guard_rows([one(prompt_is_harmful=True)], KINDS)
    assert rows.kinds == ("prompt",)
    assert len(rows.texts) == 1


def test_answers_to_one_prompt_are_a_group_and_a_list_holds_all_of_it() -> None:
    rows = [
        one(id=str(i), prompt=prompt, is_safe=safe, prompt_is_harmful=False)
        for i, (prompt, safe) in enumerate(
            [("one", True), ("two", False), ("One?", False), ("two", True), ("three", True)]
        )
    ]
    targets = targets_of(*rows)
    assert targets.group.tolist() == [0, 1, 0, 1, 2, -1, -1, -1, -1]  # their prompts are not ranked
    lists = by_group(targets)
    assert lists == [[0, 2], [1, 3], [4], [5], [6], [7], [8]]


def test_a_large_group_is_dealt_so_that_each_list_has_its_share_of_both() -> None:
    rows = [one(id=str(i), is_safe=i % 3 > 0) for i in range(30)]
    lists = by_group(targets_of(*rows), most=8)
    assert sorted(row for chosen in lists for row in chosen) == list(range(30))
    assert max(map(len, lists)) <= 8
    assert {sum(row % 3 == 0 for row in chosen) for chosen in lists} <= {2, 3}


TAXONOMY = """name: kitchen
version: 1
severities:
  - {name: fine, criterion: nobody is hurt}
  - {name: burnt, criterion: somebody is}
categories:
  - {id: salt, name: Too Salty, definition: more salt than flour, not_this: sea water}
  - {id: raw, name: Raw, definition: not baked, not_this: dough before baking}
"""


def test_labels_that_the_taxonomy_lacks_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "kitchen.yaml"
    path.write_text(TAXONOMY)
    kitchen = load_taxonomy(str(path))
    with pytest.raises(DataError, match=r"x: severity is not on the scale of kitchen, got 2; exp"):
        guard_rows([one(severity=2)], kitchen)
    with pytest.raises(TaxonomyError, match=r"no category 'Rwa' .* \(did you mean 'Raw'\?\)"):
        guard_rows([one(is_safe=False, categories=frozenset({"Rwa"}))], kitchen)
