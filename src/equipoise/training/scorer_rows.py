"""What a scorer learns from, in rows of two answers: those of a pair, or two that stand alone.

Answers that stand alone share a row so that all rows are alike. Nothing compares them: each trains the sign
of its own cost. Two answers to one prompt go together where there are two; what is left goes with what is
left of another prompt. Then all rows of both prompts are one group, so that rows that are held out share no
prompt with others.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from equipoise.data.io import read_records
from equipoise.data.splits import normalise_prompt
from equipoise.errors import DataError
from equipoise.models.features import TextPair
from equipoise.progress import say
from equipoise.records import Answer, Exchange, Pair, text_of
from equipoise.training.pair_order import told, unusable


class ScorerRows(NamedTuple):
    """R rows of two answers each."""

    pairs: list[Pair]
    """Of each row; what stands alone is at the end, in pairs whose answers nothing compares."""
    alone: int
    """Number of rows at the end of answers that stand alone."""
    texts: list[tuple[TextPair, TextPair]]
    """Prompt and response of both answers."""
    groups: list[str]
    """Rows of one group share a prompt, by themselves or by way of others."""


def read_single(paths: Sequence[Path]) -> list[Exchange]:
    """Read exchanges; one that does not say whether it is safe raises DataError."""
    found = [exchange for path in paths for exchange in read_records(path, Exchange)]
    unknown = [exchange.id for exchange in found if exchange.is_safe is None]
    if unknown:
        got = f"{len(unknown)} of {len(found)} have no is_safe, first {unknown[0]}"
        raise DataError(f"exchanges: {got}; expected one of each")
    return found


def with_texts(
    pairs: Sequence[Pair], exchanges: Sequence[Exchange]
) -> tuple[list[Pair], list[Exchange], Counter[str]]:
    """Leave out what has an empty response, and pairs of equal ones; say and count why."""
    why = [unusable([answer.response for answer in pair.answers]) for pair in pairs]
    why_single = [unusable([exchange.response]) for exchange in exchanges]
    kept = [pair for pair, reason in zip(pairs, why, strict=True) if reason is None]
    single = [exchange for exchange, reason in zip(exchanges, why_single, strict=True) if reason is None]
    left_out = Counter(reason for reason in (*why, *why_single) if reason is not None)
    if not kept and not single and left_out:
        raise DataError(f"pairs, exchanges: none is left to train on ({told(left_out)})")
    if left_out:
        say(f"left out: {told(left_out)}")
    return kept, single, left_out


def scorer_rows(pairs: Sequence[Pair], exchanges: Sequence[Exchange] = ()) -> ScorerRows:
    """Put pairs, and exchanges two by two, into rows."""
    couples, joined = _couples(exchanges)
    texts = [
        tuple(TextPair(text_of(pair.prompt), answer.response) for answer in pair.answers) for pair in pairs
    ]
    texts += [tuple(TextPair(text_of(e.prompt), e.response) for e in couple) for couple in couples]
    names = [normalise_prompt(text[0].prompt) for text in texts]
    groups = [joined.get(name, name) for name in names]
    rows = [*pairs, *(_as_pair(*couple) for couple in couples)]
    return ScorerRows(rows, len(couples), texts, groups)  # type: ignore[arg-type]


def _couples(exchanges: Sequence[Exchange]) -> tuple[list[tuple[Exchange, Exchange]], dict[str, str]]:
    """Two exchanges to a row, and prompts of which one answer was left by the other prompt of its row.

    An exchange that is left in the end shares its row with its own text, without a label.
    """
    by_prompt: dict[str, list[Exchange]] = defaultdict(list)
    for exchange in exchanges:
        by_prompt[normalise_prompt(text_of(exchange.prompt))].append(exchange)
    found = [
        couple
        for answers in by_prompt.values()
        for couple in zip(answers[0:-1:2], answers[1::2], strict=True)
    ]
    left = {name: answers[-1] for name, answers in by_prompt.items() if len(answers) % 2}
    names = list(left)
    joined = dict(zip(names[1::2], names[0:-1:2], strict=True))
    found += [(left[one], left[other]) for other, one in joined.items()]
    if len(left) % 2:
        last = left[names[-1]]
        found.append((last, last.model_copy(update=dict.fromkeys(_LABELS))))
    return found, joined


_LABELS = [name for name in Answer.model_fields if name != "response"]


def _as_pair(first: Exchange, second: Exchange) -> Pair:
    one, other = (
        Answer.model_construct(**{name: getattr(e, name) for name in Answer.model_fields})
        for e in (first, second)
    )
    return Pair.model_construct(
        id=f"{first.id}+{second.id}",
        prompt=first.prompt,
        answers=(one, other),
        taxonomy=first.taxonomy,
        source=first.source,
        licence=first.licence,
    )
