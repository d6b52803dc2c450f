"""A mixture of rewards: raters fall into groups, and every group has a linear reward of its own.

Soft or hard EM (MaxMin-RLHF, Chakraborty et al. 2024) on features that are given, for example those of a
frozen backbone: the E-step says how likely each unit belongs to each group, the M-step fits the groups'
Bradley-Terry rewards. With linear rewards the M-step is a convex problem that is solved to the end, so the
likelihood rises in every iteration; the best of several random starts is kept. A unit is a rater where
raters are known, else a category, a severity or a source.

Shapes: N pairs, F features, U units, K groups.
"""

from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from equipoise.errors import DataError
from equipoise.objectives.maxmin import (
    hard_assignment,
    hard_log_likelihood,
    soft_assignment,
    soft_log_likelihood,
    unit_log_likelihoods,
)

Floats = NDArray[np.float64]
Mode = Literal["soft", "hard"]


class Mixture(NamedTuple):
    """Rewards of the groups, and who belongs to which. Rewards are better when higher."""

    heads: Tensor
    """[K, F] a group's reward of a response is the product with its features."""
    shares: Tensor
    """[K] of the units, largest first."""
    units: tuple[Hashable, ...]
    """U, in the order in which they were first seen."""
    assignment: Tensor
    """[U, K] P(group | pairs of the unit); ones and zeros where EM was hard."""
    trace: tuple[float, ...]
    """After each iteration, nats: log-likelihood less the ridge's penalty. Never falls."""

    def rewards(self, features: Tensor) -> Tensor:
        """Reward of responses in each group's eyes, [N, F] -> [N, K]."""
        return features.to(self.heads.dtype) @ self.heads.T


class _Data(NamedTuple):
    gaps: Tensor  # [N, F] float64
    rows: Tensor  # [N] unit of each pair
    units: tuple[Hashable, ...]


def fit_mixture(
    gaps: Tensor,
    units: Sequence[Hashable],
    *,
    groups: int = 2,
    mode: Mode = "soft",
    ridge: float = 1.0,
    iterations: int = 200,
    tolerance: float = 1e-6,
    restarts: int = 8,
    seed: int = 0,
) -> Mixture:
    """Fit the rewards of `groups` groups; with one group this is a plain Bradley-Terry reward.

    Args:
        gaps: [N, F] features of the preferred answer less those of the other.
        units: N, the unit of each pair.
        groups: K.
        mode: Whether a unit belongs to groups by degrees, or wholly to one.
        ridge: Half of it times the squared length of each head is taken off the log-likelihood.
        iterations: At most so many from each start.
        tolerance: Stops when an iteration gains less, in nats.
        restarts: Random starts, each with the units dealt out anew.
        seed: Of the starts.

    Raises:
        DataError: There are fewer units than groups, or not one unit for each pair.
    """
    names = tuple(dict.fromkeys(units))
    if len(units) != len(gaps):
        raise DataError(f"units: expected one for each of {len(gaps)} pairs, got {len(units)}")
    if len(names) < groups:
        raise DataError(
            f"groups: got {groups}, but the pairs are of {len(names)} units; expected at most that"
        )
    place = {name: number for number, name in enumerate(names)}
    data = _Data(gaps.double().cpu(), torch.tensor([place[unit] for unit in units]), names)
    generator = torch.Generator().manual_seed(seed)
    runs = []
    for _ in range(restarts if groups > 1 else 1):
        dealt = torch.randperm(len(names), generator=generator) % groups
        start = torch.nn.functional.one_hot(dealt, groups).double()
        runs.append(_climb(data, start, mode=mode, ridge=ridge, iterations=iterations, tolerance=tolerance))
    return _largest_first(max(runs, key=lambda run: run.trace[-1]))


def _climb(
    data: _Data, assignment: Tensor, *, mode: Mode, ridge: float, iterations: int, tolerance: float
) -> Mixture:
    """Iterate from one assignment until the gain is below the tolerance."""
    groups = assignment.shape[1]
    heads = torch.zeros(groups, data.gaps.shape[1], dtype=torch.float64)
    trace: list[float] = []
    while True:
        heads = _fit_heads(data, assignment, heads, ridge)
        shares = assignment.mean(dim=0)
        likelihoods = unit_log_likelihoods(data.gaps @ heads.T, data.rows, len(data.units))
        if mode == "soft":
            total = soft_log_likelihood(likelihoods, shares)
            assignment = soft_assignment(likelihoods, shares)
        else:
            total = hard_log_likelihood(likelihoods)
            assignment = hard_assignment(likelihoods)
        trace.append(total.item() - ridge / 2 * heads.square().sum().item())
        gained = trace[-1] - trace[-2] if len(trace) > 1 else float("inf")
        if groups == 1 or gained < tolerance or len(trace) == iterations:
            return Mixture(heads, assignment.mean(dim=0), data.units, assignment, tuple(trace))


def _fit_heads(data: _Data, assignment: Tensor, heads: Tensor, ridge: float) -> Tensor:
    """M-step: each group's reward from all pairs, weighted by how much their unit is of the group."""
    gaps = data.gaps.numpy()
    weights = assignment[data.rows].numpy()
    fitted = [_fit_head(gaps, weights[:, k], head.numpy(), ridge) for k, head in enumerate(heads)]
    return torch.from_numpy(np.stack(fitted))


def _fit_head(gaps: Floats, weights: Floats, start: Floats, ridge: float) -> Floats:
    """Least of sum_i w_i log(1 + exp(-gaps_i . head)) + ridge / 2 |head|^2, from where it was."""

    def loss(head: Floats) -> tuple[float, Floats]:
        margins = gaps @ head
        value = weights @ np.logaddexp(0, -margins) + ridge / 2 * head @ head
        return float(value), ridge * head - (weights * expit(-margins)) @ gaps

    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000}
    )
    head: Floats = found.x
    return head


def _largest_first(mixture: Mixture) -> Mixture:
    order = mixture.shares.argsort(descending=True, stable=True)
    return mixture._replace(
        heads=mixture.heads[order], shares=mixture.shares[order], assignment=mixture.assignment[:, order]
    )
