"""The same text with different labels is found, however it is spelt; what says nothing is no conflict."""

import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

from equipoise.annotation.conflicts import Conflict, conflict_queue, find_conflicts
from equipoise.records import Answer, Exchange, Pair, Prompt


def test_prompts_that_differ_in_case_and_spacing_are_the_same() -> None:
    records = [
        Prompt(id="1", prompt="How do locks work?", is_harmful=False),
        Prompt(id="2", prompt="  how do LOCKS\n work? ", is_harmful=True),
        Prompt(id="3", prompt="How do locks work", is_harmful=True),
        Prompt(id="4", prompt="\uff28ow do locks work?"),
    ]
    assert find_conflicts(records) == [Conflict("prompt.is_harmful", {"False": ("1",), "True": ("2",)})]


def test_columns_of_the_source_can_be_labels() -> None:
    records = [
        Prompt(id=str(i), prompt=text, provenance={"kind": kind})
        for i, (text, kind) in enumerate([("a b", "x"), ("A  b", "y"), ("c", "x"), ("C", "x"), ("a b", "y")])
    ]
    (found,) = find_conflicts(records, ["kind"])
    assert found == Conflict("prompt.provenance.kind", {"x": ("0",), "y": ("1", "4")})
    assert [record.id for record in conflict_queue(records, [found])] == ["0", "1", "4"]
    assert find_conflicts(records) == []


def test_a_response_is_compared_in_its_prompt_alone_and_in_pairs() -> None:
    one = Exchange(id="1", prompt="p", response="Yes.", is_safe=True, severity=0)
    pair = Pair(
        id="2", prompt="P", answers=(Answer(response="yes.", is_safe=False), Answer(response="no")), safer=1
    )
    other = one.model_copy(update={"id": "3", "prompt": "q", "is_safe": False, "severity": None})
    (found,) = find_conflicts([one, pair, other])
    assert (found.field, found.ids) == ("response.is_safe", ("1", "2"))


def test_a_pair_the_other_way_round_is_the_same_pair() -> None:
    first, second = Answer(response="a"), Answer(response="b")
    one = Pair(id="1", prompt="p", answers=(first, second), better=0, safer="tie")
    same = Pair(id="2", prompt="p", answers=(second, first), better=1, safer="tie")
    against = same.model_copy(update={"id": "3", "better": 0})
    assert find_conflicts([one, same]) == []
    (found,) = find_conflicts([one, same, against])
    assert (found.field, found.values) == ("pair.better", {"0": ("1", "2"), "1": ("3",)})


def test_categories_that_were_rated_in_part_are_not_compared() -> None:
    one = Exchange(id="1", prompt="p", response="r", categories=frozenset({"Drugs"}))
    part = Exchange(id="2", prompt="p", response="r", categories=frozenset(), rated=frozenset({"Violence"}))
    assert find_conflicts([one, part]) == []
    none = Exchange(id="3", prompt="p", response="r", categories=frozenset())
    (found,) = find_conflicts([one, part, none])
    assert found.values == {"Drugs": ("1",), "none": ("3",)}


def test_taxonomies_are_kept_apart() -> None:
    one = Exchange(id="1", prompt="p", response="r", is_safe=True)
    other = one.model_copy(update={"id": "2", "is_safe": False, "taxonomy": "beavertails14"})
    assert find_conflicts([one, other]) == []


@pytest.mark.slow
def test_all_conflicts_of_the_relabelled_prompts_are_found() -> None:
    """Needs EQUIPOISE_DATA, a folder with risk_kinds.jsonl: prompts that a model labelled, many twice."""
    folder = os.environ.get("EQUIPOISE_DATA")
    if not folder:
        pytest.skip("EQUIPOISE_DATA names no folder")
    rows = [json.loads(line) for line in (Path(folder) / "risk_kinds.jsonl").read_text("utf-8").splitlines()]
    kinds = defaultdict(set)
    for row in rows:
        kinds[" ".join(row["prompt"].lower().split())].add(row["risk_kind"])
    records = [
        Prompt(id=f"{i}", prompt=row["prompt"], provenance={"risk_kind": row["risk_kind"]})
        for i, row in enumerate(rows)
    ]
    found = find_conflicts(records, ["risk_kind"])
    assert len(found) == 81 == sum(len(values) > 1 for values in kinds.values())
