"""The multipliers of a run: one per constraint, moved after every rollout by what the responses cost.

The state is complete and plain (`state_dict` is JSON), so that a run that is resumed goes on with the same
multipliers, window and warnings. On several ranks each is given the costs of all of them, in one order: they
then hold the same numbers without sending them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor

from equipoise.config import Config, bind
from equipoise.errors import ConfigError, ModelError, RunStoppedError, near
from equipoise.objectives.multiplier import MULTIPLIER_RULES, MultiplierState

State = Literal["waiting", "active", "inactive", "saturated"]
"""waiting: the delay is not over; inactive: the cost is below the budget without the multiplier's help;
saturated: the multiplier is at its ceiling and the cost above the budget; active: none of these."""

NEGLIGIBLE = 0.01
"""A multiplier at or below this does nothing that one could see in a policy."""


class ConstraintSettings(Config):
    """What may cost how much in the mean."""

    name: str = "cost"
    budget: float | None = None
    """d, in the cost's own units, where above 0 is unsafe; None takes a quantile of the starting policy."""
    quantile: float = Field(default=0.25, gt=0, lt=1)
    """Of the costs of the starting policy's responses, where no budget is given."""


class MultiplierSettings(Config):
    """How the multipliers move. The defaults are ours; `PAPER` has those of Safe RLHF."""

    rule: Literal["pid", "projected", "log_sgd", "fixed"] = "pid"
    """projected and log_sgd swing about the budget, pid settles; fixed stays at `initial` and holds none."""
    rule_params: dict[str, NonNegativeFloat] = {}
    """Settings of the rule, by the names of its keyword-only parameters."""
    initial: float = Field(default=1.0, ge=0)
    ceiling: float = Field(default=10.0, gt=0)
    window: int = Field(default=0, ge=0)
    """Responses whose mean cost is compared with the budget; at least those of the last rollout."""
    delay: int = Field(default=0, ge=0)
    """Updates, from the first, in which the multipliers stay."""
    patience: int = Field(default=10, ge=1)
    """Updates in a row after which a constraint that is inactive or saturated is warned of."""

    @model_validator(mode="after")
    def _check(self) -> "MultiplierSettings":
        try:
            bind("rule", MULTIPLIER_RULES, self.rule, self.rule_params)
        except ConfigError as exc:
            raise ValueError(str(exc)) from exc
        if self.initial > self.ceiling:
            raise ValueError(f"initial: got {self.initial}; expected at most the ceiling, {self.ceiling}")
        if self.rule == "log_sgd" and self.initial == 0:
            raise ValueError("initial: got 0; expected above 0, which the rule 'log_sgd' never leaves")
        return self


PAPER = MultiplierSettings(rule="log_sgd", rule_params={"lr": 0.1}, ceiling=5.0, window=128)
"""Dai et al. 2023 (Safe RLHF), as in its code; there the budget is 0 and an update is a micro-batch's."""


class Reading(NamedTuple):
    """One constraint after an update, to be logged."""

    name: str
    multiplier: float
    cost: float
    """Mean raw cost over the window."""
    budget: float
    state: State
    warning: str | None
    """One line, once for every time that the constraint stays inactive or saturated for long."""


class _Constraint:
    """One constraint's part of the state; every attribute but the name is in the checkpoint."""

    def __init__(self, settings: ConstraintSettings, initial: float) -> None:
        self.name = settings.name
        self.budget = settings.budget
        self.state = MultiplierState(initial)
        self.was_exceeded = False
        self.idle: State = "active"
        self.streak = 0

    def required_budget(self) -> float:
        if self.budget is None:
            raise ValueError(f"constraint '{self.name}': no budget yet; expected `start` before `update`")
        return self.budget


