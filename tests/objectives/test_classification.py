"""Losses of the guard against their formulas in plain Python floats."""

import math

import pytest
import torch
from torch import Tensor

from equipoise.objectives.classification import (
    CLASSIFICATION_LOSSES,
    masked_bce,
    ordinal_nll,
    severity_probabilities,
    soft_cross_entropy,
    within_group_ranking,
)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def bce_formula(x: list[float], t: list[float], w: list[float]) -> float:
    terms = [
        wi * (-ti * log_sigmoid(xi) - (1 - ti) * log_sigmoid(-xi))
        for xi, ti, wi in zip(x, t, w, strict=True)
        if wi
    ]
    return sum(terms) / len(terms) if terms else 0.0


def ordinal_formula(x: list[float], passed: list[float], failed: list[float]) -> float:
    return -sum(
        p * log_sigmoid(xi) + f * log_sigmoid(-xi) for xi, p, f in zip(x, passed, failed, strict=True)
    )


def cross_entropy_formula(x: list[float], shares: list[float]) -> float:
    top = max(x)
    log_sum = top + math.log(sum(math.exp(xi - top) for xi in x))
    return sum(w * (log_sum - xi) for xi, w in zip(x, shares, strict=True))


LOGITS = [
    [1.5, -0.5, 0.2],
    [-2.0, 3.0, -1.0],
    [0.0, 0.0, 0.0],
    [800.0, -900.0, 700.0],
    [-800.0, 900.0, -700.0],
]
TARGETS = [[1.0, 0.0, 0.25], [0.0, 1.0, 1.0]]
WEIGHTS = [[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.2, 4.0, 0.0]]
KNOWN = [
    ([0.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
    ([1.0, 1.0, 0.0], [0.0, 0.0, 1.0]),
    ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]),
    ([1.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    ([0.75, 0.5, 0.0], [0.25, 0.25, 0.5]),
]
SHARES = [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.25, 0.5, 0.25], [0.0, 2.5, 0.0]]

FORMULAS = {
    "masked_bce": bce_formula,
    "ordinal_nll": ordinal_formula,
    "soft_cross_entropy": cross_entropy_formula,
}
ROWS = {
    "masked_bce": [(x, t, w) for x in LOGITS for t in TARGETS for w in WEIGHTS],
    "ordinal_nll": [(x, *known) for x in LOGITS for known in KNOWN],
    "soft_cross_entropy": [(x, shares) for x in LOGITS for shares in SHARES],
}


def columns(name: str) -> list[Tensor]:
    """Logits, targets and weights as float64."""
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*ROWS[name], strict=True)]


@pytest.mark.parametrize("name", FORMULAS)
def test_matches_formula(name: str) -> None:
    expected = torch.tensor([FORMULAS[name](*row) for row in ROWS[name]], dtype=torch.float64)
    found = CLASSIFICATION_LOSSES[name](*columns(name))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_every_loss_has_a_formula_and_rows() -> None:
    assert {*FORMULAS, "within_group_ranking"} == CLASSIFICATION_LOSSES.keys()
    assert ROWS.keys() == FORMULAS.keys()


@pytest.mark.parametrize("name", FORMULAS)
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
    x, t, w = (column[:4] for column in columns("masked_bce"))
    wider = (torch.cat([column, torch.zeros(4, 2)], dim=1) for column in (x, t, w))
    torch.testing.assert_close(masked_bce(*wider), masked_bce(x, t, w), rtol=1e-14, atol=0)


def level_targets(level: int) -> tuple[Tensor, Tensor]:
    """Outcomes of the three thresholds of a row of this level."""
    thresholds = torch.arange(3)
    return (thresholds < level).double().expand(3, 3), (thresholds == level).double().expand(3, 3)


def test_the_loss_of_a_level_is_the_log_of_its_probability() -> None:
    logits = torch.tensor(LOGITS[:3], dtype=torch.float64)
    probabilities = severity_probabilities(logits)
    for level in range(4):
        torch.testing.assert_close(
            ordinal_nll(logits, *level_targets(level)), -probabilities[:, level].log(), rtol=1e-12, atol=0
        )


def test_shares_of_annotators_give_the_mean_of_their_losses() -> None:
    logits = torch.tensor(LOGITS[:3], dtype=torch.float64)
    votes = [level_targets(level) for level in (0, 2, 2, 3)]
    shared = ordinal_nll(logits, *(sum(side) / 4 for side in zip(*votes, strict=True)))
    each = torch.stack([ordinal_nll(logits, *vote) for vote in votes])
    torch.testing.assert_close(shared, each.mean(0), rtol=1e-12, atol=0)


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


