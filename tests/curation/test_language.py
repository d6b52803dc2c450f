"""Languages: sure guesses drop a text, doubtful ones flag it."""

import pickle
import socket

import pytest

from equipoise.curation.language import OtherLanguage, identify
from equipoise.errors import ConfigError

LONG = {
    "en": "Please explain how the tides work and why there are two of them a day.",
    "de": "Bitte erkläre mir, warum das Wetter in den Bergen so schnell umschlägt.",
    "fr": "Pouvez-vous m'expliquer pourquoi le pain doit reposer avant la cuisson ?",
    "es": "¿Por qué las golondrinas se van en otoño y vuelven cada primavera?",
    "zh": "请解释一下潮汐是怎么形成的\uff0c为什么每天有两次。",
}


@pytest.mark.parametrize("language", LONG)
def test_a_long_text_is_known(language: str) -> None:
    guess = identify(LONG[language], list(LONG))
    assert guess.language == language
    assert guess.is_sure
    check = OtherLanguage(keep=("en",), among=tuple(LONG))
    assert check(LONG[language]) == (None if language == "en" else f"language:{language}")
    assert check.flag(LONG[language]) is None


@pytest.mark.parametrize("text", ["Hi", "", "12 + 30 = 42", "Was ist das?", "Ok, taxi!"])
def test_a_short_text_is_kept_and_flagged(text: str) -> None:
    check = OtherLanguage()
    assert check(text) is None
    assert check.flag(text) == "language_unsure"


def test_several_languages_may_stay_and_only_the_possible_ones_are_guessed() -> None:
    assert OtherLanguage(keep=("en", "de"))(LONG["de"]) is None
    assert identify(LONG["de"], ["en", "fr"]).language in {"en", "fr"}


def test_probabilities_are_among_the_possible_languages() -> None:
    assert identify(LONG["de"], ["de"]).probability == pytest.approx(1.0)
    assert identify("", ["de", "en", "fr", "es"]).probability == pytest.approx(0.25)


def test_an_unknown_language_is_the_users_mistake() -> None:
    with pytest.raises(ConfigError, match=r"^language: no language 'dee' \(did you mean 'de'"):
        identify(LONG["en"], ["en", "dee"])


def test_no_network_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert identify(LONG["fr"], ["en", "fr", "pt"]).language == "fr"


def test_the_filter_is_a_value() -> None:
    check = OtherLanguage(keep=("de",))
    assert pickle.loads(pickle.dumps(check)) == check