class Multiplier:
    """The multipliers of all constraints. Give it raw costs: advantages have lost the budget's scale."""

    def __init__(
        self,
        constraints: Sequence[ConstraintSettings] = (ConstraintSettings(),),
        settings: MultiplierSettings = MultiplierSettings(),  # noqa: B008  (frozen)
    ) -> None:
        """Begin at `settings.initial`; constraints of one name raise ConfigError."""
        names = [constraint.name for constraint in constraints]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"constraints: got '{name}' twice; expected a name of its own for each")
        self.settings = settings
        self._rule = bind("rule", MULTIPLIER_RULES, settings.rule, settings.rule_params)
        self._quantiles = [constraint.quantile for constraint in constraints]
        self._constraints = [_Constraint(constraint, settings.initial) for constraint in constraints]
        self._window: list[list[float]] = []
        self._updates = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Of the constraints, in the order of the columns of costs."""
        return tuple(constraint.name for constraint in self._constraints)

    @property
    def values(self) -> tuple[float, ...]:
        """The multipliers, for `advantages.blend`."""
        return tuple(constraint.state.value for constraint in self._constraints)

    @property
    def budgets(self) -> tuple[float, ...]:
        """d of each constraint, given or calibrated."""
        return tuple(constraint.required_budget() for constraint in self._constraints)

    def start(self, costs: Tensor) -> tuple[str, ...]:
        """Calibrate budgets that were not given, and warn of constraints that do not bind.

        Args:
            costs: [R, M] raw costs of responses of the starting policy.
        """
        self._rows(costs)
        warnings = []
        for constraint, quantile, column in zip(
            self._constraints, self._quantiles, costs.double().unbind(dim=1), strict=True
        ):
            if constraint.budget is None:
                constraint.budget = torch.quantile(column, quantile).item()
            mean = column.mean().item()
            if mean <= constraint.budget:
                warnings.append(
                    f"constraint '{constraint.name}' is inactive: the starting policy costs {mean:.4g} in "
                    f"the mean, within the budget {constraint.budget:.4g}; a lower budget would bind"
                )
        return tuple(warnings)

    def update(self, costs: Tensor) -> tuple[Reading, ...]:
        """Move every multiplier by the mean cost over the window, and say where each constraint stands.

        A cost that is not finite raises RunStoppedError and leaves the state as it was.

        Args:
            costs: [R, M] raw costs of a rollout's responses, those of all ranks.
        """
        rows = self._rows(costs)
        self._window = (self._window + rows)[-max(self.settings.window, len(rows)) :]
        waits = self._updates < self.settings.delay
        self._updates += 1
        means = [math.fsum(column) / len(self._window) for column in zip(*self._window, strict=True)]
        if not self.settings.window:
            self._window = []
        return tuple(map(self._move, self._constraints, means, [waits] * len(means)))

    def _move(self, constraint: _Constraint, cost: float, waits: bool) -> Reading:
        budget, ceiling = constraint.required_budget(), self.settings.ceiling
        if not waits:
            constraint.state = self._rule(constraint.state, cost - budget, ceiling)
        value = constraint.state.value
        constraint.was_exceeded |= cost > budget
        now: State = "active"
        if cost > budget and value >= ceiling:
            now = "saturated"
        elif cost <= budget and (value <= NEGLIGIBLE or not constraint.was_exceeded):
            now = "inactive"
        constraint.streak = constraint.streak + 1 if now == constraint.idle else 1
        constraint.idle = now
        warning = None
        if constraint.streak == self.settings.patience and now != "active":
            mends = "raise the ceiling or the budget" if now == "saturated" else "a lower budget would bind"
            warning = (
                f"constraint '{constraint.name}' is {now} (cost {cost:.4g}, budget {budget:.4g}, multiplier "
                f"{value:.4g}, {constraint.streak} updates in a row); {mends}"
            )
        return Reading(constraint.name, value, cost, budget, "waiting" if waits else now, warning)

    def _rows(self, costs: Tensor) -> list[list[float]]:
        """The costs as plain numbers, checked."""
        if costs.ndim != 2 or costs.shape[1] != len(self._constraints) or not len(costs):
            raise ValueError(
                f"costs: got the shape {tuple(costs.shape)}; expected [responses, {len(self._constraints)}]"
            )
        finite = costs.isfinite().all(dim=0).tolist()
        for name, is_finite in zip(self.names, finite, strict=True):
            if not is_finite:
                raise RunStoppedError(f"constraint '{name}': update {self._updates}: a cost is not finite")
        rows: list[list[float]] = costs.double().tolist()
        return rows

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on, and what it warns of: plain numbers, for JSON."""
        return {
            "updates": self._updates,
            "window": [list(row) for row in self._window],
            "constraints": {
                c.name: {
                    "budget": c.budget,
                    **c.state._asdict(),
                    "was_exceeded": c.was_exceeded,
                    "idle": c.idle,
                    "streak": c.streak,
                }
                for c in self._constraints
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; another run's constraints raise ModelError and change nothing."""
        saved = state.get("constraints", {})
        for name in saved:
            if name not in self.names:
                raise ModelError(
                    f"multipliers: the checkpoint has a constraint '{name}'{near(name, self.names)}; "
                    f"this run has: {', '.join(self.names)}"
                )
        for name in self.names:
            if name not in saved:
                raise ModelError(f"multipliers: the checkpoint has no constraint '{name}'")
        self._updates = state["updates"]
        self._window = [list(row) for row in state["window"]]
        for c in self._constraints:
            own = saved[c.name]
            c.budget, c.was_exceeded = own["budget"], own["was_exceeded"]
            c.idle, c.streak = own["idle"], own["streak"]
            c.state = MultiplierState(**{field: own[field] for field in MultiplierState._fields})