def test_what_is_not_known_of_a_threshold_gives_no_gradient_whatever_stands_there() -> None:
    logits = torch.tensor([[0.0, math.inf, -math.inf]] * 3, requires_grad=True)
    passed = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 0]])
    failed = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [0, 0, 0]])
    losses = ordinal_nll(logits, passed, failed)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([math.log(2), math.log(2), 0])
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-0.5, 0, 0], [0.5, 0, 0], [0, 0, 0]]


def test_a_level_pushes_passed_thresholds_up_and_the_next_down() -> None:
    logits = torch.zeros(4, 3, requires_grad=True)
    passed, failed = (
        torch.stack([side[0] for side in sides])
        for sides in zip(*(level_targets(level) for level in range(4)), strict=True)
    )
    ordinal_nll(logits, passed, failed).sum().backward()
    assert logits.grad is not None
    assert logits.grad.sign().tolist() == [[1, 0, 0], [-1, 1, 0], [-1, -1, 1], [-1, -1, -1]]


def test_an_unknown_class_gives_no_gradient() -> None:
    logits = torch.tensor([[0.1, 0.2, math.inf], [0.1, 0.2, 0.3]], requires_grad=True)
    soft_cross_entropy(logits, torch.tensor([[0.0, 0, 0], [0, 0, 1]])).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].eq(0).all()
    assert logits.grad[1, 2] < 0 < logits.grad[1, 0]


RANKED = [(0.3, 1, 0), (-0.4, 0, 0), (1.1, 0, 0), (2.0, 1, 1), (0.5, -1, 0), (0.2, 0, -1), (0.9, 1, -1)]
"""Log-odds, label and group: one unsafe and two safe rows of group 0; the others have no partner."""


@pytest.mark.parametrize("margin", [0.0, 1.5])
def test_ranking_matches_its_formula(margin: float) -> None:
    logit, unsafe, group = (torch.tensor(column) for column in zip(*RANKED, strict=True))
    expected = []
    for x, label, own in RANKED:
        gaps = [
            x - other if label == 1 else other - x
            for other, its, group_ in RANKED
            if own >= 0 and group_ == own and {label, its} == {0, 1}
        ]
        terms = [-log_sigmoid(gap - margin) for gap in gaps]
        expected.append(sum(terms) / len(terms) / 2 if terms else 0.0)
    assert [value > 0 for value in expected] == [True, True, True, False, False, False, False]
    found = within_group_ranking(logit.double(), unsafe, group, margin=margin)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_pair_gives_its_loss_once() -> None:
    logit = torch.tensor([0.7, -0.2], dtype=torch.float64)
    losses = within_group_ranking(logit, torch.tensor([1, 0]), torch.tensor([4, 4]))
    assert losses.sum().item() == pytest.approx(-log_sigmoid(0.9), rel=1e-12)


def test_ranking_pulls_the_two_apart_and_touches_nothing_else() -> None:
    logit = torch.tensor([row[0] for row in RANKED], requires_grad=True)
    _, unsafe, group = (torch.tensor(column) for column in zip(*RANKED, strict=True))
    within_group_ranking(logit, unsafe, group).sum().backward()
    assert logit.grad is not None
    assert logit.grad.sign().tolist() == [-1, 1, 1, 0, 0, 0, 0]
    assert logit.grad.sum().item() == pytest.approx(0, abs=1e-7)  # the topic's share cancels


def test_what_all_rows_of_a_group_share_does_not_matter() -> None:
    logit = torch.tensor([row[0] for row in RANKED], dtype=torch.float64)
    _, unsafe, group = (torch.tensor(column) for column in zip(*RANKED, strict=True))
    moved = torch.where(group == 0, logit + 5, logit)
    torch.testing.assert_close(
        within_group_ranking(moved, unsafe, group), within_group_ranking(logit, unsafe, group)
    )


def test_ranking_is_finite_at_extreme_logits() -> None:
    logit = torch.tensor([-900.0, 900.0], requires_grad=True)
    loss = within_group_ranking(logit, torch.tensor([1, 0]), torch.tensor([0, 0])).sum()
    loss.backward()
    assert loss.item() == 1800
    assert logit.grad is not None
    assert logit.grad.tolist() == [-1, 1]
