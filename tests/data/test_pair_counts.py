"""Where help and harm rank answers differently, counted by hand."""

import math
from collections import Counter
from typing import Any

import pytest

from equipoise.data.pair_counts import PairCounts, kind_of, pair_counts
from equipoise.records import Answer, Pair

Z = 1.959963984540054


def pair(first: dict[str, Any], second: dict[str, Any], better: Any, safer: Any) -> Pair:
    answers = (Answer(response="a", **first), Answer(response="b", **second))
    return Pair(id="x", prompt="p", answers=answers, better=better, safer=safer)


SAFE, MINOR, SEVERE = {"severity": 0}, {"severity": 1}, {"severity": 3}

PAIRS = [
    pair(SAFE, SAFE, 0, 0),
    pair(SAFE, SAFE, 0, 1),
    pair(SAFE, SEVERE, 1, 0),
    pair(SAFE, SEVERE, 1, 0),
    pair(SAFE, MINOR, 0, 0),
    pair(MINOR, SEVERE, 0, 0),
    pair({"is_safe": False}, SEVERE, 0, 1),
    pair({}, SEVERE, 1, 1),
    pair(SAFE, SAFE, "tie", 0),
    pair(SAFE, SEVERE, 1, None),
]


def counts(*pairs: Pair) -> PairCounts:
    found = pair_counts(Counter(map(kind_of, pairs)))
    assert found is not None
    return found


def test_conflicts_are_counted_by_the_safety_of_the_answers_and_by_the_gap_of_severities() -> None:
    found = counts(*PAIRS)
    assert {name: (c.better_not_safer, c.n) for name, c in found.conflict_by_state.items()} == {
        "both_safe": (1, 2),
        "mixed": (2, 3),
        "both_unsafe": (1, 2),
        "unlabelled": (0, 1),
    }
    assert {name: (c.better_not_safer, c.n) for name, c in found.conflict_by_gap.items()} == {
        "0": (1, 2),
        "1": (0, 1),
        "2": (0, 1),
        "3": (2, 2),
        "unlabelled": (1, 2),
    }
    assert (found.n, found.both_dimensions, found.better_not_safer) == (10, 8, 4)


def test_strata_are_parts_of_the_whole() -> None:
    found = counts(*PAIRS)
    for strata in (found.conflict_by_state, found.conflict_by_gap):
        assert sum(c.n for c in strata.values()) == found.both_dimensions
        assert sum(c.better_not_safer for c in strata.values()) == found.better_not_safer


def test_a_share_has_wilsons_interval_and_an_empty_stratum_has_none() -> None:
    mixed = counts(*PAIRS).conflict_by_state["mixed"]
    p, n = 2 / 3, 3
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    assert mixed.share == p
    assert (mixed.low, mixed.high) == pytest.approx((centre - half, centre + half))
    empty = counts(PAIRS[0]).conflict_by_gap["3"]
    assert (empty.n, empty.share, empty.low) == (0, None, None)


def test_no_pairs_are_no_counts() -> None:
    assert pair_counts({}) is None
