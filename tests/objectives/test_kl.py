"""Divergence from the reference: formulas in plain floats, true gradients, and where it may stand."""

import math

import pytest
import torch
from torch import Tensor

from equipoise.objectives.advantages import blend, gae, whiten
from equipoise.objectives.kl import KL_ESTIMATORS, k1, k2, k3, token_signals

SLOTS = torch.tensor([0, 0, 0, 1, 2, 2])

FORMULAS = {
    "k1": lambda p, r: p - r,
    "k2": lambda p, r: 0.5 * (p - r) ** 2,
    "k3": lambda p, r: math.exp(r - p) - 1 - (r - p),
}
ROWS = [(-1.0, -1.5), (-3.0, -0.5), (-2.0, -2.0), (-0.001, -30.0), (-1.0, -1.0 - 1e-3)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_matches_formula(name: str) -> None:
    logps, ref_logps = torch.tensor(ROWS, dtype=torch.float64).unbind(1)
    expected = torch.tensor([FORMULAS[name](*row) for row in ROWS], dtype=torch.float64)
    # the formula of k3 in floats takes 1 from a number near 1
    torch.testing.assert_close(KL_ESTIMATORS[name](logps, ref_logps), expected, rtol=1e-12, atol=1e-15)


def test_every_estimator_has_a_formula() -> None:
    assert FORMULAS.keys() == KL_ESTIMATORS.keys()


def test_public_penalties_are_ours_where_they_do_not_bound() -> None:
    logps, ref_logps = random(50), random(50, seed=1)
    for p, r, ours in zip(logps.tolist(), ref_logps.tolist(), k3(logps, ref_logps).tolist(), strict=True):
        gap = max(-20.0, min(20.0, r - p))
        assert ours == pytest.approx(max(-10.0, min(10.0, math.exp(gap) - gap - 1)), rel=1e-11)


def divergence(policy: Tensor, reference: Tensor) -> Tensor:
    return (policy * (policy.log() - reference.log())).sum()


def test_k1_and_k3_have_the_divergence_as_mean_and_k2_does_not() -> None:
    policy, reference = random(7).softmax(0), random(7, seed=1).softmax(0)
    true = divergence(policy, reference).item()
    means = {n: (policy * f(policy.log(), reference.log())).sum().item() for n, f in KL_ESTIMATORS.items()}
    assert means["k1"] == pytest.approx(true, rel=1e-12)
    assert means["k3"] == pytest.approx(true, rel=1e-12)
    assert means["k2"] != pytest.approx(true, rel=0.01)


def test_as_a_loss_only_k2_has_the_gradient_of_the_divergence() -> None:
    logits, reference = random(7).requires_grad_(), random(7, seed=1).softmax(0)
    drawn = logits.softmax(
        0
    ).detach()  # tokens come from the policy; no gradient passes through their drawing

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    logps, ref_logps = logits.log_softmax(0), reference.log()
    true = gradient(divergence(logits.softmax(0), reference))
    reverse = gradient(divergence(reference, logits.softmax(0)))
    torch.testing.assert_close(gradient((drawn * k2(logps, ref_logps)).sum()), true, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(
        gradient((drawn * k3(logps, ref_logps)).sum()), reverse, rtol=1e-10, atol=1e-14
    )
    assert gradient((drawn * k1(logps, ref_logps)).sum()).abs().max() < 1e-14
    as_reward = (drawn * logps * k1(logps, ref_logps).detach()).sum()
    torch.testing.assert_close(gradient(as_reward), true, rtol=1e-10, atol=1e-14)


def test_signals_match_formula() -> None:
    scores, kl = random(3, 3), random(6, seed=1)
    ends = {2: 0, 3: 1, 5: 2}
    expected = []
    for t, divergence_here in enumerate(kl.tolist()):
        row = [sign * 0.3 * divergence_here for sign in (-1, 1, 1)]
        if t in ends:
            row = [a + b for a, b in zip(row, scores[ends[t]].tolist(), strict=True)]
        expected.append([max(-0.5, min(0.5, value)) for value in row])
    found = token_signals(scores, kl, SLOTS, beta=0.3, clip=0.5)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert (found.abs() == 0.5).any()


def test_a_response_without_a_token_is_an_error() -> None:
    with pytest.raises(ValueError, match="no token"):
        token_signals(random(3, 2), random(2), torch.tensor([0, 2]))


def effective(kl: Tensor, multipliers: list[float], *, together: bool | None = None) -> Tensor:
    """What a change of the divergence changes in blended advantages, scores and critics aside."""
    scores, values = random(3, 1 + len(multipliers), seed=5), random(6, 1 + len(multipliers), seed=6)
    found = gae(token_signals(scores, kl, SLOTS, beta=0.2, clip=None), values, SLOTS).advantages
    if together is not None:
        found = whiten(found, together=together)
    return blend(found, multipliers)


@pytest.mark.parametrize("multipliers", [[0.0], [0.3], [5.0], [0.7, 2.5], [1e3, 0.0]])
def test_the_divergence_has_one_weight_whatever_the_multipliers_are(multipliers: list[float]) -> None:
    kl = random(6, seed=2)
    none = effective(torch.zeros_like(kl), multipliers)
    alone = gae(-0.2 * kl, torch.zeros(6, dtype=torch.float64), SLOTS).advantages
    torch.testing.assert_close(effective(kl, multipliers) - none, alone, rtol=1e-10, atol=1e-12)


def test_in_the_reward_alone_the_divergence_would_fade() -> None:
    kl = random(6, seed=2)
    signals = token_signals(torch.zeros(3, 2, dtype=torch.float64), kl, SLOTS, beta=0.2)
    signals[:, 1] = 0
    torch.testing.assert_close(blend(signals, [4.0]), -0.2 * kl / 5, rtol=1e-12, atol=0)


def test_the_bound_mixes_the_divergence_with_the_multipliers() -> None:
    kl, scores = torch.tensor([2.0], dtype=torch.float64), torch.tensor([[49.9, 0.0]], dtype=torch.float64)
    slots = torch.tensor([0])
    kept = [blend(token_signals(scores, -kl, slots, beta=0.2), [k]).item() for k in (0.0, 1.0)]
    free = [blend(token_signals(scores, -kl, slots, beta=0.2, clip=None), [k]).item() for k in (0.0, 1.0)]
    assert kept == pytest.approx([50.0, (50.0 + 0.4) / 2])
    assert free == pytest.approx([50.3, (50.3 + 0.4) / 2])


@pytest.mark.parametrize(("together", "is_kept"), [(True, True), (False, False)])
def test_whitening_keeps_the_weight_of_the_divergence_only_together(together: bool, is_kept: bool) -> None:
    scores = torch.tensor([[1.0, 9.0], [-2.0, -7.0], [0.5, 3.0]], dtype=torch.float64)
    kl = random(6, seed=2)
    slots, values = SLOTS, torch.zeros(6, 2, dtype=torch.float64)

    def gap(k: float) -> Tensor:
        """Derivative of the blended advantages in beta, statistics held fixed: what weighs the divergence."""
        whole = gae(token_signals(scores, kl, slots, beta=0.2), values, slots).advantages
        divergence_part = gae(token_signals(torch.zeros_like(scores), kl, slots), values, slots).advantages
        white = whiten(whole, together=together)
        scale = (white[0] - white[1]) / (whole[0] - whole[1])  # of each column
        return blend(divergence_part * scale, [k])

    assert torch.allclose(gap(0.0), gap(4.0), rtol=1e-9) == is_kept
