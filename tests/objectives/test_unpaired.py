"""Losses of single responses against their formulas in plain floats."""

import math

import pytest
import torch

from equipoise.objectives.unpaired import UNPAIRED_LOSSES, LabelledLogps, kto, kto_baseline


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


# name -> formula over (policy, reference, desirable, baseline)
FORMULAS = {
    "kto": lambda p, r, d, z: (
        1.0 - sigmoid(0.1 * (p - r - z)) if d == 1.0 else 1.0 - sigmoid(0.1 * (z - (p - r)))
    ),
}

MOVES = [(-10.0, -12.0), (-12.0, -10.0), (-7.0, -7.0), (-1e3, -1.0), (-1.0, -1e3)]
ROWS = [(*move, desirable, z) for move in MOVES for desirable in (1.0, 0.0) for z in (0.0, 4.0)]


def batch(rows: list[tuple[float, ...]]) -> LabelledLogps:
    return LabelledLogps(*torch.tensor(rows, dtype=torch.float64).unbind(dim=1))


@pytest.mark.parametrize("name", UNPAIRED_LOSSES)
def test_matches_formula(name: str) -> None:
    expected = torch.tensor([FORMULAS[name](*row) for row in ROWS], dtype=torch.float64)
    torch.testing.assert_close(UNPAIRED_LOSSES[name](batch(ROWS)), expected, rtol=1e-12, atol=1e-12)


def test_every_loss_has_a_formula() -> None:
    assert FORMULAS.keys() == UNPAIRED_LOSSES.keys()


def test_kto_weighs_each_kind_and_starts_at_half_of_its_weight() -> None:
    start = [(-5.0, -5.0, 1.0, 0.0), (-5.0, -5.0, 0.0, 0.0)]
    found = kto(batch(start), desirable_weight=3.0, undesirable_weight=0.5)
    assert found.tolist() == [1.5, 0.25]


def test_kto_pulls_what_is_desirable_up_and_the_rest_down() -> None:
    rows = batch(ROWS[:12])  # where the sigmoid is not flat
    rows.policy.requires_grad_(True)
    kto(rows).sum().backward()
    assert rows.policy.grad is not None
    assert ((rows.policy.grad < 0) == (rows.desirable == 1)).all()


def test_no_gradient_flows_through_the_baseline() -> None:
    ratios = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)
    policy = torch.tensor([-4.0], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    kto(LabelledLogps(policy, -4 * one, one, kto_baseline(ratios))).sum().backward()
    assert ratios.grad is None
    assert policy.grad is not None
    handed_in = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    kto(LabelledLogps(policy, -4 * one, one, handed_in)).sum().backward()
    assert handed_in.grad is None


@pytest.mark.parametrize(("ratios", "expected"), [([1.0, 3.0], 2.0), ([-5.0, 1.0], 0.0), ([-5.0, 6.0], 0.5)])
def test_the_baseline_is_a_mean_that_is_not_below_zero(ratios: list[float], expected: float) -> None:
    assert kto_baseline(torch.tensor(ratios)).item() == expected


def test_a_beta_that_would_teach_the_reverse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kto: beta: got -1\.0; expected above 0"):
        kto(batch(ROWS), beta=-1.0)
