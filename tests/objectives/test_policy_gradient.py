"""Policy and critic losses against plain floats, among them the formulas that public trainers publish."""

import math

import pytest
import torch
from torch import Tensor

from equipoise.objectives.policy_gradient import (
    POLICY_LOSSES,
    PolicyTokens,
    ValueTokens,
    appo_mask,
    clipped_value,
    is_clipped,
    ppo,
    ptx,
    reinforce,
    response_means,
)
from equipoise.objectives.sequence import sft

ROWS = [  # logp, logp when drawn, advantage
    (-1.0, -1.05, 0.7),  # inside the bound
    (-0.5, -1.5, 1.3),  # above it, and better than expected: no gradient
    (-0.5, -1.5, -1.3),  # above it, and worse
    (-3.0, -1.0, 0.4),  # below it, and better
    (-3.0, -1.0, -0.4),  # below it, and worse: no gradient
    (-2.0, -2.0, 0.9),  # the policy that drew it
    (-0.1, -6.0, -2.0),  # far above, and worse
    (-2.0, -1.0, 0.0),
]


def clip(x: float, low: float, high: float) -> float:
    return max(low, min(high, x))


def ppo_in_floats(logp: float, old: float, advantage: float) -> float:
    ratio = math.exp(logp - old)
    return -min(ratio * advantage, clip(ratio, 0.8, 1.2) * advantage)


FORMULAS = {
    "ppo": ppo_in_floats,
    "reinforce": lambda logp, old, advantage: -advantage * logp,
}


def batch(rows: list[tuple[float, float, float]] = ROWS) -> PolicyTokens:
    return PolicyTokens(*torch.tensor(rows, dtype=torch.float64).unbind(1))


def assert_equals(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_matches_formula(name: str) -> None:
    assert_equals(POLICY_LOSSES[name](batch()), [FORMULAS[name](*row) for row in ROWS])


def test_every_loss_has_a_formula() -> None:
    assert FORMULAS.keys() == POLICY_LOSSES.keys()


def random_tokens(count: int = 200) -> PolicyTokens:
    generator = torch.Generator().manual_seed(0)
    logps, old, advantages = torch.randn(3, count, generator=generator, dtype=torch.float64).unbind()
    return PolicyTokens(logps - 2, old - 2, advantages)


def test_bounds_of_their_own_and_dual_clip_match_verls_published_formula() -> None:
    tokens = random_tokens()
    expected = []
    for logp, old, a in zip(*(part.tolist() for part in tokens), strict=True):
        ratio = math.exp(clip(logp - old, -20, 20))
        one = max(-a * ratio, -a * clip(ratio, 1 - 0.2, 1 + 0.28))
        expected.append(min(-a * 3.0, one) if a < 0 else one)
    assert_equals(ppo(tokens, clip=0.2, clip_high=0.28, dual_clip=3.0), expected)
    plain = ppo(tokens, clip=0.2, clip_high=0.28)
    assert (plain != ppo(tokens, clip=0.2, clip_high=0.28, dual_clip=3.0)).any()


def test_matches_openrlhfs_published_formulas() -> None:
    tokens = random_tokens()
    expected, taken = [], []
    for logp, old, a in zip(*(part.tolist() for part in tokens), strict=True):
        first, second = math.exp(logp - old) * a, clip(math.exp(logp - old), 0.8, 1.2) * a
        expected.append(-min(first, second))
        taken.append(second < first)
    assert_equals(ppo(tokens), expected)
    assert is_clipped(tokens).tolist() == taken
    assert 0.2 < sum(taken) / 200 < 0.8

    values, old_values, returns = (part * 3 for part in tokens)
    assert_equals(
        clipped_value(ValueTokens(values, old_values, returns), clip=0.5),
        [
            0.5 * max((o + clip(v - o, -0.5, 0.5) - g) ** 2, (v - g) ** 2)
            for v, o, g in zip(values.tolist(), old_values.tolist(), returns.tolist(), strict=True)
        ],
    )
    assert_equals(
        clipped_value(ValueTokens(values, old_values, returns), clip=None),
        [0.5 * (v - g) ** 2 for v, g in zip(values.tolist(), returns.tolist(), strict=True)],
    )


def test_a_token_has_no_gradient_exactly_where_it_is_clipped() -> None:
    tokens = batch()
    tokens.logps.requires_grad_(True)
    ppo(tokens).sum().backward()  # type: ignore[no-untyped-call]
    assert tokens.logps.grad is not None
    assert is_clipped(tokens).tolist() == [False, True, False, False, True, False, False, False]
    is_still = (tokens.logps.grad == 0) & (tokens.advantages != 0)
    assert torch.equal(is_still, is_clipped(tokens))


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_what_was_better_than_expected_becomes_likelier(name: str) -> None:
    tokens = batch([(-2.0, -2.0, 0.5), (-2.0, -2.0, -0.5)])
    tokens.logps.requires_grad_(True)
    POLICY_LOSSES[name](tokens).sum().backward()
    assert tokens.logps.grad is not None
    assert tokens.logps.grad.tolist() == pytest.approx([-0.5, 0.5])


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_ratio_without_bound_gives_finite_gradients(advantage: float) -> None:
    tokens = batch([(0.0, -1000.0, advantage), (-1000.0, 0.0, advantage)])
    tokens.logps.requires_grad_(True)
    ppo(tokens, dual_clip=3.0).sum().backward()  # type: ignore[no-untyped-call]
    assert tokens.logps.grad is not None
    assert tokens.logps.grad.isfinite().all()


def test_a_dual_bound_that_would_take_every_gradient_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"dual_clip: got 1\.0; expected above 1"):
        ppo(batch(), dual_clip=1.0)


