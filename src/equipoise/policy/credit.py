"""Which tokens did better than expected: scores under multipliers become advantages.

Reward and costs are scaled apart, in columns, and blended last; nothing is scaled after that. Multipliers
are moved before, by raw costs.

Shapes: as in `experience.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.objectives.advantages import (
    GROUP_ADVANTAGES,
    blend,
    gae,
    grpo,
    prompt_excess,
    rectify,
    whiten,
)
from equipoise.objectives.kl import token_signals
from equipoise.objectives.sequence import segment_sums
from equipoise.policy.experience import Experience
from equipoise.policy.settings import GroupLagConfig, OnlineConfig, PpoLagConfig


class Moved(NamedTuple):
    """What the multipliers are moved by."""

    costs: Tensor
    """[R, M] raw; of RePO [P, M] what prompts exceed the budgets by."""
    slack: float | None = None
    """Of RePO: what the mean of that is compared with, where others compare costs with budgets."""


class Credit(NamedTuple):
    """What is learned of each token."""

    advantages: Tensor
    """[N] of reward and costs under the multipliers."""
    returns: Tensor | None
    """[N, S] what the critics are to expect; None without critics."""


def moved_by(config: OnlineConfig, costs: Tensor, budgets: Sequence[float]) -> Moved:
    """Return what the multipliers are moved by, of raw costs [R, M]."""
    if not isinstance(config, GroupLagConfig) or config.estimator != "repo":
        return Moved(costs)
    return Moved(prompt_excess(_by_prompt(config, costs), budgets), config.slack)


def credit(
    config: OnlineConfig, experience: Experience, multipliers: Sequence[float], budgets: Sequence[float]
) -> Credit:
    """Return advantages under the multipliers as they now are."""
    if isinstance(config, PpoLagConfig):
        return _from_critics(config, experience, multipliers)
    if isinstance(config, GroupLagConfig):
        return _from_groups(config, experience, multipliers, budgets)
    raise TypeError(f"{type(config).__name__} has no advantages")


def _from_critics(config: PpoLagConfig, experience: Experience, multipliers: Sequence[float]) -> Credit:
    if experience.values is None:
        raise ValueError("no values; expected roles with critics")
    signals = token_signals(
        experience.scores,
        experience.kl,
        experience.slots,
        beta=_beta_in_scores(config),
        clip=config.score_clip,
    )
    found = gae(signals, experience.values, experience.slots, gamma=config.gae.gamma, decay=config.gae.decay)
    advantages = found.advantages
    if config.whiten != "none":
        advantages = whiten(advantages, together=config.whiten == "together")
    return Credit(blend(advantages, multipliers), found.returns)


def _from_groups(
    config: GroupLagConfig, experience: Experience, multipliers: Sequence[float], budgets: Sequence[float]
) -> Credit:
    scores = experience.scores
    if beta := _beta_in_scores(config):
        signs = torch.tensor([-beta, *([beta] * (scores.shape[1] - 1))])
        scores = scores + segment_sums(experience.kl, experience.slots, len(scores))[:, None] * signs
    grouped = _by_prompt(config, scores)
    if config.estimator == "repo":
        raw = _by_prompt(config, experience.signals.costs)
        found = rectify(grpo(grouped, scale=config.scale), raw, budgets)
    elif config.estimator == "grpo":
        found = grpo(grouped, scale=config.scale)
    else:
        found = GROUP_ADVANTAGES[config.estimator](grouped)
    return Credit(blend(found, multipliers).flatten()[experience.slots], None)


def _beta_in_scores(config: OnlineConfig) -> float:
    return config.kl.beta if config.kl.place == "reward" else 0.0


def _by_prompt(config: OnlineConfig, columns: Tensor) -> Tensor:
    """[R, ...] -> [P, K, ...]."""
    return columns.reshape(-1, config.rollout.samples, *columns.shape[1:])
