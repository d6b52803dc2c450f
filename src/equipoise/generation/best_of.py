"""The best of several draws by a reward alone: nothing is refused, and no guard is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from equipoise.generation.replies import Answer
from equipoise.generation.sources import Asked, Draw
from equipoise.protocols import Reward, Sampling
from equipoise.records import Exchange, Message


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
        return partial(self._best, draw)

    def _best(self, draw: Draw, prompts: Sequence[Asked], sampling: Sampling) -> list[list[Answer]]:
        wanted = sampling.samples
        tries = self.tries if sampling.temperature > 0 else 1
        drawn = draw(prompts, sampling._replace(samples=wanted * tries))
        harms = iter(self._harms(prompts, drawn))
        rows = [
            [(next(harms) if one.text is not None else None, one) for one in answers] for answers in drawn
        ]
        return [[_least(row[k::wanted]) for k in range(wanted)] for row in rows]

    def _harms(self, prompts: Sequence[Asked], drawn: Sequence[Sequence[Answer]]) -> list[float]:
        """What is least in the best draw, of each draw that brought an answer."""
        exchanges = [
            exchange_of(asked, answer.text)
            for asked, answers in zip(prompts, drawn, strict=True)
            for answer in answers
            if answer.text is not None
        ]
        return [score.harm for score in self.reward(exchanges)] if exchanges else []


def _least(tried: Sequence[tuple[float | None, Answer]]) -> Answer:
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
    return Exchange(id=asked.id, prompt=prompt, prompt_is_harmful=asked.is_harmful, response=response)


def total(counts: Sequence[int | None]) -> int | None:
    """Return what all tries took together; None where the server did not count one of them."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
