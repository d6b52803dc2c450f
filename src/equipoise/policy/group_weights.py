"""The weights of groups in a MaxMin policy's reward, from one rollout to the next."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from equipoise.errors import ModelError
from equipoise.objectives.maxmin import mean_of_min, min_of_mean
from equipoise.policy.lagrangian import FiniteConfig


class MaxMinSettings(FiniteConfig):
    """How several groups' rewards become one."""

    aggregate: Literal["min_of_mean", "mean_of_min"] = "min_of_mean"
    """The least of the groups' mean rewards, which is MaxMin-RLHF's aim, or the mean of the least."""
    lr: float = Field(default=0.05, gt=0)
    """Step of the weights of `min_of_mean`, for rewards with a deviation near 1."""


class GroupWeights:
    """Weights that move to the groups that are worst off. Chakraborty et al. 2024 (MaxMin-RLHF)."""

    def __init__(self, groups: Sequence[str], settings: MaxMinSettings = MaxMinSettings()) -> None:  # noqa: B008
        """Begin with equal weights."""
        self.groups = tuple(groups)
        self.settings = settings
        self._weights = torch.full((len(self.groups),), 1 / len(self.groups), dtype=torch.float64)

    @property
    def values(self) -> tuple[float, ...]:
        """Weight of each group, sum 1; to be logged."""
        return tuple(self._weights.tolist())

    def update(self, rewards: Tensor) -> Tensor:
        """Move the weights by a rollout, and return one reward per response, [R, G] -> [R].

        Args:
            rewards: Of each response in each group's eyes, those of all ranks, on scales that can be
                compared.
        """
        raw = rewards.double().cpu()
        if self.settings.aggregate == "mean_of_min":
            found = mean_of_min(raw, self._weights)
        else:
            found = min_of_mean(raw, self._weights, lr=self.settings.lr)
        self._weights = found.weights
        return found.rewards.to(rewards)

    def state_dict(self) -> dict[str, Any]:
        """The weights by group: plain numbers, for JSON."""
        return {"weights": dict(zip(self.groups, self._weights.tolist(), strict=True))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; other groups raise ModelError."""
        saved = state["weights"]
        if set(saved) != set(self.groups):
            raise ModelError(
                f"group weights: the checkpoint has: {', '.join(saved)}; "
                f"this run has: {', '.join(self.groups)}"
            )
        self._weights = torch.tensor([saved[group] for group in self.groups], dtype=torch.float64)
