"""Losses for several wishes against their formulas in plain floats, and against the policy they must find."""

import math

import pytest
import torch

from equipoise.objectives.multi_objective import (
    MULTI_OBJECTIVE_LOSSES,
    implicit_rewards,
    modpo,
    soft_dpo,
)
from equipoise.objectives.preference import PairLogps, dpo, implicit_reward_margin


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def soft(z: float, m: float) -> float:
    p = math.exp(log_sigmoid(m))
    return -p * log_sigmoid(z) - math.exp(log_sigmoid(-m)) * log_sigmoid(-z)


# name -> formula over (chosen, rejected, ref_chosen, ref_rejected, margin reward)
FORMULAS = {
    "modpo": lambda c, r, rc, rr, m: -log_sigmoid(0.1 * ((c - rc) - (r - rr)) / 0.5 - 0.5 * m / 0.5),
    "soft_dpo": lambda c, r, rc, rr, m: soft(0.1 * ((c - rc) - (r - rr)), m),
}

MOVES = [
    (-10.0, -12.0, -11.0, -11.5),  # the policy moved the right way
    (-30.0, -10.0, -12.0, -12.0),  # the policy moved the wrong way
    (-7.0, -8.0, -7.0, -8.0),  # nothing learned yet
    (-1e4, -1.0, -1.0, -1e4),
    (-1.0, -1e4, -1e4, -1.0),
]
MARGINS = [0.0, 0.7, -0.7, 40.0, -40.0]
ROWS = [(*move, margin) for move in MOVES for margin in MARGINS]


def batch(rows: list[tuple[float, ...]]) -> PairLogps:
    chosen, rejected, ref_chosen, ref_rejected, margin = torch.tensor(rows, dtype=torch.float64).unbind(1)
    ones = torch.ones_like(chosen)
    return PairLogps(
        chosen, rejected, ref_chosen, ref_rejected, ones, ones, 0 * ones, 0 * ones, margin_reward=margin
    )


@pytest.mark.parametrize("name", MULTI_OBJECTIVE_LOSSES)
def test_matches_formula(name: str) -> None:
    expected = torch.tensor([FORMULAS[name](*row) for row in ROWS], dtype=torch.float64)
    torch.testing.assert_close(MULTI_OBJECTIVE_LOSSES[name](batch(ROWS)), expected, rtol=1e-12, atol=1e-12)


def test_every_loss_has_a_formula() -> None:
    assert FORMULAS.keys() == MULTI_OBJECTIVE_LOSSES.keys()


@pytest.mark.parametrize("name", MULTI_OBJECTIVE_LOSSES)
def test_one_pair_does_not_depend_on_the_others(name: str) -> None:
    whole = MULTI_OBJECTIVE_LOSSES[name](batch(ROWS))
    alone = torch.cat([MULTI_OBJECTIVE_LOSSES[name](batch([row])) for row in ROWS])
    torch.testing.assert_close(whole, alone, rtol=1e-14, atol=0)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("beta", [0.01, 2.0])
def test_modpo_matches_formula_with_other_settings(beta: float, weight: float) -> None:
    def formula(c: float, r: float, rc: float, rr: float, m: float) -> float:
        of_chosen = (beta * (c - rc) - (1 - weight) * m) / weight
        of_rejected = beta * (r - rr) / weight
        return -log_sigmoid(of_chosen - of_rejected)

    expected = torch.tensor([formula(*row) for row in ROWS], dtype=torch.float64)
    torch.testing.assert_close(modpo(batch(ROWS), beta=beta, weight=weight), expected, rtol=1e-12, atol=1e-12)


def test_modpo_with_all_weight_on_its_own_wish_is_dpo_whatever_the_margin_reward() -> None:
    pair = batch(ROWS)
    assert torch.equal(modpo(pair, beta=0.3, weight=1.0), dpo(pair, beta=0.3))


@pytest.mark.parametrize("weight", [0.0, -0.1, 1.1, math.nan])
def test_modpo_refuses_a_weight_that_it_cannot_divide_by(weight: float) -> None:
    with pytest.raises(ValueError, match=r"modpo: weight: got .*; expected above 0, and at most 1"):
        modpo(batch(ROWS), weight=weight)


