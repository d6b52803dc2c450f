"""The multipliers of a run: the paper's arithmetic, calibration, warnings, and a state that is complete."""

import json
import math
import statistics

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from equipoise.config import load_config
from equipoise.errors import ConfigError, ModelError, RunStoppedError
from equipoise.policy.lagrangian import (
    PAPER,
    ConstraintSettings,
    Multiplier,
    MultiplierSettings,
)


def rollouts(count: int, responses: int = 6, constraints: int = 1, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, responses, constraints)
    return list(torch.randn(shape, generator=generator, dtype=torch.float64) + 0.3)


def column(costs: list[float]) -> Tensor:
    return torch.tensor(costs)[:, None]


def given(budget: float, **settings: object) -> Multiplier:
    return Multiplier([ConstraintSettings(budget=budget)], MultiplierSettings.model_validate(settings))


def test_the_papers_settings_follow_its_arithmetic_with_window_delay_and_ceiling() -> None:
    settings = PAPER.model_copy(update={"window": 10, "delay": 3, "ceiling": 1.05})
    multiplier = Multiplier([ConstraintSettings(budget=0.0)], settings)
    seen: list[float] = []
    log_value, values = 0.0, []
    for step, costs in enumerate(rollouts(12)):
        seen = [*seen, *costs[:, 0].tolist()][-10:]
        if step >= 3:
            excess = statistics.fmean(seen)
            log_value = min(log_value + 0.1 * math.exp(log_value) * excess, math.log(1.05))
        (reading,) = multiplier.update(costs)
        values.append(reading.multiplier)
        assert reading.multiplier == pytest.approx(math.exp(log_value), rel=1e-12)
        assert reading.cost == pytest.approx(statistics.fmean(seen), rel=1e-12)
        assert (reading.state == "waiting") == (step < 3)
    assert values[:3] == [1.0] * 3
    assert max(values) == pytest.approx(1.05)
    assert min(values[3:]) < 1.05


def test_our_default_compares_the_last_rollout_with_the_budget() -> None:
    multiplier, integral, smoothed = given(0.5), 0.0, 1.5
    for costs, excess in [([1.5, 2.5], 1.5), ([0.0, 0.0], -0.5), ([0.5, 0.5], 0.0)]:
        (reading,) = multiplier.update(column(costs))
        integral, smoothed = integral + excess, 0.8 * smoothed + 0.2 * excess
        assert reading.multiplier == pytest.approx(smoothed + 0.05 * integral)
    assert multiplier.values == (reading.multiplier,)


def test_pessimism_compares_the_mean_and_some_deviations_with_the_budget() -> None:
    """Costs 1, 2, 3, 6: mean 3, deviation sqrt(14 / 3); half a deviation more is above a budget of 4."""
    costs, expected = [1.0, 2.0, 3.0, 6.0], 3 + 0.5 * math.sqrt(14 / 3)
    for pessimism, cost, multiplier in [(0.0, 3.0, 0.0), (0.5, expected, 0.1 * (expected - 4))]:
        settings = MultiplierSettings(rule="projected", initial=0.0, rule_params={"lr": 0.1})
        constraint = ConstraintSettings(budget=4.0, pessimism=pessimism)
        (reading,) = Multiplier([constraint], settings).update(column(costs))
        assert reading.cost == pytest.approx(cost, rel=1e-12)
        assert reading.multiplier == pytest.approx(multiplier, rel=1e-12)
        assert reading.state == ("active" if multiplier else "inactive")
    with pytest.raises(ValidationError, match="pessimism"):
        ConstraintSettings(pessimism=-0.1)
    alone = Multiplier([ConstraintSettings(budget=0.0, pessimism=2.0)])
    assert alone.update(column([1.5]))[0].cost == 1.5  # one answer has no deviation


