"""Settings of where reward and costs come from."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from equipoise.config import Config, InputPath, IsInput, IsLater, ModelRef
from equipoise.errors import ConfigError, near
from equipoise.generation.sources import Device
from equipoise.policy.group_weights import MaxMinSettings
from equipoise.rewards.served import RewardServer

FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
"""What a source looks like that is a function."""

CostKind = Literal["scorer", "guard", "server"]
RewardKind = Literal["scorer", "server", "rules"]
GROUP_KINDS = ("scorer", "server")
"""What of a group is no folder and no function."""


def _is_of(kinds: tuple[str, ...]) -> Callable[[str], str]:
    def check(source: str) -> str:
        if source not in kinds and not FUNCTION.fullmatch(source):
            known = ", ".join(kinds)
            raise ValueError(f"expected {known} or a function as package.module:name{near(source, kinds)}")
        return source

    return check


class CostSettings(Config):
    """Where the cost of one constraint comes from."""

    source: Annotated[str, AfterValidator(_is_of(get_args(CostKind)))] = "scorer"
    """scorer, guard, server, or a function as `package.module:name`, as with the reward."""
    scorer: InputPath | None = None
    """Folder of a scorer that gives this cost alone, for example a cost model of its own."""
    categories: tuple[str, ...] = ()
    """Of a scorer: the highest cost among these counts; the cost as a whole where there are none."""
    severity: Literal["expected", "at_least"] = "expected"
    """Of a guard: the expected level, 0 to 3, or the probability of `level` or a worse one."""
    level: Annotated[int, Field(ge=1, le=3)] = 2

    @model_validator(mode="after")
    def _belongs_to_its_source(self) -> Self:
        kinds = {"scorer": "scorer", "categories": "scorer", "severity": "guard", "level": "guard"}
        for name, source in kinds.items():
            if name in self.changed and self.source != source:
                raise ValueError(f"{name}: goes with source {source}, got {self.source}")
        if "level" in self.changed and self.severity != "at_least":
            raise ValueError(f"level: goes with severity at_least, got {self.severity}")
        return self


class GroupSettings(MaxMinSettings):
    """Several groups that each have a reward of their own, and how these become one."""

    groups: dict[str, Annotated[str, IsInput("scorer", "server")]] = {}
    """Group -> where its reward comes from: a folder of `train scorer`, `scorer` or `server` as with the
    reward (of a server: `groups` in its reply), or a function as `package.module:name`."""
    mixture: InputPath | None = None
    """A folder of `train mixture`, whose groups are taken in their order, the largest first."""

    @model_validator(mode="after")
    def _has_groups(self) -> Self:
        if bool(self.groups) == (self.mixture is not None):
            both = "both groups and a mixture" if self.groups else "neither groups nor a mixture"
            raise ValueError(f"maxmin: got {both}; expected one of them")
        return self


class ScoringSettings(Config):
    """Where reward and costs come from."""

    reward: Annotated[str, AfterValidator(_is_of(get_args(RewardKind)))] = "scorer"
    """scorer, server, rules alone, or a function as `package.module:name`, which takes exchanges and gives
    numbers. A function is looked up by its name and run: take settings with one from nobody you do not trust.
    Its name is part of a run's identity, its code is not."""
    maxmin: Annotated[GroupSettings | None, IsLater()] = None
    """Groups whose rewards take the place of the one."""
    costs: dict[str, CostSettings] = {}
    """Constraint -> where its cost comes from. One named `cost` takes the scorer's where nothing is said."""
    scorer: InputPath | None = None
    """Folder of a scorer of any kind that is called beside the policy; where None, `scorer` is the one among
    the roles, which shares the policy's weights."""
    reward_scorer: Annotated[InputPath | None, IsLater()] = None
    """Folder of another scorer, for example a reward model of its own, that gives the reward alone."""
    rules: InputPath | None = None
    """A folder of `train rules`, added to the reward."""
    guard: ModelRef | None = None
    """A guard's folder, or `default`: severities are logged, and may be costs; with rules it says which
    prompts ask for harm, of those that name no response type."""
    server: RewardServer | None = None
    truncated_less: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """What a response that reached the limit of tokens loses of its reward."""
    truncated_reward: Annotated[float | None, Field(allow_inf_nan=False)] = None
    """The reward of every such response, whatever it says; not with groups."""
    device: Device = "auto"
    """Where a scorer beside the policy and a guard compute."""

    @model_validator(mode="after")
    def _has_its_sources(self) -> Self:
        if self.maxmin is not None:
            for name in ("reward", "truncated_reward"):
                if name in self.changed:
                    raise ValueError(f"{name}: goes not with maxmin, got {getattr(self, name)}")
        asked = {*self.rewards, *(cost.source for cost in self.costs.values())}
        for name in ("server", "guard"):
            if name in asked and getattr(self, name) is None:
                raise ValueError(f"{name}: none is given, but asked for; expected scoring.{name}")
        if self.server is not None and "server" not in asked:
            raise ValueError("server: nobody asks it; expected reward or a cost with source server")
        if self.reward == "rules" and self.rules is None:
            raise ValueError("rules: none are given, but they are the reward; expected scoring.rules")
        if self.reward_scorer is not None and (self.reward != "scorer" or self.maxmin is not None):
            got = self.reward if self.maxmin is None else "maxmin"
            raise ValueError(f"reward_scorer: goes with reward scorer, got {got}")
        if self.truncated_less and self.truncated_reward is not None:
            raise ValueError("truncated_less: goes not with truncated_reward; expected one of them")
        return self

    @property
    def rewards(self) -> tuple[str, ...]:
        """Where the reward comes from, or those of groups."""
        return (self.reward,) if self.maxmin is None else tuple(self.maxmin.groups.values())

    def groups_of(self, source: str) -> list[str]:
        """Return the groups whose rewards come from a source."""
        groups = {} if self.maxmin is None else self.maxmin.groups
        return [name for name, its_own in groups.items() if its_own == source]

    def columns(self, names: Sequence[str]) -> dict[str, CostSettings]:
        """Return where the cost of each constraint comes from.

        Raises:
            ConfigError: A constraint has no cost, or a cost no constraint.
        """
        for name in self.costs:
            if name not in names:
                known = ", ".join(names) or "none"
                raise ConfigError(
                    f"scoring.costs: no constraint '{name}'{near(name, names)}; there are: {known}"
                )
        found = {"cost": CostSettings()} | self.costs
        for name in names:
            if name not in found:
                raise ConfigError(
                    f"scoring.costs.{name}: missing; expected where this constraint's cost comes from"
                )
        return {name: found[name] for name in names}
