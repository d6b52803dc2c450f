"""The multipliers of a run: one per constraint, moved after every rollout by what the responses cost.

The state is complete and plain (`state_dict` is JSON), so that a run that is resumed goes on with the same
multipliers, window and warnings. On several ranks each is given the costs of all of them, in one order: they
then hold the same numbers without sending them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, model_validator
from torch import Tensor

from equipoise.config import Config, bind
from equipoise.errors import ConfigError, ModelError, RunStoppedError, near
from equipoise.objectives.multiplier import MULTIPLIER_RULES, MultiplierState

State = Literal["waiting", "active", "inactive", "saturated"]
"""waiting: the delay is not over; inactive: the cost is below the budget without the multiplier's help;
saturated: the multiplier is at its ceiling and the cost above the budget; active: none of these."""

NEGLIGIBLE = 0.01
"""A multiplier at or below this does nothing that one could see in a policy."""


ROUNDING = 1e-6
"""Costs that deviate from the budget by no more are the budget."""


class FiniteConfig(Config):
    """Settings whose numbers are neither infinite nor NaN."""

    model_config = ConfigDict(allow_inf_nan=False)


class ConstraintSettings(FiniteConfig):
    """What may cost how much in the mean."""

    name: str = "cost"
    budget: float | None = None
    """d, in the cost's own units, where above 0 is unsafe; None takes a quantile of the starting policy."""
    quantile: float = Field(default=0.25, gt=0, lt=1)
    """Of the costs of the starting policy's responses, where no budget is given."""
    pessimism: float = Field(default=0.0, ge=0)
    """k: the multiplier holds the mean and k standard deviations of the costs at the budget: room for chance
    and for harder prompts. Chittepu et al. 2025 (HC-RLHF)."""


class MultiplierSettings(FiniteConfig):
    """How the multipliers move. The defaults are ours; `PAPER` has those of Safe RLHF."""

    rule: Literal["pid", "projected", "log_sgd", "fixed"] = "pid"
    """projected and log_sgd swing about the budget, pid settles; fixed stays at `initial` and holds none."""
    rule_params: dict[str, NonNegativeFloat] = {}
    """Settings of the rule, by the names of its keyword-only parameters."""
    initial: float | None = Field(default=None, ge=0)
    """Where None: 0 with pid, which is at once where the first excess puts it, and 1 with the others."""
    ceiling: float = Field(default=10.0, gt=0)
    scaled: bool = True
    """Move by the excess in units of how far the starting policy's costs deviate from the budget, which suits
    costs of any scale and rates of a few hundredths; else in the cost's own units."""
    window: int = Field(default=0, ge=0)
    """Responses whose cost is compared with the budget; at least those of the last rollout."""
    delay: int = Field(default=0, ge=0)
    """Updates, from the first, in which the multipliers stay."""
    patience: int = Field(default=10, ge=1)
    """Updates in a row after which a constraint that is inactive or saturated is warned of."""

    @model_validator(mode="after")
    def _check(self) -> "MultiplierSettings":
        if self.first > self.ceiling:
            raise ValueError(f"initial: got {self.first}; expected at most the ceiling, {self.ceiling}")
        if self.rule == "log_sgd" and self.initial == 0:
            raise ValueError("initial: got 0; expected above 0, which the rule 'log_sgd' never leaves")
        try:
            rule = bind("rule", MULTIPLIER_RULES, self.rule, self.rule_params)
            rule(MultiplierState(self.first), 0.0, self.ceiling)
        except ConfigError as exc:
            raise ValueError(str(exc)) from exc
        except ValueError as exc:
            raise ValueError(f"rule_params: {exc}") from exc
        return self

    @property
    def first(self) -> float:
        """What a multiplier is before its first step."""
        if self.initial is not None:
            return self.initial
        return 0.0 if self.rule == "pid" else 1.0


PAPER = MultiplierSettings(rule="log_sgd", rule_params={"lr": 0.1}, ceiling=5.0, window=128, scaled=False)
"""Dai et al. 2023 (Safe RLHF), as in its code; there the budget is 0 and an update is a micro-batch's."""