def test_a_critic_outside_its_bound_learns_only_towards_it() -> None:
    values = torch.tensor([9.0, 9.0], dtype=torch.float64, requires_grad=True)
    returns = torch.tensor([20.0, -20.0], dtype=torch.float64)
    clipped_value(ValueTokens(values, torch.zeros_like(returns), returns)).sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 29.0]


def test_ptx_is_a_term_of_the_same_gradient() -> None:
    logps = torch.tensor([-1.0, -2.5], dtype=torch.float64)
    assert_equals(ptx(logps), [16.0, 40.0])
    assert_equals(ptx(logps, coef=0.5), (0.5 * sft(logps)).tolist())


def test_response_means_are_what_safe_rlhf_reduces_by() -> None:
    losses = random_tokens(6).logps
    slots = torch.tensor([0, 0, 0, 2, 2, 2])
    first, last = losses.tolist()[:3], losses.tolist()[3:]
    assert_equals(response_means(losses, slots, 3), [sum(first) / 3, 0.0, sum(last) / 3])


def test_appo_mask_of_single_tokens_matches_the_public_formula() -> None:
    tokens = random_tokens()
    advantages, scores = tokens.advantages, tokens.logps + 2
    slots = torch.arange(200) // 5
    found = appo_mask(advantages, scores, slots, baseline=0.0, threshold=0.0)
    expected = [
        v > 0.0 if a >= 0.0 else v < 0.0 for a, v in zip(advantages.tolist(), scores.tolist(), strict=True)
    ]
    assert found.tolist() == expected


def test_appo_mask_follows_messages_not_single_tokens() -> None:
    scores = torch.tensor([2.0, -0.1, 2.0, -2.0, 0.1, -2.0])
    slots = torch.zeros(6, dtype=torch.long)
    up, down = torch.ones(6), -torch.ones(6)
    assert appo_mask(up, scores, slots, baseline=0.0).tolist() == [True] * 3 + [False] * 3
    assert appo_mask(down, scores, slots, baseline=0.0).tolist() == [False] * 3 + [True] * 3
    assert not appo_mask(up, scores, slots, baseline=0.0, threshold=0.0)[1]


def test_a_masked_token_has_no_gradient_at_all() -> None:
    tokens = batch()
    tokens.logps.requires_grad_(True)
    kept = torch.tensor([True, False] * 4)
    reinforce(tokens)[kept].sum().backward()  # type: ignore[no-untyped-call]
    assert tokens.logps.grad is not None
    assert (tokens.logps.grad[~kept] == 0).all()