def test_each_constraint_is_as_pessimistic_as_it_says_over_the_window() -> None:
    constraints = [ConstraintSettings(name=n, budget=0.5, pessimism=k) for n, k in (("a", 1.0), ("b", 0.25))]
    multiplier, wary = Multiplier(constraints, MultiplierSettings(window=10)), (1.0, 0.25)
    seen: list[list[float]] = []
    for costs in rollouts(4, responses=6, constraints=2):
        seen = [*seen, *costs.tolist()][-10:]
        columns = zip(*seen, strict=True)
        for reading, k, values in zip(multiplier.update(costs), wary, columns, strict=True):
            expected = statistics.fmean(values) + k * statistics.stdev(values)
            assert reading.cost == pytest.approx(expected, rel=1e-12)


def test_a_warning_says_that_deviations_are_in_what_it_compares() -> None:
    wary = Multiplier([ConstraintSettings(budget=9.0, pessimism=0.5)])
    (reading,) = wary.update(column([1.0, 3.0]))
    assert reading.warning is not None
    assert "cost and 0.5 deviations 2.707, budget 9" in reading.warning


def test_a_window_smaller_than_a_rollout_drops_none_of_it() -> None:
    multiplier = given(0.0, window=2)
    assert multiplier.update(column([9.0, 0.0, 0.0]))[0].cost == pytest.approx(3.0)


def test_every_constraint_has_a_multiplier_of_its_own() -> None:
    both = Multiplier([ConstraintSettings(name="rate", budget=0.1), ConstraintSettings(budget=0.4)])
    alone = [given(0.1), given(0.4)]
    for costs in rollouts(8, constraints=2):
        both.update(costs)
        for m, multiplier in enumerate(alone):
            multiplier.update(costs[:, m : m + 1])
    assert both.values == (*alone[0].values, *alone[1].values)
    assert both.names == ("rate", "cost")


def test_a_budget_that_is_not_given_is_a_quantile_of_what_the_start_costs() -> None:
    costs = torch.stack([torch.linspace(0, 4, 5), torch.linspace(-8, 0, 5)], 1)
    multiplier = Multiplier([ConstraintSettings(), ConstraintSettings(name="rate", budget=-5.0)])
    with pytest.raises(ValueError, match="expected `start` before `update`"):
        multiplier.update(costs)
    assert multiplier.start(costs) == ()
    assert multiplier.budgets == (1.0, -5.0)


def test_a_calibrated_budget_that_is_the_least_cost_is_warned_of() -> None:
    multiplier = Multiplier([ConstraintSettings(), ConstraintSettings(name="rate")])
    (warning,) = multiplier.start(torch.tensor([[0.0, 0.0], [0.0, 0.1], [0.0, 0.2], [3.0, 0.3]]))
    assert warning == (
        "constraint 'cost': the budget 0 is the least that a response costs, so that none may cost more; "
        "give a budget or another quantile"
    )


@pytest.mark.parametrize(
    ("more", "unit"), [({}, 2.0), ({"rule": "projected"}, 2.0), ({"scaled": False}, 1.0)]
)
def test_an_excess_is_in_units_of_how_far_the_starting_costs_deviate_from_the_budget(
    more: dict[str, object], unit: float
) -> None:
    multiplier, plain = given(5.0, **more), given(0.0, **more)
    multiplier.start(column([3.0, 7.0, 3.0, 7.0]))
    (reading,) = multiplier.update(column([6.0, 8.0]))
    plain.update(column([2.0 / unit]))
    assert multiplier.values == pytest.approx(plain.values)
    assert (reading.cost, reading.budget) == (7.0, 5.0)


def test_the_papers_multiplier_moves_by_the_costs_own_units() -> None:
    multiplier = Multiplier([ConstraintSettings(budget=0.0)], PAPER)
    multiplier.start(column([-4.0, 4.0]))
    multiplier.update(column([1.0]))
    assert multiplier.values[0] == pytest.approx(math.exp(0.1))


def test_costs_that_are_the_budget_leave_the_unit_at_1() -> None:
    multiplier, plain = given(0.1), given(0.1)
    multiplier.start(column([0.1, 0.1]))
    for each in (multiplier, plain):
        each.update(column([0.3, 0.4]))
    assert multiplier.values == pytest.approx(plain.values)


