"""Losses of the guard against their formulas in plain Python floats."""

import math

import pytest
import torch
from torch import Tensor

from equipoise.objectives.classification import (
    CLASSIFICATION_LOSSES,
    masked_bce,
    masked_cross_entropy,
    ordinal_nll,
    severity_probabilities,
)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def bce_formula(x: list[float], t: list[float], m: list[float]) -> float:
    terms = [
        -ti * log_sigmoid(xi) - (1 - ti) * log_sigmoid(-xi) for xi, ti, mi in zip(x, t, m, strict=True) if mi
    ]
    return sum(terms) / len(terms) if terms else 0.0


def ordinal_formula(x: list[float], level: float, unsafe: float) -> float:
    if level >= 0:
        loss = -sum(log_sigmoid(x[j]) for j in range(int(level)))
        return loss - log_sigmoid(-x[int(level)]) if level < len(x) else loss
    return {1: -log_sigmoid(x[0]), 0: -log_sigmoid(-x[0]), -1: 0.0}[int(unsafe)]


def cross_entropy_formula(x: list[float], target: float) -> float:
    if target == -1:
        return 0.0
    top = max(x)
    return top + math.log(sum(math.exp(xi - top) for xi in x)) - x[int(target)]


LOGITS = [
    [1.5, -0.5, 0.2],
    [-2.0, 3.0, -1.0],
    [0.0, 0.0, 0.0],
    [800.0, -900.0, 700.0],
    [-800.0, 900.0, -700.0],
]
TARGETS = [[1.0, 0.0, 0.25], [0.0, 1.0, 1.0]]
MASKS = [[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
KNOWN = [(0, 0), (1, 1), (2, 1), (3, 1), (2, -1), (-1, 1), (-1, 0), (-1, -1), (0, 1)]

FORMULAS = {
    "masked_bce": bce_formula,
    "ordinal_nll": ordinal_formula,
    "masked_cross_entropy": cross_entropy_formula,
}
ROWS = {
    "masked_bce": [(x, t, m) for x in LOGITS for t in TARGETS for m in MASKS],
    "ordinal_nll": [(x, *known) for x in LOGITS for known in KNOWN],
    "masked_cross_entropy": [(x, target) for x in LOGITS for target in (0, 1, 2, -1)],
}


def columns(name: str) -> list[Tensor]:
    """Logits, targets and masks as float64, labels as integers."""
    made = zip(*ROWS[name], strict=True)
    return [torch.tensor(c, dtype=torch.float64 if isinstance(c[0], list) else torch.long) for c in made]


@pytest.mark.parametrize("name", CLASSIFICATION_LOSSES)
def test_matches_formula(name: str) -> None:
    expected = torch.tensor([FORMULAS[name](*row) for row in ROWS[name]], dtype=torch.float64)
    found = CLASSIFICATION_LOSSES[name](*columns(name))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_every_loss_has_a_formula_and_rows() -> None:
    assert FORMULAS.keys() == ROWS.keys() == CLASSIFICATION_LOSSES.keys()


@pytest.mark.parametrize("name", CLASSIFICATION_LOSSES)
def test_gradients_are_finite_at_extreme_logits(name: str) -> None:
    logits, *labels = columns(name)
    logits.requires_grad_(True)
    CLASSIFICATION_LOSSES[name](logits, *labels).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_unrated_categories_get_exactly_no_gradient_whatever_stands_there() -> None:
    logits = torch.tensor([[0.3, math.inf, -1.0]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1.0, math.nan, 0.0]], dtype=torch.float64)
    loss = masked_bce(logits, targets, torch.tensor([[1.0, 0.0, 1.0]]))
    loss.sum().backward()
    assert loss.item() == pytest.approx((-log_sigmoid(0.3) - log_sigmoid(1.0)) / 2, rel=1e-12)
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    assert logits.grad[0, 0] < 0 < logits.grad[0, 2]


def test_category_padding_changes_nothing() -> None:
    x, t, m = (column[:4] for column in columns("masked_bce"))
    wider = (torch.cat([column, torch.zeros(4, 2)], dim=1) for column in (x, t, m))
    torch.testing.assert_close(masked_bce(*wider), masked_bce(x, t, m), rtol=1e-14, atol=0)


def test_the_loss_of_a_level_is_the_log_of_its_probability() -> None:
    logits = torch.tensor(LOGITS[:3], dtype=torch.float64)
    probabilities = severity_probabilities(logits)
    for level in range(4):
        levels = torch.full((3,), level)
        torch.testing.assert_close(
            ordinal_nll(logits, levels, torch.full((3,), -1)),
            -probabilities[:, level].log(),
            rtol=1e-12,
            atol=0,
        )
    safe, unknown = torch.zeros(3, dtype=torch.long), torch.full((3,), -1)
    torch.testing.assert_close(ordinal_nll(logits, unknown, safe), -probabilities[:, 0].log())


def test_severity_probabilities_are_products_of_the_thresholds() -> None:
    a, b, c = (1 / (1 + math.exp(-x)) for x in LOGITS[1])
    expected = [1 - a, a * (1 - b), a * b * (1 - c), a * b * c]
    found = severity_probabilities(torch.tensor([LOGITS[1]], dtype=torch.float64))[0]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_the_first_threshold_is_the_probability_of_unsafe_and_higher_levels_are_never_likelier() -> None:
    logits = 3 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0)).double()
    probabilities = severity_probabilities(logits)
    at_least = probabilities.flip(-1).cumsum(-1).flip(-1)
    torch.testing.assert_close(
        probabilities.sum(-1), torch.ones(200, dtype=torch.float64), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(at_least[:, 1], logits[:, 0].sigmoid(), rtol=1e-12, atol=1e-12)
    assert (at_least.diff(dim=-1) <= 0).all()


def test_a_row_with_only_is_safe_trains_the_first_threshold_only() -> None:
    logits = torch.zeros(3, 3, requires_grad=True)
    ordinal_nll(logits, torch.tensor([-1, -1, -1]), torch.tensor([1, 0, -1])).sum().backward()
    assert logits.grad is not None
    assert logits.grad[:, 1:].eq(0).all()
    assert logits.grad[0, 0] < 0 < logits.grad[1, 0]
    assert logits.grad[2, 0] == 0


def test_a_level_pushes_passed_thresholds_up_and_the_next_down() -> None:
    logits = torch.zeros(4, 3, requires_grad=True)
    ordinal_nll(logits, torch.arange(4), torch.full((4,), -1)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.sign().tolist() == [[1, 0, 0], [-1, 1, 0], [-1, -1, 1], [-1, -1, -1]]


def test_an_unknown_class_gives_no_gradient() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]], requires_grad=True)
    masked_cross_entropy(logits, torch.tensor([-1, 2])).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].eq(0).all()
    assert logits.grad[1, 2] < 0 < logits.grad[1, 0]
