"""Signs in a run's log that the policy fools its scorers, or that it comes apart: one line of warning each.

What is compared are means over a few updates, at the start and now, since a single rollout says little. The
constraints' own warnings, inactive and saturated, come from `lagrangian`. A warning is a sign and no proof:
read the samples.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

Line = Mapping[str, Any]
"""One line of `log.jsonl`."""


class Limits(NamedTuple):
    """From where on something is a sign."""

    window: int = 5
    """Updates whose mean is taken, at the start and now."""
    reward_rise: float = 0.25
    """Of the mean reward, in deviations of the start's responses: what counts as a rise."""
    length_factor: float = 2.0
    """Of the mean length, since the start."""
    truncated_rise: float = 0.3
    """Of the share of responses that reach the limit, where lengths can grow no more."""
    repetition_rise: float = 0.1
    """Of the share of repeated word sequences."""
    entropy_factor: float = 0.3
    """What is left of the entropy of the start."""
    kl: float = 30.0
    """Nats per response that the policy is from its reference."""
    engine_gap: float = 0.1
    """Nats per token that an engine's log-probabilities are from the actor's, in the mean; rounding to 16
    bits should make less."""
    flat: float = 0.01
    """Of the range of a cost over the run: within it the cost no longer answers to the policy."""


class Since(NamedTuple):
    """A quantity's mean at the start and now."""

    start: float
    now: float


def warnings_of(history: Sequence[Line], limits: Limits = Limits()) -> list[str]:  # noqa: B008
    """Return what the last line of a log newly gives reason to warn of.

    A kind of warning that an earlier line holds under `warnings` is not repeated.

    Args:
        history: All lines of the run so far.
        limits: From where on something is a sign.
    """
    if not history:
        return []
    found = {kind: check(history, limits) for kind, check in _CHECKS.items()}
    for name in history[-1]["costs"]:
        found[f"cost '{name}' is flat"] = _flat_cost(name, history, limits)
    said = [warning for line in history[:-1] for warning in line.get("warnings", ())]
    return [
        f"{kind}: {warning}"
        for kind, warning in found.items()
        if warning and not any(old.startswith(f"{kind}:") for old in said)
    ]


def _length(history: Sequence[Line], limits: Limits) -> str:
    length, cut = (_since(history, name, limits) for name in ("length", "truncated"))
    reward = _risen_reward(history, limits)
    if length is None or cut is None or reward is None:
        return ""
    is_longer = length.now >= limits.length_factor * length.start
    if not is_longer and cut.now < cut.start + limits.truncated_rise:
        return ""
    what = f"responses grow from {length.start:.0f} to {length.now:.0f} tokens, {cut.now:.0%} at the limit"
    return (
        f"{what}, as the reward rises from {reward.start:.3g} to {reward.now:.3g}; is it the length it likes?"
    )


def _repetition(history: Sequence[Line], limits: Limits) -> str:
    found = _since(history, "repetition", limits)
    if found is None or found.now < max(found.start + limits.repetition_rise, 2 * found.start):
        return ""
    return f"{found.now:.0%} of word sequences are repeated, {found.start:.0%} at the start; read the samples"


def _entropy(history: Sequence[Line], limits: Limits) -> str:
    found = _since(history, "entropy", limits)
    if found is None or found.start <= 0 or found.now > limits.entropy_factor * found.start:
        return ""
    left = f"falls from {found.start:.3g} to {found.now:.3g} nats per token"
    return f"{left}; responses become all alike, a lower learning rate or more weight on the divergence helps"


def _divergence(history: Sequence[Line], limits: Limits) -> str:
    now = fmean(line["kl"] for line in history[-limits.window :])
    if len(history) < limits.window or now <= limits.kl:
        return ""
    far = f"{now:.4g} nats per response from the reference, above {limits.kl:.4g}"
    return f"{far}; scorers know little of such texts, more weight on the divergence keeps nearer"


def _engine(history: Sequence[Line], limits: Limits) -> str:
    gap = history[-1].get("engine_gap")
    if gap is None or gap <= limits.engine_gap:
        return ""
    far = f"its log-probabilities are {gap:.3g} nats per token from the actor's in the mean"
    return f"{far}; does it serve the model of roles.policy, with the adapter that it was given?"


def _flat_cost(name: str, history: Sequence[Line], limits: Limits) -> str:
    """The reward rises and the cost, away from its budget, answers to nothing: the end of its scale."""
    column = [line["costs"][name] for line in history]
    recent, before = column[-limits.window :], column[: -limits.window]
    reward = _risen_reward(history, limits)
    if reward is None or len(before) < limits.window:
        return ""
    width = max(recent) - min(recent)
    whole = max(column) - min(column)
    away = abs(fmean(line["excess"][name] for line in history[-limits.window :]))
    if width > limits.flat * whole or away <= 10 * limits.flat * whole:
        return ""
    stays = (
        f"stays at {fmean(recent):.4g} for {limits.window} updates, budget {history[-1]['budgets'][name]:.4g}"
    )
    return f"{stays}, as the reward rises to {reward.now:.3g}; its scorer may be at the end of its scale"


_CHECKS: dict[str, Callable[[Sequence[Line], Limits], str]] = {
    "length": _length,
    "repetition": _repetition,
    "entropy": _entropy,
    "divergence": _divergence,
    "engine": _engine,
}


def _since(history: Sequence[Line], name: str, limits: Limits) -> Since | None:
    """Return the means of the first and of the last window; None before the two are apart."""
    if len(history) < 2 * limits.window:
        return None
    first, last = history[: limits.window], history[-limits.window :]
    return Since(fmean(line[name] for line in first), fmean(line[name] for line in last))


def _risen_reward(history: Sequence[Line], limits: Limits) -> Since | None:
    """Return the reward at the start and now where it has risen by more than its noise."""
    reward, spread = (_since(history, name, limits) for name in ("reward", "reward_std"))
    if reward is None or spread is None:
        return None
    return reward if reward.now - reward.start > limits.reward_rise * spread.start else None
