"""Merging: the same once, the different kept, and taxonomies apart."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest

from equipoise.data.check import Finding
from equipoise.data.identity import AnyRecord
from equipoise.data.io import Placed
from equipoise.data.merge import Merged, merge
from equipoise.errors import DataError
from equipoise.records import Answer, Exchange, Pair, Prompt


class Result(NamedTuple):
    records: list[AnyRecord]
    duplicates: list[str]
    renamed: dict[str, str]
    conflicts: list[Finding]


def merged(*files: Sequence[AnyRecord]) -> Result:
    placed = (
        Placed(f"f{index}", line, record)
        for index, records in enumerate(files)
        for line, record in enumerate(records, start=1)
    )
    log = Merged([], {}, [])
    return Result(list(merge(placed, log)), *log)


ONE = Exchange(id="1", source="a", prompt="p", response="r", is_safe=True, categories=frozenset())


def test_the_same_texts_and_labels_stand_once() -> None:
    result = merged([ONE], [ONE.model_copy(update={"id": "2", "source": "b", "licence": "MIT"})])
    assert (result.records, result.duplicates) == ([ONE], ["f1:1"])


def test_other_labels_are_another_record() -> None:
    more = ONE.model_copy(update={"id": "2", "severity": 0})
    result = merged([ONE], [more])
    assert (result.records, result.duplicates, result.conflicts) == ([ONE, more], [], [])


def test_opposite_labels_are_kept_and_reported() -> None:
    other = ONE.model_copy(update={"id": "2", "is_safe": False, "categories": None})
    result = merged([ONE], [other])
    assert result.records == [ONE, other]
    (conflict,) = result.conflicts
    assert str(conflict) == "f1:1: is_safe: unsafe, but the same text is safe at f0:1 (conflict, id 2)"


def test_a_taken_id_gets_a_number() -> None:
    others = [ONE.model_copy(update={"response": text}) for text in "xy"]
    result = merged([ONE], others)
    assert [record.id for record in result.records] == ["1", "1-2", "1-3"]
    assert result.renamed == {"f1:1": "1-2", "f1:2": "1-3"}


def test_a_pair_the_other_way_round_is_the_same_pair() -> None:
    first, second = Answer(response="a", is_safe=True), Answer(response="b", is_safe=False)
    pair = Pair(id="1", prompt="p", answers=(first, second), better=1, safer=0, overall="tie")
    turned = Pair(id="2", prompt="p", answers=(second, first), better=0, safer=1, overall="tie")
    assert merged([pair], [turned]).duplicates == ["f1:1"]
    otherwise = turned.model_copy(update={"better": 1})
    assert merged([pair], [otherwise]).duplicates == []


def test_kinds_and_taxonomies_are_not_mixed() -> None:
    with pytest.raises(DataError, match=r"f1:1: line: .*got Prompt after Exchange"):
        merged([ONE], [Prompt(id="2", prompt="p")])
    with pytest.raises(DataError, match=r"f1:1: taxonomy: .*got 'beavertails14' after 'pku19'"):
        merged([ONE], [ONE.model_copy(update={"taxonomy": "beavertails14"})])
