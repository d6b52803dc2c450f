"""EM over linear rewards: against a library, against its own promise to rise, and on planted groups."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from equipoise.errors import DataError
from equipoise.training.mixture import Mixture, Mode, fit_mixture

FEATURES, RATERS, MINORITY, PAIRS = 6, 50, 10, 14
GENERATOR = torch.Generator().manual_seed(3)
WISHES = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.5, 0.0], [-1.0, 0.3, 1.0, 0.0, 0.0, 0.5]]).double() * 2.5
GROUP = torch.tensor([0] * (RATERS - MINORITY) + [1] * MINORITY)  # 80 to 20


def draw(pairs: int) -> tuple[Tensor, list[str], Tensor]:
    """Pairs of every rater, who prefer as their group's Bradley-Terry reward says."""
    raters = torch.arange(RATERS).repeat_interleave(pairs)
    gaps = torch.randn(len(raters), FEATURES, generator=GENERATOR, dtype=torch.float64)
    margins = (gaps * WISHES[GROUP[raters]]).sum(-1)
    is_first = torch.rand(len(raters), generator=GENERATOR, dtype=torch.float64) < torch.sigmoid(margins)
    return torch.where(is_first, 1.0, -1.0)[:, None] * gaps, [f"rater {r}" for r in raters.tolist()], raters


GAPS, UNITS, _ = draw(PAIRS)
HELD_OUT, _, HELD_RATERS = draw(40)


@pytest.fixture(scope="module", params=["soft", "hard"])
def fitted(request: pytest.FixtureRequest) -> Mixture:
    mode: Mode = request.param
    return fit_mixture(GAPS, UNITS, mode=mode, restarts=3)


def accuracy(heads_of_pairs: Tensor, group: int) -> float:
    """Share of held-out pairs of a group's raters that the heads [N, F] order rightly."""
    mine = GROUP[HELD_RATERS] == group
    return ((HELD_OUT * heads_of_pairs).sum(-1) > 0)[mine].double().mean().item()


def test_one_group_is_the_logistic_regression_of_a_library() -> None:
    both = torch.cat([GAPS, -GAPS]).numpy()
    peer = LogisticRegression(C=2 / 3.0, fit_intercept=False, tol=1e-10, max_iter=1000)  # every pair twice
    peer.fit(both, np.repeat([1, 0], len(GAPS)), sample_weight=np.full(len(both), 1 / 2))
    mixture = fit_mixture(GAPS, UNITS, groups=1, ridge=3.0 / 2)
    np.testing.assert_allclose(mixture.heads[0].numpy(), peer.coef_[0], rtol=1e-5)
    assert mixture.shares.tolist() == [1.0]
    assert len(mixture.trace) == 1


def test_the_likelihood_never_falls(fitted: Mixture) -> None:
    assert len(fitted.trace) > 2
    assert np.diff(fitted.trace).min() >= -1e-6


def test_planted_groups_are_found(fitted: Mixture) -> None:
    assert fitted.units[:2] == ("rater 0", "rater 1")
    right = (fitted.assignment.argmax(-1) == GROUP).double().mean().item()
    assert right > 0.9
    assert fitted.shares.tolist() == pytest.approx([0.8, 0.2], abs=0.05)
    cosines = torch.cosine_similarity(fitted.heads, WISHES, dim=-1)
    assert (cosines > 0.9).all()


def test_the_minority_gains_much_over_one_reward_and_the_majority_loses_nothing(fitted: Mixture) -> None:
    single = fit_mixture(GAPS, UNITS, groups=1).heads.expand(len(HELD_OUT), -1)
    own = fitted.heads[fitted.assignment.argmax(-1)[HELD_RATERS]]
    assert accuracy(own, 1) >= accuracy(single, 1) + 0.15
    assert accuracy(own, 0) >= accuracy(single, 0) - 0.02


def test_hard_assignments_are_whole_and_soft_ones_sum_to_one() -> None:
    hard = fit_mixture(GAPS, UNITS, mode="hard", restarts=1).assignment
    assert set(hard.flatten().tolist()) == {0.0, 1.0}
    soft = fit_mixture(GAPS, UNITS, restarts=1).assignment
    torch.testing.assert_close(soft.sum(-1), torch.ones(RATERS, dtype=torch.float64))


def test_the_seed_and_the_order_of_pairs_do_not_matter_but_for_names() -> None:
    first = fit_mixture(GAPS, UNITS, restarts=2, seed=1)
    again = fit_mixture(GAPS, UNITS, restarts=2, seed=1)
    assert torch.equal(first.heads, again.heads)
    other = fit_mixture(GAPS, UNITS, restarts=3, seed=2)
    torch.testing.assert_close(other.heads, first.heads, rtol=0.02, atol=0.02)


def test_rewards_are_products_with_the_heads(fitted: Mixture) -> None:
    features = torch.randn(3, FEATURES, generator=GENERATOR)
    expected = torch.stack([features.double() @ head for head in fitted.heads], dim=1)
    torch.testing.assert_close(fitted.rewards(features), expected)


def test_mistakes_are_named() -> None:
    with pytest.raises(DataError, match=r"units: expected one for each of 3 pairs, got 2"):
        fit_mixture(torch.zeros(3, 2), ["a", "b"])
    with pytest.raises(DataError, match=r"groups: got 2, but the pairs are of 1 units"):
        fit_mixture(torch.zeros(2, 2), ["a", "a"])
