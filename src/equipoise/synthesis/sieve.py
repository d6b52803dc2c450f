"""What is left of the texts that a model wrote: clean ones that differ and that the judge agrees with."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from equipoise.curation.filters import DoubleQuestion, first_reasons
from equipoise.protocols import Verdict
from equipoise.synthesis.cells import Cell
from equipoise.synthesis.overlap import Pool
from equipoise.synthesis.settings import Tools
from equipoise.synthesis.texts import holds, odd, with_likelihood


class Candidate(NamedTuple):
    """A text on its way to a prompt."""

    text: str | None
    """None where the model wrote no whole sentence."""
    cell: Cell
    origin: dict[str, Any]
    """Goes to the record's provenance."""
    without: tuple[str, ...] = ()
    """Words that it may not hold."""
    besides: str = ""
    """A text that it holds on purpose, and so may be near to."""
    is_benign: bool = False
    """Meant as a harmless look-alike."""
    verdict: Verdict | None = None
    quality: float = 0.0
    """More is better; mean log-likelihood in nats per token where there is a language model."""


class Sieve:
    """Drops candidates, cheapest test first; later tests do not see what earlier ones dropped."""

    def __init__(self, tools: Tools, pool: Pool) -> None:
        """Hold the models, and the pool of texts that candidates must differ from."""
        self.tools, self.pool = tools, pool
        self.filters = (DoubleQuestion(), *with_likelihood(tools.improbable))

    def __call__(self, candidates: Sequence[Candidate], dropped: Counter[str]) -> list[Candidate]:
        """Return what is left, in order, with verdict and quality; reasons are counted in `dropped`."""
        left = list(self._clean(candidates, dropped))
        texts = [str(c.text) for c in left]
        reasons = first_reasons(texts, self.filters)
        kept = [c for c, reason in zip(left, reasons, strict=True) if reason is None]
        dropped.update(reason for reason in reasons if reason is not None)
        return list(self._judged(kept, dropped))

    def _clean(self, candidates: Sequence[Candidate], dropped: Counter[str]) -> Iterator[Candidate]:
        seen: set[str] = set()
        for candidate in candidates:
            text = candidate.text
            reason = "unfinished" if text is None else odd(text)
            if text is not None and reason is None:
                if text in seen:
                    reason = "again"
                elif holds(text, candidate.without):
                    reason = "forbidden_word"
                elif self.pool.is_near(text, besides=candidate.besides):
                    reason = "near_another"
                seen.add(text)
            if reason is None:
                yield candidate
            else:
                dropped[reason] += 1

    def _judged(self, candidates: Sequence[Candidate], dropped: Counter[str]) -> Iterator[Candidate]:
        texts = [str(c.text) for c in candidates]
        verdicts: Sequence[Verdict | None] = [None] * len(texts)
        if self.tools.judge is not None and texts:
            verdicts = self.tools.judge(texts)
        values = self.tools.likelihood(texts) if self.tools.likelihood and texts else [0.0] * len(texts)
        for candidate, verdict, value in zip(candidates, verdicts, values, strict=True):
            reason = _disagrees(candidate, verdict)
            if reason is None:
                yield candidate._replace(verdict=verdict, quality=value)
            else:
                dropped[reason] += 1


def _disagrees(candidate: Candidate, verdict: Verdict | None) -> str | None:
    """Return why a verdict is not what the candidate was meant to be, or None."""
    if verdict is None:
        return None
    if candidate.is_benign:
        return None if verdict.is_safe else "judged_harmful"
    if verdict.is_safe:
        return "judged_safe"
    return None if candidate.cell.category in verdict.categories else "judged_other_category"
