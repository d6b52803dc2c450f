"""The weights of groups in a MaxMin policy's reward, from one rollout to the next.

A reward that was learned from preferences has neither a zero nor a unit of its own, so that the least of some
groups' means would be chance. Unless told otherwise, groups are therefore compared by how far they have come:
each group's rewards are moved and stretched, by numbers that are measured on the starting policy's responses
and then stay, until there all groups have one mean and one deviation.

Shapes: R responses, G groups.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from equipoise.errors import ConfigError, ModelError
from equipoise.objectives.maxmin import mean_of_min, min_of_mean
from equipoise.policy.lagrangian import ROUNDING, FiniteConfig


class MaxMinSettings(FiniteConfig):
    """How several groups' rewards become one."""

    aggregate: Literal["min_of_mean", "mean_of_min"] = "min_of_mean"
    """The least of the groups' mean rewards, which is MaxMin-RLHF's aim, or the mean of the least."""
    lr: float = Field(default=0.05, ge=0)
    """Step of the weights of `min_of_mean`, in units of the deviation where rewards are scaled; 0 leaves the
    weights equal, which is the average of the groups."""
    scaled: bool = True
    """Compare how far each group's mean has come from that of the starting policy, in units of its deviation
    there; else the rewards as they are, which must then be on one scale."""


class GroupReading(NamedTuple):
    """One group after an update, to be logged."""

    reward: float
    """Mean as its source gives it."""
    compared: float
    """What is compared among groups: deviations of the start by which that is above the start's mean, or the
    reward itself where it is not scaled."""
    weight: float


class GroupWeights:
    """Weights that move to the groups that are worst off. Chakraborty et al. 2024 (MaxMin-RLHF).

    On several ranks each is given the rewards of all of them, in one order, and holds the same numbers.
    """

    def __init__(self, groups: Sequence[str], settings: MaxMinSettings = MaxMinSettings()) -> None:  # noqa: B008
        """Begin with equal weights, and rewards as they are until `start`."""
        self.groups = tuple(groups)
        self.settings = settings
        count = len(self.groups)
        self._weights = torch.full((count,), 1 / count, dtype=torch.float64)
        self._means = torch.zeros(count, dtype=torch.float64)
        self._deviations = torch.ones(count, dtype=torch.float64)

    @property
    def values(self) -> tuple[float, ...]:
        """Weight of each group, sum 1."""
        return tuple(self._weights.tolist())

    def columns(self, rewards: Mapping[str, Tensor]) -> Tensor:
        """Return rewards by group as columns, [R, G]; other groups than these raise ConfigError."""
        if set(rewards) != set(self.groups):
            raise ConfigError(
                f"scoring: got rewards of the groups: {', '.join(rewards) or 'none'}; "
                f"expected: {', '.join(self.groups)}"
            )
        return torch.stack([rewards[name] for name in self.groups], dim=1)

    def start(self, rewards: Tensor) -> tuple[str, ...]:
        """Take means and deviations of rewards [R, G] of the starting policy, if they are to be scaled.

        Returns what there is to warn of. A group whose rewards do not differ is taken to have the mean
        deviation of the others, or 1.
        """
        if not self.settings.scaled:
            return ()
        raw = rewards.double().cpu()
        self._means, found = raw.mean(dim=0), raw.std(dim=0, correction=0)
        differs = found > ROUNDING
        others = found[differs].mean() if differs.any() else torch.ones_like(found[0])
        self._deviations = torch.where(differs, found, others)
        return tuple(
            f"group '{name}': the starting policy's responses all have the reward {mean:.4g}, so that its "
            f"scale is not known; {other:.4g} is taken for its deviation"
            for name, is_known, mean, other in zip(
                self.groups,
                differs.tolist(),
                self._means.tolist(),
                self._deviations.tolist(),
                strict=True,
            )
            if not is_known
        )

    def update(self, rewards: Tensor) -> Tensor:
        """Move the weights by a rollout, and return one reward per response, [R, G] -> [R].

        It has the groups' mean deviation, so that what else is in a reward keeps its weight.

        Args:
            rewards: Of each response in each group's eyes, as their sources give them, of all ranks.
        """
        unit = self._deviations.mean()
        scale = unit / self._deviations
        begins = scale * self._means
        comparable = rewards.double().cpu() * scale + (begins.mean() - begins)
        if self.settings.aggregate == "mean_of_min":
            found = mean_of_min(comparable, self._weights)
        else:
            found = min_of_mean(comparable, self._weights, lr=self.settings.lr / unit.item())
        self._weights = found.weights
        return found.rewards.to(rewards)

    def readings(self, rewards: Tensor) -> dict[str, GroupReading]:
        """Return where each group stands by a rollout's rewards [R, G]."""
        means = rewards.double().cpu().mean(dim=0)
        compared = (means - self._means) / self._deviations
        found = zip(means.tolist(), compared.tolist(), self.values, strict=True)
        return {name: GroupReading(*each) for name, each in zip(self.groups, found, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Weight, mean and deviation at the start, by group: plain numbers, for JSON."""
        columns = {"weights": self._weights, "means": self._means, "deviations": self._deviations}
        return {name: dict(zip(self.groups, it.tolist(), strict=True)) for name, it in columns.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; other groups raise ModelError."""
        saved = state["weights"]
        if set(saved) != set(self.groups):
            raise ModelError(
                f"group weights: the checkpoint has: {', '.join(saved)}; "
                f"this run has: {', '.join(self.groups)}"
            )
        self._weights, self._means, self._deviations = (
            torch.tensor([state[name][group] for group in self.groups], dtype=torch.float64)
            for name in ("weights", "means", "deviations")
        )