class Reading(NamedTuple):
    """One constraint after an update, to be logged."""

    name: str
    multiplier: float
    cost: float
    """Mean raw cost over the window, with pessimism k deviations more; or what prompts exceed the budget by,
    see `Multiplier.update`."""
    budget: float
    """What that is compared with."""
    state: State
    warning: str | None
    """One line, where the constraint does not bind from the start, and once for every time that it stays
    inactive or saturated for long."""


class _Constraint:
    """One constraint's part of the state; what the settings do not say is in the checkpoint."""

    def __init__(self, settings: ConstraintSettings, initial: float) -> None:
        self.name = settings.name
        self.budget = settings.budget
        self.pessimism = settings.pessimism
        self.unit = 1.0
        self.state = MultiplierState(initial)
        self.was_exceeded = False
        self.idle: State = "active"
        self.streak = 0

    def pessimistic(self, costs: Sequence[float]) -> float:
        """mean + k s, s with N - 1 in the denominator; the mean of a single cost."""
        mean = math.fsum(costs) / len(costs)
        if not self.pessimism or len(costs) == 1:
            return mean
        squares = math.fsum((cost - mean) ** 2 for cost in costs)
        return mean + self.pessimism * math.sqrt(squares / (len(costs) - 1))

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
        self._constraints = [_Constraint(constraint, settings.first) for constraint in constraints]
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
        """Calibrate budgets that were not given, and the unit in which an excess moves the multipliers.

        The unit is the root of the mean square of costs less the budget. Returns what there is to warn of.

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
                if constraint.budget == column.min():
                    warnings.append(
                        f"constraint '{constraint.name}': the budget {constraint.budget:.4g} is the least "
                        "that a response costs, so that none may cost more; give a budget or another quantile"
                    )
            unit = (column - constraint.budget).square().mean().sqrt().item()
            if self.settings.scaled and unit > ROUNDING:
                constraint.unit = unit
        return tuple(warnings)

    def update(self, costs: Tensor, slack: float | None = None) -> tuple[Reading, ...]:
        """Move every multiplier by the cost over the window, and say where each constraint stands.

        A cost that is not finite raises RunStoppedError and leaves the state as it was.

        Args:
            costs: [R, M] raw costs of a rollout's responses, those of all ranks.
            slack: Where given, costs are what prompts exceed the budgets by, [P, M], and compared with this.
        """
        rows = self._rows(costs)
        self._window = (self._window + rows)[-max(self.settings.window, len(rows)) :]
        columns = list(zip(*self._window, strict=True))
        found = [c.pessimistic(column) for c, column in zip(self._constraints, columns, strict=True)]
        if not self.settings.window:
            self._window = []
        readings = tuple(self._move(c, cost, slack) for c, cost in zip(self._constraints, found, strict=True))
        self._updates += 1
        return readings

    def _move(self, constraint: _Constraint, cost: float, slack: float | None) -> Reading:
        ceiling, waits = self.settings.ceiling, self._updates < self.settings.delay
        budget = constraint.required_budget() if slack is None else slack
        if not waits:
            constraint.state = self._rule(constraint.state, (cost - budget) / constraint.unit, ceiling)
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
        begins = self._updates == 0 and now == "inactive"
        if begins or (constraint.streak == self.settings.patience and now != "active"):
            wary = f" and {constraint.pessimism:g} deviations" if constraint.pessimism else ""
            what = f"cost{wary} {cost:.4g}, budget {budget:.4g}"
            if slack is not None:
                what = f"prompts exceed its budget by {cost:.4g} in the mean, slack {slack:.4g}"
            since = "from the start" if begins else f"{constraint.streak} updates in a row"
            mends = "raise the ceiling or the budget" if now == "saturated" else "a lower budget would bind"
            warning = (
                f"constraint '{constraint.name}' is {now} ({what}, multiplier {value:.4g}, {since}); {mends}"
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
                raise RunStoppedError(
                    f"constraint '{name}': update {self._updates + 1}: a cost is not finite"
                )
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
                    "unit": c.unit,
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
            c.budget, c.unit, c.was_exceeded = own["budget"], own["unit"], own["was_exceeded"]
            c.idle, c.streak = own["idle"], own["streak"]
            c.state = MultiplierState(**{field: own[field] for field in MultiplierState._fields})
