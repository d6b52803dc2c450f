"""Signs of trouble in a run's log: each planted one is warned of once, a healthy run of nothing."""

import random
from typing import Any

import pytest

from equipoise.policy.health import Limits, warnings_of

UPDATES = 60
Line = dict[str, Any]


def healthy(seed: int = 0, updates: int = UPDATES) -> list[Line]:
    """A run that goes well: reward up, cost down to its budget and held there, with noise in all of it."""
    draw = random.Random(seed)

    def noisy(value: float, share: float = 0.1) -> float:
        return value + abs(value) * share * draw.gauss(0, 1) + 0.02 * draw.gauss(0, 1)

    lines = []
    for number in range(updates):
        way = min(1.0, number / 30)
        lines.append(
            {
                "update": number + 1,
                "reward": noisy(0.2 + 1.5 * way),
                "reward_std": noisy(1.0),
                "costs": {"cost": noisy(2.0 * (1 - way))},
                "budgets": {"cost": 0.0},
                "kl": noisy(12 * way),
                "length": noisy(60 + 20 * way),
                "truncated": min(1.0, max(0.0, noisy(0.2))),
                "repetition": max(0.0, noisy(0.03)),
                "entropy": noisy(2.0 - 0.6 * way),
                "warnings": [],
            }
        )
    return lines


def told(lines: list[Line], limits: Limits = Limits()) -> list[tuple[int, str]]:  # noqa: B008
    """What is warned of and when, as the loop writes it into the log."""
    found = []
    for line in lines:  # as the loop has it without pessimism
        line["excess"] = {name: cost - line["budgets"][name] for name, cost in line["costs"].items()}
    for number, line in enumerate(lines, start=1):
        line["warnings"] += warnings_of(lines[:number], limits)
        found += [(number, warning) for warning in line["warnings"]]
    return found


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_run_is_warned_of_nothing(seed: int) -> None:
    assert told(healthy(seed)) == []


def planted(name: str, values: dict[int, float], lines: list[Line] | None = None) -> list[Line]:
    """A healthy run in which a quantity goes in straight lines through some points: update -> value."""
    lines = lines or healthy()
    places = sorted(values)
    for number, line in enumerate(lines):
        before = max((p for p in places if p <= number), default=places[0])
        after = min((p for p in places if p >= number), default=places[-1])
        way = (number - before) / (after - before) if after > before else 0.0
        value = values[before] + way * (values[after] - values[before])
        if name == "cost":
            line["costs"] = {"cost": value}
        else:
            line[name] = value
    return lines


PLANTED: dict[str, tuple[str, dict[int, float], str]] = {
    "length": ("length", {0: 50, 20: 50, 50: 200}, "length: responses grow from 50 to 10"),
    "limit": ("truncated", {0: 0.2, 20: 0.2, 40: 1.0}, "length: responses grow"),
    "repetition": ("repetition", {0: 0.02, 20: 0.02, 40: 0.5}, "repetition: 1"),
    "entropy": ("entropy", {0: 2.0, 20: 2.0, 40: 0.05}, "entropy: falls from 2 to 0."),
    "divergence": (
        "kl",
        {0: 0.0, 40: 80.0},
        "divergence: 32 nats per response from the reference, above 30;",
    ),
    "flat": ("cost", {0: 3.0, 30: -6.0}, "cost 'cost' is flat: stays at -6 for 5 updates, budget 0, as the"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_each_planted_sign_is_warned_of_once_with_its_numbers(what: str) -> None:
    name, values, words = PLANTED[what]
    lines = planted(name, values)
    if what == "flat":  # the reward still rises
        planted("reward", {0: 0.0, 60: 4.0}, lines)
    ((update, warning),) = told(lines)
    assert warning.startswith(words)
    assert "\n" not in warning
    assert update > 2 * Limits().window


@pytest.mark.parametrize("what", ["length", "limit", "flat"])
def test_what_goes_with_no_rise_of_the_reward_is_no_hacking(what: str) -> None:
    name, values, _ = PLANTED[what]
    assert told(planted("reward", {0: 0.5}, planted(name, values))) == []


def test_a_flat_cost_at_its_budget_is_what_is_wanted() -> None:
    for costs in ({0: 3.0, 30: 0.0}, {0: 0.0}):
        assert told(planted("reward", {0: 0.0, 60: 4.0}, planted("cost", costs))) == []


def test_a_cost_that_pessimism_holds_below_its_budget_is_where_it_should_be() -> None:
    lines = planted("reward", {0: 0.0, 60: 4.0}, planted("cost", {0: 3.0, 30: -1.0}))
    told(lines)
    for line in lines:
        line |= {"warnings": [], "excess": {"cost": line["costs"]["cost"] + 1.0}}
    assert warnings_of(lines) == []


def test_each_of_several_signs_and_constraints_has_its_warning() -> None:
    lines = planted("kl", {0: 0.0, 40: 80.0}, planted("reward", {0: 0.0, 60: 4.0}))
    for number, line in enumerate(lines):
        at = {"a": 3.0 - 9 * min(1.0, number / 30), "b": -1.0 + min(1.0, number / 40)}
        line |= {"costs": at, "budgets": {"a": 0.0, "b": 3.0}}
    kinds = [warning.split(":")[0] for _, warning in told(lines)]
    assert sorted(kinds) == ["cost 'a' is flat", "cost 'b' is flat", "divergence"]


def test_nothing_is_said_of_a_run_that_has_just_begun_or_has_no_constraint() -> None:
    assert warnings_of([]) == []
    wild = healthy(updates=3)
    for line in wild:
        line |= {"kl": 1e3, "entropy": 0.0, "repetition": 1.0, "length": 1e4}
    assert told(wild) == []
    assert told([line | {"costs": {}, "budgets": {}} for line in healthy()]) == []


def test_a_resumed_run_does_not_repeat_what_its_log_holds() -> None:
    lines = planted("kl", {0: 0.0, 40: 80.0})
    (first,) = told(lines)
    line = {**lines[-1], "warnings": []}
    assert warnings_of([*lines, line]) == []
    assert warnings_of([{**each, "warnings": []} for each in lines])[0].startswith(first[1].split(" ")[0])


def test_an_engine_whose_numbers_are_not_the_actors_is_warned_of_once() -> None:
    lines = [line | {"engine_gap": 0.02 if line["update"] < 9 else 0.4} for line in healthy(updates=12)]
    ((update, warning),) = told(lines)
    assert update == 9
    assert warning.startswith("engine: its log-probabilities are 0.4 nats per token from the actor's")


def test_limits_are_settings() -> None:
    assert told(planted("kl", {0: 0.0, 40: 80.0}), Limits(kl=100.0)) == []
