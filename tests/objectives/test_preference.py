"""Every preference loss against its formula, written again in plain Python floats."""

import math

import pytest
import torch

from equipoise.objectives.preference import (
    PREFERENCE_LOSSES,
    REFERENCE_FREE,
    PairLogps,
    bfpo,
    dpo,
    implicit_accuracy,
    implicit_reward_margin,
    ipo,
    orpo,
    safe_dpo,
    safe_dpo_order,
    simpo,
)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def log_odds(x: float) -> float:
    """Log p / (1 - p) of p = exp(x)."""
    return x - math.log(-math.expm1(x))


# name -> formula over (chosen, rejected, ref_chosen, ref_rejected, lengths (2), unsafe (2))
FORMULAS = {
    "dpo": lambda c, r, rc, rr, cl, rl, cu, ru: -log_sigmoid(0.1 * ((c - rc) - (r - rr))),
    "safe_dpo": lambda c, r, rc, rr, cl, rl, cu, ru: (
        -log_sigmoid(0.1 * ((c - rc) - (r - rr)) - (ru - cu) * 10.0)
    ),
    "ipo": lambda c, r, rc, rr, cl, rl, cu, ru: ((c - rc) / cl - (r - rr) / rl - 5.0) ** 2,
    "simpo": lambda c, r, rc, rr, cl, rl, cu, ru: -log_sigmoid(2.0 * (c / cl - r / rl) - 1.0),
    "orpo": lambda c, r, rc, rr, cl, rl, cu, ru: (
        -c / cl - 0.1 * log_sigmoid(log_odds(c / cl) - log_odds(r / rl))
    ),
    "bfpo": lambda c, r, rc, rr, cl, rl, cu, ru: (
        ((c - rc) - (r - rr) - (1.5 * (1.0 - cu) - 0.5 * (1.0 - ru) - 0.5) / 0.01) ** 2
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


@pytest.mark.parametrize("name", ["dpo", "safe_dpo"])
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


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_the_reference_counts_unless_the_loss_says_it_does_not(name: str) -> None:
    one = batch(ROWS[:4])
    other = one._replace(ref_chosen=one.ref_chosen - 3.0)
    same = torch.equal(PREFERENCE_LOSSES[name](one), PREFERENCE_LOSSES[name](other))
    assert same == (name in REFERENCE_FREE)


@pytest.mark.parametrize("name", ["ipo", "simpo", "orpo"])
def test_per_token_losses_do_not_depend_on_the_length(name: str) -> None:
    one = batch([(*RIGHT, 0.0, 0.0)])
    twice = PairLogps(*(2 * column for column in one[:6]), *one[6:8])  # each token said twice
    torch.testing.assert_close(
        PREFERENCE_LOSSES[name](twice), PREFERENCE_LOSSES[name](one), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_ipo_is_content_at_half_an_inverse_tau_per_token(tau: float) -> None:
    pair = batch([(-8.0 + 8.0 / (2 * tau), -9.0, -8.0, -9.0, 8.0, 3.0, 0.0, 0.0)])
    assert ipo(pair, tau=tau).item() == pytest.approx(0.0, abs=1e-20)
    start = ipo(batch([(*START, 0.0, 0.0)]), tau=tau).item()
    assert start == pytest.approx(1 / (4 * tau**2), rel=1e-12)


def test_cdpo_is_content_where_the_odds_are_those_of_its_labels() -> None:
    z = math.log(0.9 / 0.1)
    pair = batch([(z / 0.1 - 5.0, -5.0, -5.0, -5.0, 4.0, 4.0, 0.0, 0.0)])
    pair.chosen.requires_grad_(True)
    dpo(pair, beta=0.1, label_smoothing=0.1).sum().backward()
    assert pair.chosen.grad is not None
    assert pair.chosen.grad.item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("beta", [0.5, 10.0])
@pytest.mark.parametrize("gamma", [0.0, 3.0])
def test_simpo_matches_formula_with_other_settings(beta: float, gamma: float) -> None:
    expected = [-log_sigmoid(beta * (row[0] / row[4] - row[1] / row[5]) - gamma) for row in ROWS]
    found = simpo(batch(ROWS), beta=beta, gamma=gamma)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("certain", [(0.0, -3.0), (-3.0, 0.0), (0.0, 0.0)])
def test_orpo_stays_finite_where_a_response_is_certain(certain: tuple[float, float]) -> None:
    pair = PairLogps(*torch.tensor([[*certain, 0.0, 0.0, 2.0, 2.0, 0.0, 0.0]]).unbind(dim=1))
    pair.chosen.requires_grad_(True)
    loss = orpo(pair)
    loss.sum().backward()
    assert pair.chosen.grad is not None
    assert torch.isfinite(loss).all()
    assert torch.isfinite(pair.chosen.grad).all()


@pytest.mark.parametrize(("unsafe", "target"), [((0, 0), 50), ((0, 1), 100), ((1, 0), -100), ((1, 1), -50)])
def test_bfpo_asks_for_the_margins_of_its_table(unsafe: tuple[int, int], target: float) -> None:
    pair = batch([(target - 60.0, -60.0, -30.0, -30.0, 9.0, 9.0, *map(float, unsafe))])
    assert bfpo(pair).item() == pytest.approx(0.0, abs=1e-18)


def test_bfpo_reads_the_safety_of_each_row_itself() -> None:
    """Public code indexes with the 0/1 column, and so gives every row the numbers of rows 0 and 1."""
    rows = [(*START, *unsafe) for unsafe in ((1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0))]
    assert bfpo(batch(rows)).tolist() == pytest.approx([50.0**2, 50.0**2, 100.0**2, 100.0**2])


@pytest.mark.parametrize("name", ["dpo", "safe_dpo"])
@pytest.mark.parametrize("gap", [-2.0, 0.0, 3.0])
def test_a_severity_margin_asks_more_of_a_wider_gap(name: str, gap: float) -> None:
    rows = [(*move, 1.0, 1.0) for move in MOVES]
    pair = batch(rows)._replace(severity_gap=torch.full((len(rows),), gap, dtype=torch.float64))
    expected = [-log_sigmoid(0.1 * ((c - rc) - (r - rr)) - 0.7 * gap) for c, r, rc, rr, *_ in rows]
    found = PREFERENCE_LOSSES[name](pair, severity_margin=0.7)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert torch.equal(PREFERENCE_LOSSES[name](pair), PREFERENCE_LOSSES[name](batch(rows)))


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("dpo", {"beta": -0.1}, "dpo: beta: got -0.1; expected above 0"),
        ("dpo", {"label_smoothing": 0.9}, "dpo: label_smoothing: got 0.9; expected 0 to 0.5"),
        ("safe_dpo", {"beta": 0.0}, "safe_dpo: beta: got 0.0; expected above 0"),
        ("dpo", {"sft_weight": -1.0}, "dpo: sft_weight: got -1.0; expected 0 or more"),
        ("dpo", {"severity_margin": -1.0}, "dpo: severity_margin: got -1.0; expected 0 or more"),
        ("safe_dpo", {"delta": -10.0}, "safe_dpo: delta: got -10.0; expected 0 or more"),
        ("simpo", {"beta": math.nan}, "simpo: beta: got nan; expected above 0"),
        ("ipo", {"tau": 0.0}, "ipo: tau: got 0.0; expected above 0"),
        ("simpo", {"beta": -2.0}, "simpo: beta: got -2.0; expected above 0"),
        ("orpo", {"beta": -1.0}, "orpo: beta: got -1.0; expected above 0"),
        ("bfpo", {"b1": 1.0}, "bfpo: b1 - 1: got 0.0; expected above 0"),
    ],
)
def test_a_setting_that_would_teach_the_reverse_is_refused(
    name: str, settings: dict[str, float], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        PREFERENCE_LOSSES[name](batch(ROWS), **settings)


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
