"""Which language a text is in, by py3langid, whose model comes with its package.

A short text says little of its language, and the languages that are possible matter more than the
text: name them where they are known. What is not sure is kept and flagged, never dropped.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

from equipoise.errors import ConfigError, near

_SURE = 0.9
"""Probability from which on a guess is trusted."""
_LETTERS = 20
"""Letters below which no guess is trusted."""


class Guess(NamedTuple):
    """The likeliest language (ISO 639-1), its probability among the possible, and whether to trust it."""

    language: str
    probability: float
    is_sure: bool


@dataclass(frozen=True)
class OtherLanguage:
    """A text that is surely in none of the languages to keep; short and doubtful texts pass.

    >>> OtherLanguage()("Bitte erkläre mir, warum das Wetter in den Bergen so schnell umschlägt.")
    'language:de'
    """

    keep: tuple[str, ...] = ("en",)
    among: tuple[str, ...] = ("en", "de", "es", "fr", "it", "nl", "pt", "ru", "zh", "ja", "ko", "ar", "hi")
    """The languages that are possible, those to keep among them."""
    sure: float = _SURE

    def __call__(self, text: str) -> str | None:
        """Return `language:xx` or None."""
        guess = self.guess(text)
        return f"language:{guess.language}" if guess.is_sure and guess.language not in self.keep else None

    def flag(self, text: str) -> str | None:
        """Return `language_unsure` where the text passes only because its language is in doubt."""
        return None if self.guess(text).is_sure else "language_unsure"

    def guess(self, text: str) -> Guess:
        """Return the likeliest of the possible languages."""
        return identify(text, tuple(sorted({*self.keep, *self.among})), sure=self.sure)


def identify(text: str, among: Sequence[str], *, sure: float = _SURE) -> Guess:
    """Return the likeliest language of a text among some.

    Raises:
        ConfigError: a language that is not known.
    """
    language, probability = _identifier(tuple(among)).classify(text)
    letters = sum(character.isalpha() for character in text)
    # one character of Chinese, Japanese or Korean says as much as several letters
    wide = sum(character > "\u2e80" for character in text)
    is_sure = probability >= sure and letters + 4 * wide >= _LETTERS
    return Guess(language, float(probability), is_sure)


@lru_cache(maxsize=8)
def _identifier(among: tuple[str, ...]) -> LanguageIdentifier:
    known = _model().labels
    for language in among:
        if language not in known:
            what = f"no language '{language}'{near(language, known)}"
            raise ConfigError(f"language: {what}; expected codes of ISO 639, such as en or zh")
    identifier = copy(_model())  # the languages are set on the copy; the tables are shared
    identifier.set_languages(among)
    return identifier


@lru_cache(maxsize=1)
def _model() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
