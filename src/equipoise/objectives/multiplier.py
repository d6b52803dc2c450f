"""How a multiplier follows its constraint: rules, each a step of plain numbers.

A rule takes the multiplier's state and by how much the mean cost exceeds the budget, in units that the caller
chooses, and returns the next state. Keyword-only parameters are the settings a config may give. The
multiplier lies in [0, ceiling].
"""

import math
import sys
from collections.abc import Callable
from typing import NamedTuple

from equipoise.objectives.constraints import ascend


class MultiplierState(NamedTuple):
    """A multiplier, and what the PID rule remembers; the other rules leave that alone."""

    value: float
    integral: float = 0.0
    """What the excess so far adds up to, in units of the multiplier."""
    smoothed: float | None = None
    """Excess as the PID rule saw it last, a moving average; None before the first step."""


def log_sgd(state: MultiplierState, excess: float, ceiling: float, *, lr: float = 0.1) -> MultiplierState:
    """log k <- log k + lr k excess: a step of SGD in log k. Dai et al. 2023 (Safe RLHF), as in its code.

    Its speed is k's own: it freezes near 0 and runs away above, so that the ceiling is needed. It cannot
    start from 0, nor come to it.
    """
    log_value = math.log(state.value) + lr * state.value * excess
    return state._replace(value=math.exp(max(min(log_value, math.log(ceiling)), _LEAST)))


_LEAST = math.log(sys.float_info.min)  # below it k would round to 0 and never rise again


def projected(state: MultiplierState, excess: float, ceiling: float, *, lr: float = 0.1) -> MultiplierState:
    """k <- max(0, k + lr excess): one speed everywhere. Gradient ascent on the dual."""
    return state._replace(value=min(ascend(state.value, excess, lr=lr), ceiling))


def pid(
    state: MultiplierState,
    excess: float,
    ceiling: float,
    *,
    kp: float = 1.0,
    ki: float = 0.05,
    kd: float = 0.0,
    smoothing: float = 0.8,
) -> MultiplierState:
    """k <- {kp e + I + kd {e - e_last}+}+, I <- {I + ki e}+, e the excess. Stooke et al. 2020.

    The proportional term damps the oscillation that the integral alone (`projected`) has; the defaults are
    for costs with a deviation near 1. The integral begins with the multiplier's first value, and stops at the
    ceiling, so that a multiplier that was saturated falls at once. `smoothing` is the weight of what was
    before in a moving average of e, for the terms in kp and kd; a first step has no difference.
    """
    if not smoothing < 1:
        raise ValueError(f"pid: smoothing: got {smoothing}; expected 0 or more, below 1")
    before, integral = state.smoothed, state.integral
    if before is None:
        before, integral = excess, state.value
    smoothed = smoothing * before + (1 - smoothing) * excess
    integral = min(max(0.0, integral + ki * excess), ceiling)
    value = kp * smoothed + integral + kd * max(0.0, smoothed - before)
    return MultiplierState(min(max(0.0, value), ceiling), integral, smoothed)


def fixed(state: MultiplierState, excess: float, ceiling: float) -> MultiplierState:
    """k <- k, whatever the cost: reward shaping, R - k C. A baseline, which holds no budget."""
    return state


MULTIPLIER_RULES: dict[str, Callable[..., MultiplierState]] = {
    "projected": projected,
    "log_sgd": log_sgd,
    "pid": pid,
    "fixed": fixed,
}
