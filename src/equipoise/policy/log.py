"""What a person can see of an update: one line of numbers, and a few of the texts behind them.

The numbers are those of the rollout, which the policy wrote before it learned from it.
"""

import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from equipoise.data.repetition import repetition
from equipoise.generation.rollouts import Rollout
from equipoise.objectives.constraints import severity_at_least
from equipoise.objectives.sequence import segment_sums
from equipoise.policy.experience import Experience
from equipoise.policy.lagrangian import Reading
from equipoise.policy.scoring import Signals
from equipoise.policy.update import Learned
from equipoise.records import text_of


class Clock:
    """Seconds of each part of an update."""

    def __init__(self) -> None:
        """Begin with no part."""
        self._spent: dict[str, float] = {}
        self._part = ""
        self._since = time.monotonic()

    def __call__(self, part: str) -> None:
        """Say which part begins."""
        now = time.monotonic()
        self._spent[self._part] = self._spent.get(self._part, 0.0) + now - self._since
        self._part, self._since = part, now

    def stop(self) -> dict[str, float]:
        """Return the seconds of all parts."""
        self("")
        return {part: round(seconds, 3) for part, seconds in self._spent.items() if part}


def log_line(
    update: int,
    experience: Experience,
    readings: Sequence[Reading],
    budgets: Sequence[float],
    learned: Learned,
) -> dict[str, Any]:
    """Return the numbers of an update, counted from 1."""
    signals = experience.signals
    reward, costs, severity = signals.reward, signals.costs, signals.severity
    names = [reading.name for reading in readings]
    responses = len(experience.rollouts)
    return {
        "update": update,
        "responses": responses,
        "reward": _mean(reward),
        "reward_std": reward.double().std(correction=min(1, responses - 1)).item(),
        "costs": dict(zip(names, (_mean(column) for column in costs.unbind(dim=1)), strict=True)),
        "excess": {reading.name: reading.cost - reading.budget for reading in readings},
        "budgets": dict(zip(names, budgets, strict=True)),
        "multipliers": {reading.name: reading.multiplier for reading in readings},
        "states": {reading.name: reading.state for reading in readings},
        "kl": _mean(segment_sums(experience.kl.double(), experience.slots, responses)),
        "harmful": _harmful(experience.signals),
        "severity": None if severity is None else severity.double().mean(dim=0).tolist(),
        "length": len(experience.slots) / responses,
        "truncated": sum(rollout.is_truncated for rollout in experience.rollouts) / responses,
        "repetition": sum(repetition(rollout.text) for rollout in experience.rollouts) / responses,
        "entropy": -_mean(experience.logps),
        "drift": None if experience.drift is None else max(experience.drift, learned.drift),
        "clip_fraction": learned.clip_fraction,
        "policy_loss": learned.policy_loss,
        "value_losses": dict(zip(("reward", *names), learned.value_losses, strict=False)),
        "ptx_loss": learned.ptx_loss,
        "grad_norm": learned.grad_norm,
        "lr": learned.lr,
        **({} if experience.engine_gap is None else {"engine_gap": experience.engine_gap}),
    }


def _harmful(signals: Signals) -> float | None:
    """Return the mean P(severity >= 1), or the share whose first cost is above 0, or None.

    None of a first cost that is no scorer's and nowhere below 0: it may be a probability or a level, which is
    above 0 always.
    """
    if signals.severity is not None:
        return _mean(severity_at_least(signals.severity, 1))
    first = signals.costs[:, :1]
    return _mean(first > 0) if signals.is_signed or bool((first < 0).any()) else None


def sample_lines(
    update: int, experience: Experience, names: Sequence[str], count: int
) -> list[dict[str, Any]]:
    """Return `count` responses with their scores, evenly spread over the rollout."""
    total = len(experience.rollouts)
    chosen = [total * i // count for i in range(count)] if count < total else range(total)
    signals = experience.signals
    reward, costs, groups = signals.reward, signals.costs, signals.groups
    lines = [_sample(update, experience.rollouts[i], reward[i], costs[i], names) for i in chosen]
    if groups:
        for i, line in zip(chosen, lines, strict=True):
            line["groups"] = {name: column[i].item() for name, column in groups.items()}
    return lines


def _sample(
    update: int, rollout: Rollout, reward: Tensor, costs: Tensor, names: Sequence[str]
) -> dict[str, Any]:
    return {
        "update": update,
        "id": rollout.prompt.id,
        "sample": rollout.sample,
        "prompt": text_of(rollout.prompt.prompt),
        "response": rollout.text,
        "reward": reward.item(),
        "costs": dict(zip(names, costs.tolist(), strict=True)),
    }


def _mean(values: Tensor) -> float:
    return values.double().mean().item()
