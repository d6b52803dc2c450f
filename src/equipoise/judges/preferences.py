"""Preferences between two answers that were asked for in both orders, and how much the order decided.

Let d be how much the judge prefers the first answer and b how much it prefers the first place, in nats of
log-odds. Shown in order it says d + b for the first place, and turned round b - d: so b is their mean, and d
half of their difference.
"""

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import JsonValue

from equipoise.judges.asking import Answer
from equipoise.judges.judging import Opinion
from equipoise.judges.questions import PLACES, PREFERENCES, Preference
from equipoise.records import Choice, Judgement
from equipoise.stats import Estimate, bootstrap_mean, wilson

OnFlip = Literal["tie", "missing", "average"]
"""What an answer is that changes with the order: a tie, missing, or what d says, in which a bias towards one
place cancels out (`average` needs log-probabilities)."""

_DRAWS = 2000


class Compared(NamedTuple):
    """The answers to one preference: first answer in first place, and turned round."""

    forward: Answer
    backward: Answer

    @property
    def log_odds(self) -> tuple[float, float] | None:
        """For the first place in each order, in nats; None for written answers."""
        if self.forward.logps is None or self.backward.logps is None:
            return None
        return self.forward.logps[0] - self.forward.logps[1], self.backward.logps[0] - self.backward.logps[1]


class Settled(NamedTuple):
    """One preference, from both orders."""

    choice: Choice | None
    probability: float | None
    """That the first answer is preferred, 0..1, the place aside; None for written answers."""
    missing: str | None = None


class PositionBias(NamedTuple):
    """How much the place of an answer decided a preference."""

    flipped: Estimate
    """Share of pairs whose answer changed with the order."""
    first: Estimate
    """Share of all answers that named the first place; .5 where there is no bias."""
    shift: Estimate | None
    """Mean of b, nats of log-odds towards the first place; None for written answers."""


def settle(compared: Compared, on_flip: OnFlip) -> Settled:
    """Return what both orders say together; an answer missing in one is missing."""
    forward, backward = compared
    if forward.picked is None or backward.picked is None:
        return Settled(None, None, forward.missing or backward.missing)
    margin = None
    if compared.log_odds is not None:
        margin = (compared.log_odds[0] - compared.log_odds[1]) / 2
    probability = None if margin is None else _sigmoid(margin)
    if on_flip == "average" and margin is not None:
        return Settled("tie" if margin == 0 else 0 if margin > 0 else 1, probability)
    if forward.picked != backward.picked:
        return Settled(0 if forward.picked == (0,) else 1, probability)
    return Settled("tie", probability) if on_flip == "tie" else Settled(None, probability, "flipped")


def opinion_of(
    compared: Mapping[Preference, Compared], on_flip: OnFlip, about: Mapping[str, JsonValue]
) -> Opinion:
    """Return the preferences about one pair; `about` goes to the provenance as it is."""
    settled = {name: settle(answers, on_flip) for name, answers in compared.items()}
    sure = [
        max(found.probability, 1 - found.probability)
        for found in settled.values()
        if found.choice in {0, 1} and found.probability is not None
    ]
    details: dict[str, JsonValue] = {
        **about,
        "probabilities": {
            name: round(found.probability, 6)
            for name, found in settled.items()
            if found.probability is not None
        },
        "raw": {name: [answers.forward.raw, answers.backward.raw] for name, answers in compared.items()},
        "order": {name: _order(answers) for name, answers in compared.items()},
        "missing": {name: found.missing for name, found in settled.items() if found.missing is not None},
    }
    choices = {name: found.choice for name, found in settled.items()}
    return Opinion(None, choices, min(sure, default=None), details)


def position_bias(judged: Iterable[tuple[Hashable, Judgement]]) -> dict[Preference, PositionBias]:
    """Measure the bias of each preference from judgements that hold the answers of both orders.

    Args:
        judged: Judgements, each with what names its prompt: pairs that share a prompt are resampled together.
    """
    rows: dict[Preference, list[tuple[Hashable, list[str], list[float] | None]]] = {}
    for prompt, judgement in judged:
        order: Any = judgement.provenance.get("order") or {}
        for name in PREFERENCES:
            if (found := order.get(name)) and None not in found["places"]:
                rows.setdefault(name, []).append((prompt, found["places"], found.get("log_odds")))
    return {name: _bias(found) for name, found in rows.items()}


def _bias(rows: list[tuple[Hashable, list[str], list[float] | None]]) -> PositionBias:
    prompts = [prompt for prompt, *_ in rows]
    firsts = [sum(place == PLACES[0] for place in places) / 2 for _, places, _ in rows]
    shifts = [sum(log_odds) / 2 for *_, log_odds in rows if log_odds is not None]
    return PositionBias(
        wilson(sum(first != 0.5 for first in firsts), len(firsts)),
        bootstrap_mean(firsts, prompts, draws=_DRAWS),
        bootstrap_mean(shifts, prompts, draws=_DRAWS) if len(shifts) == len(rows) else None,
    )


def _order(compared: Compared) -> dict[str, JsonValue]:
    places: list[JsonValue] = [PLACES[a.picked[0]] if a.picked is not None else None for a in compared]
    if compared.log_odds is None:
        return {"places": places}
    return {"places": places, "log_odds": [round(value, 6) for value in compared.log_odds]}


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
