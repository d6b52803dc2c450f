"""Rules of a multiplier against plain floats, and each rule's way of failing."""

import math

import pytest

from equipoise.objectives.multiplier import MULTIPLIER_RULES, MultiplierState, log_sgd, pid, projected

EXCESSES = [0.5, 1.2, -0.3, -2.0, 0.0, 3.0, 0.1]


def follow(name: str, excesses: list[float], start: float = 1.0, ceiling: float = 5.0) -> list[float]:
    state, values = MultiplierState(start), []
    for excess in excesses:
        state = MULTIPLIER_RULES[name](state, excess, ceiling)
        values.append(state.value)
    return values


def test_log_sgd_matches_the_paper() -> None:
    log_value, expected = 0.0, []
    for excess in EXCESSES:
        gradient = -excess * math.exp(log_value)  # of -(Jc - d) exp(log k)
        log_value = min(log_value - 0.1 * gradient, math.log(5.0))
        expected.append(math.exp(log_value))
    assert follow("log_sgd", EXCESSES) == pytest.approx(expected, rel=1e-12)


def test_projected_matches_formula() -> None:
    value, expected = 1.0, []
    for excess in EXCESSES:
        value = min(5.0, max(0.0, value + 0.1 * excess))
        expected.append(value)
    assert follow("projected", EXCESSES) == pytest.approx(expected, rel=1e-12)


def test_pid_matches_formula() -> None:
    kp, ki, kd, smoothing = 0.7, 0.2, 0.4, 0.6
    state = MultiplierState(1.0)
    integral, last = 1.0, EXCESSES[0]
    for excess in EXCESSES:
        smoothed = smoothing * last + (1 - smoothing) * excess
        integral = max(0.0, integral + ki * excess)
        expected = max(0.0, kp * smoothed + integral + kd * max(0.0, smoothed - last))
        last = smoothed
        state = pid(state, excess, 100.0, kp=kp, ki=ki, kd=kd, smoothing=smoothing)
        assert state.value == pytest.approx(expected, rel=1e-12)


def test_the_integral_alone_is_the_projected_rule() -> None:
    state, other = MultiplierState(0.0), MultiplierState(0.0)
    for excess in EXCESSES:
        state = pid(state, excess, 50.0, kp=0.0, ki=0.1)
        other = projected(other, excess, 50.0, lr=0.1)
        assert state.value == pytest.approx(other.value, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in MULTIPLIER_RULES if name != "fixed"])
def test_a_multiplier_stays_between_nothing_and_its_ceiling(name: str) -> None:
    values = follow(name, [30.0] * 30 + [-30.0] * 200 + [1e4, -1e4, -1e4, 1e4])
    assert all(0 <= value <= 5.0 + 1e-12 for value in values)
    assert max(values) == pytest.approx(5.0)


def test_fixed_stays_where_it_is() -> None:
    assert follow("fixed", EXCESSES, start=0.7) == [0.7] * len(EXCESSES)


def test_a_multiplier_that_was_saturated_for_long_falls_at_once_under_pid() -> None:
    values = follow("pid", [3.0] * 1000 + [-1.0] * 40)
    assert values[999] == 5.0
    assert values[1030] < 4.0


def test_log_sgd_runs_away_above_and_freezes_below() -> None:
    assert log_sgd(MultiplierState(5.0), 1.0, 100.0).value / 5.0 == pytest.approx(math.exp(0.5))
    assert log_sgd(MultiplierState(0.05), 1.0, 100.0).value / 0.05 == pytest.approx(math.exp(0.005))


def test_log_sgd_never_reaches_nothing_and_never_overflows() -> None:
    low = log_sgd(MultiplierState(5.0), -1e9, 5.0)
    assert low.value > 0
    assert log_sgd(low, 1e9, 5.0).value > 0
    assert log_sgd(MultiplierState(5.0), 1e300, 5.0).value == pytest.approx(5.0)


def test_a_moving_average_that_never_moves_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"smoothing: got 1\.0"):
        pid(MultiplierState(1.0), 1.0, 5.0, smoothing=1.0)
