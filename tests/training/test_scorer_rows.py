"""Single answers beside pairs: how they share rows, what they train, and that nothing compares them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.config import parse_config
from equipoise.data.io import write_records
from equipoise.errors import ConfigError, DataError
from equipoise.lineage import produce
from equipoise.objectives.scoring import CostPairs, cost
from equipoise.records import Answer, Exchange, Pair
from equipoise.rewards.learned import load_scorer
from equipoise.training import scorer
from equipoise.training.scorer import TRAIN_SCORER, ScorerConfig, ScorerOptim
from equipoise.training.scorer_labels import pair_labels
from equipoise.training.scorer_rows import read_single, scorer_rows


def exchange(name: str, prompt: str, **labels: Any) -> Exchange:
    return Exchange(id=name, prompt=prompt, response=f"answer {name}", licence="CC0-1.0", **labels)


def test_answers_to_one_prompt_share_a_row_and_what_is_left_shares_one_with_what_is_left() -> None:
    answers = (Answer(response="x"), Answer(response="y"))
    pairs = [Pair(id="p", prompt="Two?", answers=answers), Pair(id="q", prompt="Five?", answers=answers)]
    prompts = ["One?", "One?", "two? ", "Three?", "One?", "Four?"]
    rows = scorer_rows(pairs, [exchange(str(i), prompt) for i, prompt in enumerate(prompts)])
    said = [tuple(text.response for text in row) for row in rows.texts]
    assert said[:2] == [("x", "y"), ("x", "y")]
    assert said[2:] == [("answer 0", "answer 1"), ("answer 4", "answer 2"), ("answer 3", "answer 5")]
    assert [text.prompt for text in rows.texts[3]] == ["One?", "two? "]
    assert rows.alone == 3
    named = {"two": rows.groups[0], "five": rows.groups[1], "one": rows.groups[2], "both": rows.groups[3]}
    assert named["two"] == named["one"] == named["both"]  # a pair to a prompt that shares a row goes along
    assert len({named["two"], named["five"], rows.groups[4]}) == 3


def test_the_last_one_alone_shares_its_row_with_nothing_that_has_a_label() -> None:
    rows = scorer_rows([], [exchange("a", "One?", is_safe=False, severity=2, categories={"Violence"})])
    (pair,) = rows.pairs
    assert pair.answers[0].is_safe is False
    assert pair.answers[1] == Answer(response="answer a")


@pytest.mark.parametrize("categories", [False, True])
def test_answers_that_stand_alone_are_not_compared(categories: bool) -> None:
    labels = {"is_safe": False, "severity": 3, "categories": {"Violence"}}
    safe = {"is_safe": True, "severity": 0, "categories": set()}
    rows = scorer_rows([], [exchange("a", "One?", **safe), exchange("b", "One?", **labels)])
    found, trained, _ = pair_labels(rows.pairs, alone=rows.alone, categories=categories)
    assert trained == ("cost",)
    parts = [found.harm, found.categories] if categories else [found.harm]
    for harm in parts:
        assert (harm.safer == -1).all()
        assert (harm.severity_gap == 0).all()
    costs = torch.tensor([0.3, -0.2], dtype=torch.float64)
    loss = cost(CostPairs(costs[:1], costs[1:], *found.harm), centring=0.0)
    expected = -torch.log(torch.sigmoid(torch.tensor([-0.3, -0.2], dtype=torch.float64))).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_cost_is_learned_from_single_answers_alone(tmp_path: Path, tiny_encoder: Path) -> None:
    rows = [
        exchange(str(i), f"question {i % 25}", is_safe=bool(i % 2)).model_copy(
            update={"response": f"mix flour and {'water' if i % 2 else 'mountains mountains'} {i}"}
        )
        for i in range(121)
    ]
    write_records(tmp_path / "rows.jsonl", rows[:81])
    config = ScorerConfig(
        exchanges=(tmp_path / "rows.jsonl",),
        backbone=str(tiny_encoder),
        layers=2,
        optim=ScorerOptim(epochs=20, lr=1e-2, device="cpu"),
    )
    outcome = produce(tmp_path / "scorer", TRAIN_SCORER, config)
    assert outcome.manifest.notes["rows"] == 81
    assert outcome.manifest.licences == ["CC0-1.0"]
    assert json.loads((tmp_path / "scorer" / "model.json").read_text())["trained"] == ["cost"]
    costs = [found.cost.value for found in load_scorer(tmp_path / "scorer")(rows[81:]) if found.cost]
    right = [(value > 0) is not bool(row.is_safe) for value, row in zip(costs, rows[81:], strict=True)]
    assert sum(right) / len(right) > 0.9


def test_a_training_compares_nothing_that_stands_alone_and_holds_out_whole_groups(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = (Answer(response="x", is_safe=True), Answer(response="y", is_safe=False))
    pairs = [Pair(id="p", prompt="two?", answers=answers, safer=0)]
    unsafe = {"is_safe": False, "severity": 3, "categories": {"Violence"}}
    single = [exchange("a", "One?", is_safe=True), exchange("b", "Two?", **unsafe)]
    write_records(tmp_path / "pairs.jsonl", pairs)
    write_records(tmp_path / "single.jsonl", single)
    seen: list[Any] = []

    def look(task: Any, *_: Any, **__: Any) -> None:
        seen.append((task.groups, task.collate([0, 1]).labels))

    monkeypatch.setattr(scorer, "fit", look)
    config = ScorerConfig(
        pairs=(tmp_path / "pairs.jsonl",),
        exchanges=(tmp_path / "single.jsonl",),
        backbone=str(tiny_encoder),
        layers=2,
        category_weight=1.0,
        optim=ScorerOptim(device="cpu"),
    )
    produce(tmp_path / "scorer", TRAIN_SCORER, config)
    ((groups, labels),) = seen
    assert len(groups) == 2
    assert len(set(groups)) == 1  # "Two?" shares a row with "One?"
    assert labels.harm.safer.tolist() == [0, -1]
    assert labels.harm.unsafe_0.tolist() == [0, 0]
    assert labels.harm.unsafe_1.tolist() == [1, 1]
    assert (labels.categories.safer[1] == -1).all()
    assert (labels.categories.unsafe_1[1] == 1).sum() == 1


def test_categories_of_two_taxonomies_are_refused_by_their_names(tmp_path: Path, tiny_encoder: Path) -> None:
    unsafe = {"is_safe": False, "categories": {"Violence"}}
    rows = [exchange("a", "One?", **unsafe), exchange("b", "Two?", taxonomy="beavertails14", is_safe=True)]
    write_records(tmp_path / "rows.jsonl", rows)
    config = ScorerConfig(
        exchanges=(tmp_path / "rows.jsonl",), backbone=str(tiny_encoder), category_weight=1.0
    )
    with pytest.raises(DataError, match="category_weight: records of taxonomies beavertails14, pku19"):
        produce(tmp_path / "scorer", TRAIN_SCORER, config)


def test_an_exchange_that_does_not_say_whether_it_is_safe_is_refused(tmp_path: Path) -> None:
    rows = [exchange("a", "One?", is_safe=True), exchange("b", "Two?", categories={"Violence"})]
    write_records(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match="exchanges: 1 of 2 have no is_safe, first b; expected one of each"):
        read_single([tmp_path / "rows.jsonl"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "expected pairs \\(--data\\) or exchanges"),
        ({"exchanges": ["a.jsonl"], "trunk": "last"}, "exchanges: go with trunk pooled, got last"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(ScorerConfig, given, "scorer")
