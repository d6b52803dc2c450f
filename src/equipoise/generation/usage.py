"""Tokens that answers took, as servers count them, and what they cost."""

from collections.abc import Iterable
from typing import Annotated, NamedTuple, Self

from pydantic import Field, JsonValue

from equipoise.config import Config

_Money = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Price(Config):
    """Price of a million tokens, in whatever currency the user thinks in."""

    prompt: _Money
    completion: _Money


class Usage(NamedTuple):
    """What a number of answers took."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """Answers that came without a count; their tokens are missing in the sums."""

    def plus(self, prompt_tokens: int | None, completion_tokens: int | None) -> Self:
        """Return the sums with one more answer.

        >>> Usage().plus(7, 2).plus(5, None)
        Usage(answers=2, prompt_tokens=12, completion_tokens=2, uncounted=1)
        """
        return self._replace(
            answers=self.answers + 1,
            prompt_tokens=self.prompt_tokens + (prompt_tokens or 0),
            completion_tokens=self.completion_tokens + (completion_tokens or 0),
            uncounted=self.uncounted + (prompt_tokens is None or completion_tokens is None),
        )

    def cost(self, price: Price | None) -> float | None:
        """Return what the tokens cost; None without a price.

        >>> Usage(prompt_tokens=2_000_000, completion_tokens=500_000).cost(Price(prompt=0.1, completion=0.4))
        0.4
        """
        if price is None:
            return None
        total = self.prompt_tokens * price.prompt + self.completion_tokens * price.completion
        return round(total / 1e6, 9)

    def note(self, price: Price | None) -> dict[str, JsonValue]:
        """Return the sums and the cost as they stand in a manifest."""
        return {**self._asdict(), "cost": self.cost(price)}


def together(parts: Iterable[Usage]) -> Usage:
    """Return what several numbers of answers took together.

    >>> together([Usage(1, 7, 2), Usage(2, 9, 3, 1)])
    Usage(answers=3, prompt_tokens=16, completion_tokens=5, uncounted=1)
    """
    return Usage(*(sum(column) for column in zip(Usage(), *parts, strict=True)))
