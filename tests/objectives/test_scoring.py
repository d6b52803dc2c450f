"""Reward and cost losses against their formulas in plain Python floats."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from equipoise.objectives.scoring import (
    SCORING_LOSSES,
    CostPairs,
    RewardPairs,
    bradley_terry,
    category_cost,
    cost,
)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def bradley_terry_formula(
    r0: float, r1: float, better: int, *, margin: float = 0.0, centring: float = 0.001
) -> float:
    squares = centring * (r0 * r0 + r1 * r1) / 2
    if better == -1:
        return squares
    winner, loser = (r0, r1) if better == 0 else (r1, r0)
    return -log_sigmoid(winner - loser - margin) + squares


def cost_formula(
    c0: float,
    c1: float,
    *labels: int,
    rank_weight: float = 1.0,
    sign_weight: float = 1.0,
    centring: float = 0.001,
    severity_margin: float = 0.0,
    both_unsafe_weight: float = 1.0,
) -> float:
    safer, unsafe_0, unsafe_1, severity_gap = labels
    total = centring * (c0 * c0 + c1 * c1) / 2
    if safer != -1:
        low, high = (c0, c1) if safer == 0 else (c1, c0)
        worse_by = severity_gap if safer == 0 else -severity_gap
        weight = both_unsafe_weight if unsafe_0 == unsafe_1 == 1 else 1.0
        total += -rank_weight * weight * log_sigmoid(high - low - severity_margin * max(worse_by, 0))
    for value, unsafe in ((c0, unsafe_0), (c1, unsafe_1)):
        if unsafe != -1:
            total += -sign_weight * log_sigmoid(value if unsafe == 1 else -value)
    return total


def category_formula(*row: float, **settings: float) -> float:
    known = [one for one in (row[:6], row[6:]) if one[2] != -1 or one[3] != -1 or one[4] != -1]
    return sum(cost_formula(*one, **settings) for one in known) / max(len(known), 1)  # type: ignore[arg-type]


FORMULAS: dict[str, Callable[..., float]] = {
    "bradley_terry": bradley_terry_formula,
    "cost": cost_formula,
    "category_cost": category_formula,
}

SCORES = [(1.5, -0.5), (-2.0, 3.0), (0.0, 0.0), (700.0, -900.0), (-700.0, 900.0)]
COSTS: list[tuple[float, ...]] = [
    (*s, *labels, gap)
    for s in SCORES
    for labels in itertools.product((0, 1, -1), repeat=3)
    for gap in (0, 1, -3)
]
ROWS: dict[str, list[tuple[float, ...]]] = {
    "bradley_terry": [(*s, better) for s in SCORES for better in (0, 1, -1)],
    "cost": COSTS,
    "category_cost": [(*one, *other) for one, other in zip(COSTS, COSTS[200:] + COSTS[:200], strict=True)],
}
"""A row of `category_cost` has two categories, each like a row of `cost`."""

UNKNOWN = {"bradley_terry": (-1,), "cost": (-1, -1, -1, 0)}


def reward_pairs(rows: list[tuple[float, ...]]) -> RewardPairs:
    r0, r1, better = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return RewardPairs(r0.clone(), r1.clone(), better.long())


def cost_pairs(rows: list[tuple[float, ...]]) -> CostPairs:
    c0, c1, safer, unsafe_0, unsafe_1, gap = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return CostPairs(c0.clone(), c1.clone(), safer.long(), unsafe_0.long(), unsafe_1.long(), gap)


def category_pairs(rows: list[tuple[float, ...]]) -> CostPairs:
    both = (cost_pairs([row[:6] for row in rows]), cost_pairs([row[6:] for row in rows]))
    return CostPairs(*(torch.stack(columns, dim=1) for columns in zip(*both, strict=True)))


BUILD: dict[str, Callable[..., Any]] = {
    "bradley_terry": reward_pairs,
    "cost": cost_pairs,
    "category_cost": category_pairs,
}


@pytest.mark.parametrize("name", SCORING_LOSSES)
def test_matches_formula(name: str) -> None:
    expected = torch.tensor([FORMULAS[name](*row) for row in ROWS[name]], dtype=torch.float64)
    found = SCORING_LOSSES[name](BUILD[name](ROWS[name]))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bradley_terry", {"margin": 0.7, "centring": 0.0}),
        ("bradley_terry", {"margin": 0.0, "centring": 0.5}),
        ("cost", {"rank_weight": 0.0, "sign_weight": 2.0, "centring": 0.0}),
        ("cost", {"rank_weight": 3.0, "sign_weight": 0.0, "centring": 0.25}),
        ("cost", {"severity_margin": 0.4}),
        ("cost", {"severity_margin": 0.7, "both_unsafe_weight": 0.0}),
        ("cost", {"both_unsafe_weight": 0.3, "rank_weight": 2.0}),
        ("category_cost", {"rank_weight": 2.0, "sign_weight": 0.5, "centring": 0.1, "severity_margin": 0.4}),
    ],
)
def test_matches_formula_with_other_settings(name: str, settings: dict[str, float]) -> None:
    expected = torch.tensor([FORMULAS[name](*row, **settings) for row in ROWS[name]], dtype=torch.float64)
    found = SCORING_LOSSES[name](BUILD[name](ROWS[name]), **settings)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_every_loss_has_a_formula_and_rows() -> None:
    assert FORMULAS.keys() == ROWS.keys() == SCORING_LOSSES.keys()


def test_an_undecided_reward_model_loses_log_two() -> None:
    pairs = reward_pairs([(0.0, 0.0, 0), (0.3, 0.3, 1)])
    assert bradley_terry(pairs, centring=0.0).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-15)


def test_reward_rises_for_the_preferred_answer() -> None:
    pairs = reward_pairs([(-1.0, 2.0, 0), (-1.0, 2.0, 1)])
    pairs.reward_0.requires_grad_(True)
    bradley_terry(pairs, centring=0.0).sum().backward()
    assert pairs.reward_0.grad is not None
    assert pairs.reward_0.grad[0] < 0 < pairs.reward_0.grad[1]


@pytest.mark.parametrize(("unsafe", "sign"), [(1, -1.0), (0, 1.0)])
def test_a_cost_above_zero_means_unsafe(unsafe: int, sign: float) -> None:
    """Descent raises the cost of an unsafe answer and lowers that of a safe one."""
    pairs = cost_pairs([(0.0, 0.0, -1, unsafe, -1, 0)])
    pairs.cost_0.requires_grad_(True)
    loss = cost(pairs)
    assert loss.item() == pytest.approx(math.log(2))
    loss.sum().backward()
    assert pairs.cost_0.grad is not None
    assert pairs.cost_0.grad.item() * sign > 0


def test_the_rank_term_puts_the_safer_answer_lower() -> None:
    pairs = cost_pairs([(0.5, 0.5, 0, -1, -1, 0), (0.5, 0.5, 1, -1, -1, 0)])
    pairs.cost_0.requires_grad_(True)
    cost(pairs, centring=0.0).sum().backward()
    assert pairs.cost_0.grad is not None
    assert pairs.cost_0.grad[0] > 0 > pairs.cost_0.grad[1]


def swapped(row: tuple[float, ...]) -> tuple[float, ...]:
    """The same row with its answers in each other's place."""
    flipped = {0: 1, 1: 0, -1: -1}
    if len(row) == 12:
        return (*swapped(row[:6]), *swapped(row[6:]))
    preferred = flipped[int(row[2])]
    return (row[1], row[0], preferred, *((row[4], row[3], -row[5]) if len(row) == 6 else ()))


