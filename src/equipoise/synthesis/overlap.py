"""How much two texts have in common, and a pool of texts that a new one must differ from."""

from collections import Counter
from collections.abc import Iterable, Sequence

from equipoise.curation.minhash import normalise

LIMIT = 0.7
"""ROUGE-L from which on a text is too like another. Wang et al. 2023, Self-Instruct, section 2.2."""


def words_of(text: str) -> list[str]:
    """Return the words of a text as they are compared: no case, no marks.

    >>> words_of("How do I bake Bread?")
    ['how', 'do', 'i', 'bake', 'bread']
    """
    kept = "".join(c if c.isalnum() or c == "'" else " " for c in normalise(text).replace("\u2019", "'"))
    return kept.split()


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the F measure of the longest common subsequence of words, 0..1. Lin 2004.

    >>> rouge_l("the cat sat down".split(), "the dog sat down".split())
    0.75
    """
    if not first or not second:
        return 0.0
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for place, other in enumerate(second, start=1):
            kept = row[place]
            row[place] = before + 1 if word == other else max(kept, row[place - 1])
            before = kept
    return 2 * row[-1] / (len(first) + len(second))


def jaccard(first: Iterable[str], second: Iterable[str]) -> float:
    """Return the share of words that two texts have in common, 0..1.

    >>> jaccard(["a", "b"], ["b", "c"])
    0.3333333333333333
    """
    a, b = set(first), set(second)
    return len(a & b) / len(a | b) if a | b else 0.0


class Pool:
    """Texts that new ones must differ from."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Hold some texts."""
        self._rows: list[tuple[list[str], Counter[str]]] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Hold one more text."""
        words = words_of(text)
        self._rows.append((words, Counter(words)))

    def is_near(self, text: str, limit: float = LIMIT, besides: str = "") -> bool:
        """Say whether a text held here, other than `besides`, has a ROUGE-L of at least the limit with it."""
        words, origin = words_of(text), words_of(besides)
        bag = Counter(words)
        for other, others in self._rows:
            if other == origin:
                continue
            # a common subsequence is no longer than the words in common, which are cheaper to count
            most = 2 * (bag & others).total()
            if most >= limit * (len(words) + len(other)) and rouge_l(words, other) >= limit:
                return True
        return False