def test_a_rate_far_below_one_still_moves_its_multiplier() -> None:
    rare = column([1.0] * 5 + [0.0] * 95)
    multiplier, unscaled = given(0.01), given(0.01)
    multiplier.start(rare)
    for _ in range(100):
        multiplier.update(rare)
        unscaled.update(rare)
    unit = math.sqrt(0.05 * 0.99**2 + 0.95 * 0.01**2)
    assert multiplier.values[0] == pytest.approx(0.04 / unit * (1 + 0.05 * 100), rel=1e-6)
    assert multiplier.values[0] > 1
    assert unscaled.values[0] < 0.25


def test_a_rate_that_was_near_zero_at_the_start_does_not_throw_its_multiplier() -> None:
    multiplier = given(0.01)
    multiplier.start(column([1e-5, 2e-5, 1e-5]))
    multiplier.update(column([1e-5, 2e-5, 1e-5]))
    (reading,) = multiplier.update(column([0.02, 0.02]))
    assert 0 <= reading.multiplier < 0.5


def test_a_constraint_that_does_not_bind_from_the_start_is_warned_of() -> None:
    multiplier = given(0.0)
    assert multiplier.start(column([-0.9, -0.5])) == ()
    assert multiplier.update(column([-0.9, -0.5]))[0].warning == (
        "constraint 'cost' is inactive (cost -0.7, budget 0, multiplier 0, from the start); "
        "a lower budget would bind"
    )
    assert multiplier.update(column([-0.9, -0.5]))[0].warning is None


def test_what_prompts_exceed_the_budget_by_is_compared_with_the_slack() -> None:
    multiplier = given(-3.0, patience=2)
    first, second, third = (
        multiplier.update(column(c), 0.1)[0] for c in ([0.0, 0.1], [0.0, 0.0], [0.0, 0.4])
    )
    assert first.warning == (
        "constraint 'cost' is inactive (prompts exceed its budget by 0.05 in the mean, slack 0.1, "
        "multiplier 0, from the start); a lower budget would bind"
    )
    assert "slack 0.1, multiplier 0, 2 updates in a row" in str(second.warning)
    assert (third.state, third.budget) == ("active", 0.1)
    assert third.cost == pytest.approx(0.2)


@pytest.mark.parametrize("ki", [0.05, 0.0])
def test_pid_goes_on_from_its_first_value(ki: float) -> None:
    multiplier = given(0.0, initial=2.0, rule_params={"ki": ki}, delay=1)
    seen = [multiplier.update(column([c]))[0].multiplier for c in (9.0, 0.0, 0.0, -1.0)]
    assert seen == pytest.approx([2.0, 2.0, 2.0, 2.0 - ki - 0.2])
    assert given(0.0).values == (0.0,)
    assert given(0.0, rule="projected").values == (1.0,)


def test_a_constraint_that_stays_inactive_is_warned_of_once() -> None:
    multiplier = given(0.0, patience=4, rule="projected")
    readings = [multiplier.update(column([-0.7]))[0] for _ in range(9)]
    assert {reading.state for reading in readings} == {"inactive"}
    assert [reading.warning is not None for reading in readings] == [
        *[True, False, False],
        *[True, False, False, False, False, False],
    ]
    assert "inactive (cost -0.7, budget 0, multiplier 0.72, 4 updates in a row)" in str(readings[3].warning)


def test_a_constraint_that_has_done_its_work_is_active() -> None:
    multiplier = given(0.0, patience=2)
    multiplier.update(column([1.0]))
    readings = [multiplier.update(column([-0.1]))[0] for _ in range(5)]
    assert {reading.state for reading in readings} == {"active"}
    while multiplier.values[0] > 0.01:
        multiplier.update(column([-1.0]))
    assert multiplier.update(column([-1.0]))[0].state == "inactive"


