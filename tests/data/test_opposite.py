"""Pairs that stand more than once with opposite preferences."""

from typing import Any

from equipoise.data.io import Placed
from equipoise.data.opposite import opposite_preferences
from equipoise.records import Answer, Pair


def pair(first: str = "a", second: str = "b", **fields: Any) -> Pair:
    return Pair(id="p", prompt="ask", answers=(Answer(response=first), Answer(response=second)), **fields)


def swapped(one: Pair, **fields: Any) -> Pair:
    return one.model_copy(update={"answers": (one.answers[1], one.answers[0])} | fields)


def test_opposite_preferences_are_found_in_either_order_of_the_answers() -> None:
    one = pair(better=0, safer=0)
    rows = [
        one,
        one.model_copy(update={"better": 1}),  # better: against 1; safer: as 1
        swapped(one, better=1, safer=0),  # better: as 1; safer: against 1 and 2
        one.model_copy(update={"prompt": "another", "better": 1}),
        one.model_copy(update={"better": "tie", "safer": None}),
        pair("c", "c", better=0),
        pair("c", "c", better=1),
    ]
    found = opposite_preferences([Placed("f", line, row) for line, row in enumerate(rows, start=1)])
    assert [(one.line, one.field, one.message.split()[-1], one.kind) for one in found] == [
        (1, "better", "f:2", "preference"),
        (1, "safer", "f:3", "preference"),
        (2, "better", "f:1", "preference"),
        (2, "safer", "f:3", "preference"),
        (3, "better", "f:2", "preference"),
        (3, "safer", "f:1", "preference"),
    ]
