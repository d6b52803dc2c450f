"""Reward and cost losses against their formulas in plain Python floats."""

import itertools
import math

import pytest
import torch

from equipoise.objectives.scoring import SCORING_LOSSES, CostPairs, RewardPairs, bradley_terry, cost


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
    safer: int,
    unsafe_0: int,
    unsafe_1: int,
    *,
    rank_weight: float = 1.0,
    sign_weight: float = 1.0,
    centring: float = 0.001,
) -> float:
    total = centring * (c0 * c0 + c1 * c1) / 2
    if safer != -1:
        low, high = (c0, c1) if safer == 0 else (c1, c0)
        total += -rank_weight * log_sigmoid(high - low)
    for value, unsafe in ((c0, unsafe_0), (c1, unsafe_1)):
        if unsafe != -1:
            total += -sign_weight * log_sigmoid(value if unsafe == 1 else -value)
    return total


FORMULAS = {"bradley_terry": bradley_terry_formula, "cost": cost_formula}

SCORES = [(1.5, -0.5), (-2.0, 3.0), (0.0, 0.0), (700.0, -900.0), (-700.0, 900.0)]
ROWS = {
    "bradley_terry": [(*s, better) for s in SCORES for better in (0, 1, -1)],
    "cost": [(*s, *labels) for s in SCORES for labels in itertools.product((0, 1, -1), repeat=3)],
}


def reward_pairs(rows: list[tuple[float, ...]]) -> RewardPairs:
    r0, r1, better = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return RewardPairs(r0.clone(), r1.clone(), better.long())


def cost_pairs(rows: list[tuple[float, ...]]) -> CostPairs:
    c0, c1, safer, unsafe_0, unsafe_1 = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return CostPairs(c0.clone(), c1.clone(), safer.long(), unsafe_0.long(), unsafe_1.long())


BUILD = {"bradley_terry": reward_pairs, "cost": cost_pairs}


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
    pairs = cost_pairs([(0.0, 0.0, -1, unsafe, -1)])
    pairs.cost_0.requires_grad_(True)
    loss = cost(pairs)
    assert loss.item() == pytest.approx(math.log(2))
    loss.sum().backward()
    assert pairs.cost_0.grad is not None
    assert pairs.cost_0.grad.item() * sign > 0


def test_the_rank_term_puts_the_safer_answer_lower() -> None:
    pairs = cost_pairs([(0.5, 0.5, 0, -1, -1), (0.5, 0.5, 1, -1, -1)])
    pairs.cost_0.requires_grad_(True)
    cost(pairs, centring=0.0).sum().backward()
    assert pairs.cost_0.grad is not None
    assert pairs.cost_0.grad[0] > 0 > pairs.cost_0.grad[1]


@pytest.mark.parametrize("name", SCORING_LOSSES)
def test_the_two_places_are_alike(name: str) -> None:
    flipped = {0: 1, 1: 0, -1: -1}
    swapped = [
        (row[1], row[0], flipped[int(row[2])], *((row[4], row[3]) if name == "cost" else ()))
        for row in ROWS[name]
    ]
    there, back = (SCORING_LOSSES[name](BUILD[name](rows)) for rows in (ROWS[name], swapped))
    torch.testing.assert_close(there, back, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", SCORING_LOSSES)
def test_missing_labels_give_no_gradient(name: str) -> None:
    unlabelled = [(*s, *[-1] * (len(ROWS[name][0]) - 2)) for s in SCORES]
    pairs = BUILD[name](unlabelled)
    pairs[0].requires_grad_(True)
    SCORING_LOSSES[name](pairs, centring=0.0).sum().backward()
    assert pairs[0].grad is not None
    assert (pairs[0].grad == 0).all()
