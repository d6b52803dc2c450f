"""One answer to a question from the answers of several raters, and what it says of the raters."""

from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple

import numpy as np

from equipoise.annotation.latent import Latent, fit, shares
from equipoise.annotation.rater_models import FullConfusion, Spammer, Thresholds
from equipoise.annotation.raters import Panel, Votes, votes

Method = Literal["dawid-skene", "mace", "majority"]

_EQUAL = 1e-9
"""Probabilities that differ by less are the same."""

_FITS: dict[str, Callable[[Votes], Latent]] = {
    "dawid-skene": lambda table: fit(table, FullConfusion()),
    "ordinal": lambda table: fit(table, Thresholds()),
    "mace": lambda table: fit(table, Spammer(), uniform_prior=True),
}


class Settled(NamedTuple):
    """What the raters say together of one subject."""

    value: Hashable | None
    """None where they are undecided: equal votes, by majority."""
    posterior: tuple[float, ...]
    """Probability of each answer; by majority its share of the votes."""
    probability: float
    """That of `value`, or the highest."""
    raters: int
    agreeing: int
    seen: frozenset[Hashable]
    """The answers that were given."""


class Question(NamedTuple):
    """All subjects of one question."""

    name: str
    votes: Votes
    latent: Latent | None
    """None by majority."""
    answers: dict[str, Settled]

    def rater(self, name: str) -> dict[str, Any]:
        """Return what is known of a rater: answers, share that agrees, confusion [truth][answer]."""
        index = self.votes.raters.index(name)
        mine = self.votes.rater == index
        settled = [self.answers[self.votes.items[i]].value for i in self.votes.item[mine]]
        given = [self.votes.values[v] for v in self.votes.value[mine]]
        found: dict[str, Any] = {"answers": len(given)}
        if given:
            found["agrees"] = sum(a == b for a, b in zip(settled, given, strict=True)) / len(given)
        if self.latent is not None:
            raters = self.latent.raters
            found["confusion"] = np.round(raters.confusion[index], 4).tolist()
            named = {key: table for key, table in raters.parameters.items() if key != "raw"}
            found |= {key: np.round(table[index], 4).tolist() for key, table in named.items()}
        return found


def settle(panel: Panel, question: str, method: Method = "dawid-skene") -> Question:
    """Settle a question for every subject that anybody answered.

    Severity has thresholds for each rater under `dawid-skene`. A single answer is taken as it is; its
    probability says how far the model trusts it.
    """
    table = votes(panel, question)
    found = shares(table)
    latent = None
    if method != "majority":
        latent = _FITS["ordinal" if question == "severity" and method == "dawid-skene" else method](table)
    posterior = found if latent is None else latent.posterior
    cast = np.bincount(table.item, minlength=len(table.items))  # votes of each item
    is_best = np.abs(posterior - posterior.max(axis=1, keepdims=True)) < _EQUAL
    is_tie = (is_best.sum(axis=1) > 1) & (cast > 1)
    best = np.where(cast == 1, found.argmax(axis=1), posterior.argmax(axis=1))
    seen = [
        frozenset(v for v, part in zip(table.values, row, strict=True) if part > 0) for row in found.tolist()
    ]
    answers = {
        item: Settled(
            None if is_tie[i] else table.values[best[i]],
            tuple(posterior[i].tolist()),
            float(posterior[i, best[i]]),
            int(cast[i]),
            round(float(found[i, best[i]]) * int(cast[i])),
            seen[i],
        )
        for i, item in enumerate(table.items)
    }
    return Question(question, table, latent, answers)
