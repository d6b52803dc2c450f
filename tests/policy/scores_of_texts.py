"""Reward and cost of a text by its letters, for runs that are started as commands."""

from collections.abc import Sequence

from equipoise.records import Exchange


def reward(exchanges: Sequence[Exchange]) -> list[float]:
    """Share of letters from the first half of the alphabet."""
    return [sum(c in "abcdefghijklm" for c in e.response) / (1 + len(e.response)) for e in exchanges]


def brevity(exchanges: Sequence[Exchange]) -> list[float]:
    """Fewer letters are better."""
    return [-float(len(e.response)) for e in exchanges]


def cost(exchanges: Sequence[Exchange]) -> list[float]:
    """How many letters e, less one."""
    return [e.response.count("e") - 1.0 for e in exchanges]
