"""Every preference loss against its formula, written again in plain Python floats."""

import math

import pytest
import torch

from equipoise.objectives.preference import (
    PREFERENCE_LOSSES,
    PairLogps,
    dpo,
    implicit_accuracy,
    implicit_reward_margin,
    safe_dpo,
    safe_dpo_order,
)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


# name -> formula over (chosen, rejected, ref_chosen, ref_rejected, lengths (2), unsafe (2))
FORMULAS = {
    "dpo": lambda c, r, rc, rr, cl, rl, cu, ru: -log_sigmoid(0.1 * ((c - rc) - (r - rr))),
    "safe_dpo": lambda c, r, rc, rr, cl, rl, cu, ru: (
        -log_sigmoid(0.1 * ((c - rc) - (r - rr)) - (ru - cu) * 10.0)
    ),
}

RIGHT = (-10.0, -12.0, -11.0, -11.5, 8.0, 9.0)  # the policy moved the right way
WRONG = (-30.0, -10.0, -12.0, -12.0, 20.0, 5.0)  # the policy moved the wrong way
START = (-7.0, -8.0, -7.0, -8.0, 4.0, 4.0)  # nothing learned yet
EXTREME = (-1e4, -1.0, -1.0, -1e4, 900.0, 1.0)
EXTREME_RIGHT = (-1.0, -1e4, -1e4, -1.0, 1.0, 900.0)
MOVES = [RIGHT, WRONG, START, EXTREME, EXTREME_RIGHT]
ROWS = [(*move, *unsafe) for move in MOVES for unsafe in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))]


def batch(rows: list[tuple[float, ...]]) -> PairLogps:
    return PairLogps(*torch.tensor(rows, dtype=torch.float64).unbind(dim=1))


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_matches_formula(name: str) -> None:
    expected = torch.tensor([FORMULAS[name](*row) for row in ROWS], dtype=torch.float64)
    torch.testing.assert_close(PREFERENCE_LOSSES[name](batch(ROWS)), expected, rtol=1e-12, atol=1e-12)


def test_every_loss_has_a_formula() -> None:
    assert FORMULAS.keys() == PREFERENCE_LOSSES.keys()


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_sft_weight_adds_nats_per_token_of_the_chosen_response(name: str, weight: float) -> None:
    plain = PREFERENCE_LOSSES[name](batch(ROWS))
    weighted = PREFERENCE_LOSSES[name](batch(ROWS), sft_weight=weight)
    expected = torch.tensor([weight * -row[0] / row[4] for row in ROWS], dtype=torch.float64)
    torch.testing.assert_close(weighted, plain + expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("beta", [0.01, 2.0])
def test_dpo_matches_formula_with_other_settings(beta: float, smoothing: float) -> None:
    def formula(c: float, r: float, rc: float, rr: float, *_: float) -> float:
        z = beta * ((c - rc) - (r - rr))
        return -(1 - smoothing) * log_sigmoid(z) - smoothing * log_sigmoid(-z)

    expected = torch.tensor([formula(*row) for row in ROWS], dtype=torch.float64)
    found = dpo(batch(ROWS), beta=beta, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_pulls_the_chosen_response_up_and_the_rejected_down_while_the_policy_is_wrong(name: str) -> None:
    pair = batch([(*WRONG, 0.0, 1.0)])
    pair.chosen.requires_grad_(True)
    pair.rejected.requires_grad_(True)
    PREFERENCE_LOSSES[name](pair).sum().backward()
    assert pair.chosen.grad is not None
    assert pair.rejected.grad is not None
    assert pair.chosen.grad.item() < 0 < pair.rejected.grad.item()


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_one_pair_does_not_depend_on_the_others(name: str) -> None:
    whole = PREFERENCE_LOSSES[name](batch(ROWS))
    alone = torch.cat([PREFERENCE_LOSSES[name](batch([row])) for row in ROWS])
    torch.testing.assert_close(whole, alone, rtol=1e-14, atol=0)


def test_dpo_starts_at_log_two() -> None:
    assert dpo(batch([(*START, 0.0, 0.0)])).item() == pytest.approx(math.log(2), abs=1e-15)


def test_safe_dpo_is_dpo_without_its_offset_or_between_two_safe_responses() -> None:
    safe = batch([(*move, 0.0, 0.0) for move in MOVES])
    assert torch.equal(safe_dpo(safe), dpo(safe))
    safe_winner = batch([(*move, 0.0, unsafe) for move in MOVES for unsafe in (0.0, 1.0)])
    assert torch.equal(safe_dpo(safe_winner, beta=0.3, delta=0.0), dpo(safe_winner, beta=0.3))


def test_safe_dpo_asks_for_a_wider_margin_over_an_unsafe_response() -> None:
    start = batch([(*START, 0.0, 0.0), (*START, 0.0, 1.0)])
    start.chosen.requires_grad_(True)
    between_safe, over_unsafe = safe_dpo(start)
    assert between_safe.item() == pytest.approx(math.log(2))
    assert over_unsafe.item() == pytest.approx(-log_sigmoid(-10.0))
    (between_safe + over_unsafe).backward()
    assert start.chosen.grad is not None
    assert start.chosen.grad[1] < start.chosen.grad[0] < 0


@pytest.mark.parametrize(
    ("better", "unsafe", "chosen"),
    [
        (0, (False, False), 0),
        (1, (False, False), 1),
        (0, (False, True), 0),
        (1, (False, True), 0),  # the winner is unsafe: swapped
        (0, (True, False), 1),  # the winner is unsafe: swapped
        (1, (True, False), 1),
        (0, (True, True), None),
        (1, (True, True), None),
        ("tie", (False, False), None),
        (None, (False, False), None),
        ("tie", (True, False), 1),
        (None, (False, True), 0),
        (0, (None, False), None),
        (0, (False, None), None),
        (1, (None, None), None),
    ],
)
def test_safe_dpo_order(better: object, unsafe: tuple[bool | None, bool | None], chosen: int | None) -> None:
    assert safe_dpo_order(better, *unsafe) == chosen  # type: ignore[arg-type]


def test_logged_quantities() -> None:
    pair = batch([(*move, 0.0, 0.0) for move in (RIGHT, WRONG, START)])
    torch.testing.assert_close(
        implicit_reward_margin(pair, beta=0.5), torch.tensor([0.75, -10.0, 0.0], dtype=torch.float64)
    )
    assert implicit_accuracy(pair).tolist() == [1.0, 0.0, 0.5]
