"""How much a text repeats itself, of a policy while it learns and of one that is evaluated."""


def repetition(text: str) -> float:
    """Share of repeated word 3-grams, 1 - distinct / total, case ignored; 0 under three words.

    >>> repetition("go on and on and on and on")
    0.5
    >>> repetition("too short")
    0.0
    """
    words = text.lower().split()
    grams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