def test_a_saturated_multiplier_is_warned_of_each_time() -> None:
    multiplier = given(0.0, patience=2, ceiling=1.2)
    readings = [multiplier.update(column([c]))[0] for c in (9.0, 9.0, 9.0, -9.0, 9.0, 9.0, 9.0)]
    assert [reading.state == "saturated" for reading in readings] == [True] * 3 + [False] + [True] * 3
    assert [reading.warning is not None for reading in readings] == [
        *[False, True, False],
        False,
        *[False, True, False],
    ]
    assert "raise the ceiling or the budget" in str(readings[1].warning)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_cost_that_is_no_number_stops_the_run_and_changes_nothing(bad: float) -> None:
    multiplier = given(0.0, window=4)
    multiplier.update(column([1.0]))
    before = multiplier.state_dict()
    with pytest.raises(RunStoppedError, match="constraint 'cost': update 2: a cost is not finite"):
        multiplier.update(column([1.0, bad]))
    assert multiplier.state_dict() == before


@pytest.mark.parametrize("shape", [(3,), (3, 2), (0, 1)])
def test_costs_need_a_column_per_constraint(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[responses, 1\]"):
        given(0.0).update(torch.zeros(shape))


SETTINGS = [
    MultiplierSettings(rule="projected", patience=3),
    PAPER.model_copy(update={"window": 15, "delay": 4}),
    MultiplierSettings(rule="pid", rule_params={"kd": 0.3}, patience=2, initial=0.5),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.rule)
@pytest.mark.parametrize("at", [0, 3, 11])
def test_a_run_that_is_killed_and_resumed_is_the_same_run(settings: MultiplierSettings, at: int) -> None:
    constraints = [ConstraintSettings(), ConstraintSettings(name="rate", budget=0.2)]
    steps = rollouts(20, constraints=2)
    whole = Multiplier(constraints, settings)
    whole.start(steps[0])
    expected = []
    saved = ""
    for step, costs in enumerate(steps):
        if step == at:
            saved = json.dumps(whole.state_dict(), allow_nan=False)
        expected.append(whole.update(costs))
    resumed = Multiplier(constraints, settings)
    resumed.load_state_dict(json.loads(saved))
    assert [resumed.update(costs) for costs in steps[at:]] == expected[at:]
    assert resumed.state_dict() == whole.state_dict()


def test_everything_that_changes_is_in_the_state() -> None:
    multiplier = given(-1.0, rule="pid", window=8)
    before = multiplier.state_dict()
    multiplier.start(rollouts(1)[0])
    for costs in rollouts(3):
        multiplier.update(costs)
    after = multiplier.state_dict()
    own_before, own_after = before["constraints"]["cost"], after["constraints"]["cost"]
    assert before["updates"] != after["updates"]
    assert before["window"] != after["window"]
    assert {k for k in own_after if own_after[k] != own_before[k]} >= {
        "unit",
        "value",
        "integral",
        "smoothed",
        "streak",
    }


def test_another_runs_state_is_refused() -> None:
    multiplier = Multiplier([ConstraintSettings(name="severity", budget=0.0)])
    other = Multiplier([ConstraintSettings(name="severty", budget=0.0)])
    with pytest.raises(ModelError, match=r"constraint 'severty' \(did you mean 'severity'\?\)"):
        multiplier.load_state_dict(other.state_dict())
    two = Multiplier([ConstraintSettings(name="severity", budget=0.0), ConstraintSettings(budget=0.0)])
    with pytest.raises(ModelError, match="has no constraint 'cost'"):
        two.load_state_dict(multiplier.state_dict())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rule=projected", "rule_params.ls=1"], "'projected' takes no 'ls'; it takes: lr"),
        (["rule=projected", "rule_params.lr=-0.1"], "greater than or equal to 0"),
        (["initial=11"], r"initial: got 11\.0; expected at most the ceiling, 10\.0"),
        (["rule=projected", "ceiling=0.5"], r"initial: got 1\.0; expected at most the ceiling, 0\.5"),
        (
            ["rule_params.smoothing=1.5"],
            r"rule_params: pid: smoothing: got 1\.5; expected 0 or more, below 1",
        ),
        (["ceiling=.inf"], "ceiling: Input should be a finite number"),
        (["rule_params.kp=.nan"], r"rule_params\.kp: Input should be a finite number"),
        (["rule=log_sgd", "initial=0"], "initial: got 0; expected above 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(MultiplierSettings, None, overrides)


def test_two_constraints_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="got 'cost' twice"):
        Multiplier([ConstraintSettings(), ConstraintSettings(budget=1.0)])
