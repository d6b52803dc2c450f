"""Answers that a guard lets through: the best of several draws, or a new draw for each that it refuses.

Every draw has its own random numbers, by prompt, sample and try, so that an answer does not depend on what
else is in the batch, and the first try is the answer that an unguarded run gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from equipoise.errors import ModelError
from equipoise.generation.best_of import best_of, exchange_of, total
from equipoise.generation.replies import Answer
from equipoise.generation.sources import Asked, Draw
from equipoise.moderation.streaming import is_sound
from equipoise.protocols import Generator, Judge, Messages, Reward, Sampling, Verdict
from equipoise.records import Exchange

REFUSAL_TEXT = "I'm sorry, but I can't help with that."

Method = Literal["best_of_n", "reject"]


class Try(NamedTuple):
    """One draw, and what the guard says of it; a draw that brought no answer has no verdict."""

    answer: Answer
    verdict: Verdict | None
    harm: float
    """What is least in the best draw: the reward's polarity turned, or P(unsafe)."""


@dataclass(frozen=True)
class Guarding:
    """How answers are drawn and chosen; calling it puts the guard behind a `Draw`.

    best_of_n draws all tries and takes, of the safe ones, the one with the highest reward, or the least
    P(unsafe) where there is no reward. reject takes the first safe draw. A greedy answer has one try: all
    others would be the same. Where no try is safe the answer is `refusal_text`.
    """

    judge: Judge
    method: Method = "best_of_n"
    tries: int = 4
    refusal_text: str = REFUSAL_TEXT
    reward: Reward | None = None

    def __call__(self, draw: Draw) -> Draw:
        """Return a draw that gives answers the guard lets through; `Answer.guard` says what happened."""
        if self.method == "reject":
            return partial(self._reject, draw)
        return partial(best_of, draw, tries=self.tries, judge=self._judged, choose=self._choose)

    def _reject(self, draw: Draw, prompts: Sequence[Asked], sampling: Sampling) -> list[list[Answer]]:
        places = [(p, k) for p in range(len(prompts)) for k in range(sampling.samples)]
        tried: dict[tuple[int, int], list[Try]] = {place: [] for place in places}
        for number in range(self.tries if sampling.temperature > 0 else 1):
            left = [place for place in places if not any(map(_is_safe, tried[place]))]
            if not left:
                break
            if number == 0:
                asked, drawn = prompts, draw(prompts, sampling)
            else:  # under names of their own: a draw belongs to (seed, name, sample)
                asked = [prompts[p]._replace(id=f"{prompts[p].id}\0{k}\0{number}") for p, k in left]
                drawn = draw(asked, sampling._replace(samples=1))
            for place, one in zip(left, self._judged(asked, drawn), strict=True):
                tried[place].append(one)
        chosen = iter([self._choose(tried[place]) for place in places])
        return [[next(chosen) for _ in range(sampling.samples)] for _ in prompts]

    def _judged(self, prompts: Sequence[Asked], drawn: Sequence[Sequence[Answer]]) -> list[Try]:
        """Judge all draws together, and reward the safe ones; in order."""
        flat = [(asked, answer) for asked, row in zip(prompts, drawn, strict=True) for answer in row]
        exchanges = [exchange_of(asked, answer.text) for asked, answer in flat if answer.text is not None]
        verdicts = self.judge(exchanges) if exchanges else []
        if not all(map(is_sound, verdicts)):
            raise ModelError("the guard's answer is not finite; a text without a judgement is never safe")
        found = iter(zip(verdicts, self._harms(exchanges, verdicts), strict=True))
        return [
            Try(answer, None, 0.0) if answer.text is None else Try(answer, *next(found)) for _, answer in flat
        ]

    def _harms(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[float]:
        if self.reward is None:
            return [verdict.unsafe_probability for verdict in verdicts]
        safe = [e for e, verdict in zip(exchanges, verdicts, strict=True) if verdict.is_safe]
        scores = iter(self.reward(safe) if safe else [])
        return [next(scores).harm if v.is_safe else v.unsafe_probability for v in verdicts]

    def _choose(self, tries: Sequence[Try]) -> Answer:
        came = [one for one in tries if one.verdict is not None]
        if not came:
            return tries[-1].answer  # the reason why there is none
        safe = [one for one in came if _is_safe(one)]
        best = min(safe or came, key=lambda one: one.harm)
        assert best.verdict is not None
        found = {
            "tries": len(came),
            "unsafe_probability": round(best.verdict.unsafe_probability, 6),
            "outcome": "accepted" if safe else "refused",
        }
        return Answer(
            best.answer.text if safe else self.refusal_text,
            prompt_tokens=total([one.answer.prompt_tokens for one in came]),
            completion_tokens=total([one.answer.completion_tokens for one in came]),
            guard=found,
        )


def guarded(generate: Generator, guarding: Guarding) -> Generator:
    """Return a generator whose responses the guard lets through, or that refuses."""

    def draw(asked: Sequence[Asked], sampling: Sampling) -> list[list[Answer]]:
        texts = generate([one.messages for one in asked], sampling, [one.id for one in asked])
        return [[Answer(text) for text in row] for row in texts]

    choose = guarding(draw)

    def answer(
        prompts: Sequence[Messages], sampling: Sampling, ids: Sequence[str] | None = None
    ) -> list[list[str]]:
        names = ids if ids is not None else [str(i) for i in range(len(prompts))]
        asked = [Asked(name, prompt) for name, prompt in zip(names, prompts, strict=True)]
        return [[one.text or "" for one in row] for row in choose(asked, sampling)]

    return answer


def _is_safe(one: Try) -> bool:
    return one.verdict is not None and one.verdict.is_safe