@pytest.mark.parametrize("name", MULTI_OBJECTIVE_LOSSES)
@pytest.mark.parametrize("beta", [0.0, -0.1])
def test_a_beta_with_which_nothing_or_the_reverse_is_learned_is_refused(name: str, beta: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}: beta: got {beta}; expected above 0"):
        MULTI_OBJECTIVE_LOSSES[name](batch(ROWS), beta=beta)


def slope_at(name: str, margin: float, margin_reward: float, label: float, **settings: float) -> float:
    """Slope in the margin of the loss over both orders of a pair; `label` is how often the first is right."""
    h = torch.tensor(margin, dtype=torch.float64, requires_grad=True)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for sign, probability in ((1, label), (-1, 1 - label)):
        pair = PairLogps(
            sign * h * one, zero, zero, zero, one, one, zero, zero, margin_reward=sign * margin_reward * one
        )
        total = total + probability * MULTI_OBJECTIVE_LOSSES[name](pair, **settings).sum()
    total.backward()
    assert h.grad is not None
    return h.grad.item()


@pytest.mark.parametrize("weight", [0.02, 0.1, 0.5, 0.9, 1.0])
def test_modpo_is_least_at_the_policy_that_is_best_for_the_weighted_sum(weight: float) -> None:
    reward_gap, margin_reward, beta = 0.8, -1.5, 0.1
    best = (weight * reward_gap + (1 - weight) * margin_reward) / beta  # pi ~ pi_ref exp(r_w / beta)
    label = math.exp(log_sigmoid(reward_gap))
    slopes = [slope_at("modpo", best + d, margin_reward, label, weight=weight) for d in (-0.1, 0.0, 0.1)]
    assert slopes[0] < 0 < slopes[2]
    assert slopes[1] == pytest.approx(0, abs=1e-12 / weight)


@pytest.mark.parametrize("weight", [1e-3, 1e-6])
def test_a_tiny_weight_makes_the_slope_grow_as_its_inverse_but_no_further(weight: float) -> None:
    pair = batch([(*MOVES[2], 1.0)])
    pair.chosen.requires_grad_(True)
    loss = modpo(pair, weight=weight)
    loss.sum().backward()
    assert loss.item() == pytest.approx((1 - weight) / weight, rel=1e-9)
    assert pair.chosen.grad is not None
    assert pair.chosen.grad.item() == pytest.approx(-0.1 / weight, rel=1e-9)


@pytest.mark.parametrize("label", [0.1, 0.5, 0.9])
def test_soft_dpo_is_least_at_the_margin_reward_whoever_is_called_chosen(label: float) -> None:
    slopes = [slope_at("soft_dpo", 1.5 / 0.1 + d, 1.5, label) for d in (-0.1, 0.0, 0.1)]
    assert slopes[0] < 0 < slopes[2]
    assert slopes[1] == pytest.approx(0, abs=1e-15)


def test_soft_dpo_of_a_certain_preference_is_dpo() -> None:
    certain = batch([(*move, 800.0) for move in MOVES])
    torch.testing.assert_close(soft_dpo(certain, beta=0.3), dpo(certain, beta=0.3), rtol=1e-14, atol=0)


def test_soft_dpo_is_the_mean_of_dpo_over_drawn_preferences() -> None:
    right = batch([(*move, 0.4) for move in MOVES])
    wrong = batch([(r, c, rr, rc, -0.4) for c, r, rc, rr in MOVES])
    p = math.exp(log_sigmoid(0.4))
    torch.testing.assert_close(soft_dpo(right), p * dpo(right) + (1 - p) * dpo(wrong), rtol=1e-13, atol=0)
    torch.testing.assert_close(soft_dpo(right), soft_dpo(wrong), rtol=1e-13, atol=0)


def test_differences_of_implicit_rewards_are_the_implicit_margin() -> None:
    pair = batch(ROWS)
    gap = implicit_rewards(pair.chosen, pair.ref_chosen, beta=0.2)
    gap = gap - implicit_rewards(pair.rejected, pair.ref_rejected, beta=0.2)
    torch.testing.assert_close(gap, implicit_reward_margin(pair, beta=0.2), rtol=1e-14, atol=1e-12)