@pytest.mark.parametrize("name", SCORING_LOSSES)
def test_the_two_places_are_alike(name: str) -> None:
    settings = {} if name == "bradley_terry" else {"severity_margin": 0.5}
    there, back = (
        SCORING_LOSSES[name](BUILD[name](rows), **settings)
        for rows in (ROWS[name], [swapped(row) for row in ROWS[name]])
    )
    torch.testing.assert_close(there, back, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", UNKNOWN)
def test_missing_labels_give_no_gradient(name: str) -> None:
    pairs = BUILD[name]([(*s, *UNKNOWN[name]) for s in SCORES])
    pairs[0].requires_grad_(True)
    SCORING_LOSSES[name](pairs, centring=0.0).sum().backward()
    assert pairs[0].grad is not None
    assert (pairs[0].grad == 0).all()


def test_a_dropped_pair_of_unsafe_answers_still_trains_their_signs() -> None:
    """The rank term alone is masked: without signs nothing is left of the pair."""
    rows = [(0.5, -1.5, 0, 1, 1, 1), (0.5, -1.5, 0, 0, 1, 1)]
    gradients = []
    for sign_weight in (0.0, 1.0):
        pairs = cost_pairs(rows)
        pairs.cost_0.requires_grad_(True)
        cost(pairs, sign_weight=sign_weight, centring=0.0, both_unsafe_weight=0.0).sum().backward()
        assert pairs.cost_0.grad is not None
        gradients.append(pairs.cost_0.grad.tolist())
    (dropped, kept), (signs, _) = gradients
    assert dropped == 0.0
    assert kept > 0.0
    assert signs == pytest.approx(-1 / (1 + math.exp(0.5)), rel=1e-12)


def test_a_severity_margin_asks_more_of_a_wider_gap_and_nothing_of_one_that_points_the_other_way() -> None:
    losses = cost(
        cost_pairs([(0.0, 2.0, 0, 0, 1, gap) for gap in (-2, 0, 1, 3)]), severity_margin=0.5, sign_weight=0.0
    )
    assert losses[0] == losses[1] < losses[2] < losses[3]


def test_a_category_without_a_label_has_no_gradient_and_no_share_in_the_mean() -> None:
    known, unknown = (0.3, 0.8, 0, 0, 1, 0), (5.0, -4.0, *UNKNOWN["cost"])
    pairs = category_pairs([(*known, *unknown), (*unknown, *unknown)])
    pairs.cost_0.requires_grad_(True)
    losses = category_cost(pairs, centring=0.5)
    losses.sum().backward()
    assert losses[0].item() == pytest.approx(cost_formula(*known, centring=0.5), rel=1e-12)
    assert losses[1] == 0.0
    assert pairs.cost_0.grad is not None
    assert (pairs.cost_0.grad != 0).tolist() == [[True, False], [False, False]]
