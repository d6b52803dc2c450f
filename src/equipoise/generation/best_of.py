"""The best of several draws by a reward alone: nothing is refused, and no guard is asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from equipoise.generation.replies import Answer
from equipoise.generation.sources import Asked, Draw
from equipoise.protocols import Reward, Sampling
from equipoise.records import Exchange, Message

T = TypeVar("T")
_Try = tuple[float | None, Answer]
"""A draw with its harm, which is None where it brought no answer."""


@dataclass(frozen=True)
class BestOf:
    """Takes of `tries` draws the one with the highest reward, the first of those that are level.

    Draws that brought no answer are left out; where all did, that is the answer. A greedy answer has one try:
    all others would be the same.
    """

    reward: Reward
    tries: int = 4

    def __call__(self, draw: Draw) -> Draw:
        """Return a draw that gives the best answers."""
        return partial(best_of, draw, tries=self.tries, judge=self._judged, choose=_least)

    def _judged(self, prompts: Sequence[Asked], drawn: Sequence[Sequence[Answer]]) -> list[_Try]:
        """All draws in order, each with what is least in the best one where it brought an answer."""
        flat = [(asked, answer) for asked, row in zip(prompts, drawn, strict=True) for answer in row]
        exchanges = [exchange_of(asked, answer.text) for asked, answer in flat if answer.text is not None]
        harms = iter([score.harm for score in self.reward(exchanges)] if exchanges else [])
        return [(next(harms) if answer.text is not None else None, answer) for _, answer in flat]


def best_of(
    draw: Draw,
    prompts: Sequence[Asked],
    sampling: Sampling,
    *,
    tries: int,
    judge: Callable[[Sequence[Asked], Sequence[Sequence[Answer]]], Sequence[T]],
    choose: Callable[[Sequence[T]], Answer],
) -> list[list[Answer]]:
    """Draw all tries of every sample, one where they are greedy, and choose one try of each.

    Args:
        draw: What draws.
        prompts: What is asked.
        sampling: How; `samples` is the number of answers to each prompt.
        tries: Draws for each of these.
        judge: Says of all draws together, in order, what `choose` chooses by.
        choose: Makes one answer of a sample's tries.
    """
    wanted = sampling.samples
    drawn = draw(prompts, sampling._replace(samples=wanted * (tries if sampling.temperature > 0 else 1)))
    judged = iter(judge(prompts, drawn))
    rows = [[next(judged) for _ in answers] for answers in drawn]
    return [[choose(row[k::wanted]) for k in range(wanted)] for row in rows]


def _least(tried: Sequence[_Try]) -> Answer:
    came = [(harm, answer) for harm, answer in tried if harm is not None]
    if not came:
        return tried[-1][1]  # the reason why there is none
    best = min(came, key=lambda one: one[0])[1]
    return Answer(
        best.text,
        prompt_tokens=total([answer.prompt_tokens for _, answer in came]),
        completion_tokens=total([answer.completion_tokens for _, answer in came]),
    )


def exchange_of(asked: Asked, response: str) -> Exchange:
    """Return a prompt and an answer to it as what judges and rewards take."""
    prompt = tuple(Message.model_validate(message) for message in asked.messages)
    return Exchange(
        id=asked.id,
        prompt=prompt,
        prompt_is_harmful=asked.is_harmful,
        response=response,
        provenance=dict(asked.provenance or {}),
    )


def total(counts: Sequence[int | None]) -> int | None:
    """Return what all tries took together; None where the server did not count one of them."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
