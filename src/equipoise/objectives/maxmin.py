"""Groups that want different things: which reward a rater follows, and what serves the worst-off group.

MaxMin-RLHF (Chakraborty et al. 2024). A mixture of Bradley-Terry rewards is learned by EM, whose E-step is
here (the M-step is in `training/mixture.py`); a policy then maximises the least of the groups' mean rewards.
Public code gives each sample the least of its rewards instead, which is another aim and never above it: both
are here by name.

Shapes: N pairs, U units (raters, or whatever is known to want one thing), K groups, B responses.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


def unit_log_likelihoods(gaps: Tensor, units: Tensor, count: int) -> Tensor:
    """Sum over a unit's pairs of log s(r_k(preferred) - r_k(other)), [U, K]. A unit without pairs gives 0.

    Args:
        gaps: [N, K] reward of the preferred answer less that of the other, in each group's eyes.
        units: [N] unit of each pair, 0..U-1.
        count: U.
    """
    found = F.logsigmoid(gaps)
    return found.new_zeros(count, found.shape[1]).index_add(0, units, found)


def soft_assignment(log_likelihoods: Tensor, shares: Tensor) -> Tensor:
    """P(group | pairs of the unit), [U, K]: the shares [K] of the groups times their likelihoods [U, K]."""
    return (log_likelihoods + shares.log()).softmax(dim=-1)


def hard_assignment(log_likelihoods: Tensor) -> Tensor:
    """1 for the likeliest group of each unit, the first of equals, [U, K]; shares play no part."""
    return F.one_hot(log_likelihoods.argmax(dim=-1), log_likelihoods.shape[-1]).to(log_likelihoods.dtype)


def soft_log_likelihood(log_likelihoods: Tensor, shares: Tensor) -> Tensor:
    """sum_u log sum_k share_k exp(l_uk), in nats: what soft EM never lowers. Scalar."""
    return (log_likelihoods + shares.log()).logsumexp(dim=-1).sum()


def hard_log_likelihood(log_likelihoods: Tensor) -> Tensor:
    """sum_u max_k l_uk, in nats: what hard EM never lowers. Scalar."""
    return log_likelihoods.amax(dim=-1).sum()


class Aggregated(NamedTuple):
    """One reward per response for a policy to maximise, and the weights of the groups for the next batch."""

    rewards: Tensor
    """[B]"""
    weights: Tensor
    """[K], at least 0, sum 1."""


def min_of_mean(rewards: Tensor, weights: Tensor, *, lr: float = 0.1) -> Aggregated:
    """sum_k q_k r_k, with q_k <- q_k exp(-lr mean r_k) normalised: for max_pi min_k E r_k, the paper's aim.

    The weights move by exponentiated gradient to the groups that are worst off, and the policy maximises the
    weighted sum; together they go to the saddle point. It cycles around it unless lr is small beside the
    policy's steps.

    Args:
        rewards: [B, K] of each response in each group's eyes, on scales that can be compared.
        weights: [K] of the batch before; equal ones to begin with.
        lr: Step of the weights.
    """
    moved = (weights.log() - lr * rewards.mean(dim=0)).softmax(dim=0)
    return Aggregated(rewards @ moved, moved)


def mean_of_min(rewards: Tensor, weights: Tensor) -> Aggregated:
    """min_k r_k of each response: for max_pi E min_k r_k, which the public code does. Weights stay.

    >>> import torch
    >>> mean_of_min(torch.tensor([[1.0, 0.0], [0.4, 0.5]]), torch.tensor([0.5, 0.5])).rewards
    tensor([0.0000, 0.4000])
    """
    return Aggregated(rewards.amin(dim=-1), weights)
