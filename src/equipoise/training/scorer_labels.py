"""Pairs as labels of a scorer's losses: what is preferred, what is unsafe, and how much more severe.

-1 stands for what nobody said. What becomes of pairs that contradict themselves or one another is for
`data.resolve` to do.

Shapes: B pairs, C categories.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from equipoise.data.check import Finding, FoundError, ranked_safer, severity_of
from equipoise.data.identity import AnyRecord
from equipoise.data.io import Placed, read_placed
from equipoise.data.opposite import opposite_preferences
from equipoise.data.resolve import OnContradiction, Resolved, resolve
from equipoise.errors import DataError
from equipoise.records import Answer, Pair
from equipoise.taxonomy import Taxonomy, load_taxonomy


class Harm(NamedTuple):
    """What is known of the harm of both answers, each [B], or [B, C] of categories."""

    safer: Tensor
    """0 or 1, -1 where it is not known or a tie."""
    unsafe_0: Tensor
    """1 unsafe, 0 safe, -1 not known."""
    unsafe_1: Tensor
    severity_gap: Tensor
    """Severity of answer 1 less that of answer 0; 0 where one of both is not known."""


class PairLabels(NamedTuple):
    """Labels of pairs."""

    better: Tensor
    """[B] 0 or 1, -1 where it is not known or a tie."""
    harm: Harm
    categories: Harm
    """C is 0 where no head is to learn them."""

    def pick(self, rows: Tensor) -> "PairLabels":
        """Return the labels of some pairs."""
        harm, categories = (Harm(*(tensor[rows] for tensor in part)) for part in self[1:])
        return PairLabels(self.better[rows], harm, categories)

    def to(self, device: torch.device) -> "PairLabels":
        """Return the labels on another device."""
        harm, categories = (Harm(*(tensor.to(device) for tensor in part)) for part in self[1:])
        return PairLabels(self.better.to(device), harm, categories)


def read_pairs(paths: Sequence[Path], on_contradiction: OnContradiction) -> tuple[list[Pair], Resolved]:
    """Read pairs and treat those that contradict themselves or one another.

    Returns:
        The pairs to train on, and the places of those that were dropped, flipped or kept all the same.

    Raises:
        FoundError: There are such pairs, and the choice is `error`.
    """
    placed = [one for path in paths for one in read_placed(path, Pair)]
    findings = [*_against_the_labels(placed), *opposite_preferences(placed)]
    log = Resolved([], [], [])
    if findings and on_contradiction == "error":
        raise FoundError("not trained (`on_contradiction` drop, flip or keep goes on)", findings)
    kept: list[AnyRecord] = list(resolve(placed, findings, on_contradiction, log))
    return [pair for pair in kept if isinstance(pair, Pair)], log


def _against_the_labels(placed: Sequence[Placed[Pair]]) -> Iterator[Finding]:
    for path, line, pair in placed:
        expected = ranked_safer(pair)
        if expected is not None and pair.safer == 1 - expected:  # a tie only trains nothing
            message = f"a safe answer ranks above an unsafe one: expected {expected}, got {pair.safer}"
            yield Finding(path, line, pair.id, "safer", "safer", message)


def pair_labels(
    pairs: Sequence[Pair], *, alone: int = 0, categories: bool = False, taxonomies: Collection[str] = ()
) -> tuple[PairLabels, tuple[Literal["reward", "cost"], ...], Taxonomy | None]:
    """Turn pairs into labels, and say which heads they train.

    Args:
        pairs: Whose labels.
        alone: Number of them at the end whose answers nothing compares.
        categories: Whether the categories are wanted too; their taxonomy comes with them.
        taxonomies: Of records that stand alone, beside those of the pairs.

    Raises:
        DataError: No pair has a label, or categories are wanted and there are none, or of two taxonomies.
    """
    better = torch.tensor([_choice(pair.better) for pair in pairs], dtype=torch.long)
    compared = [place < len(pairs) - alone for place in range(len(pairs))]
    rows = zip(pairs, compared, strict=True)
    harm = _harm([[_as_compared(_overall(pair), is_so)] for pair, is_so in rows], 1)
    labels = PairLabels(better, Harm(*(tensor[:, 0] for tensor in harm)), _harm([[] for _ in pairs], 0))
    taxonomy = _taxonomy_of(pairs, taxonomies) if categories else None
    if taxonomy is not None:
        names = taxonomy.names
        found = _harm(
            [
                [_as_compared(_of_category(pair, name), is_so) for name in names]
                for pair, is_so in zip(pairs, compared, strict=True)
            ],
            len(names),
        )
        if not ((found.unsafe_0 == 1) | (found.unsafe_1 == 1)).any():
            raise DataError("category_weight: no answer has a category; expected one at least, or 0")
        labels = labels._replace(categories=found)
    has_reward = bool((better >= 0).any())
    has_cost = any(bool((tensor >= 0).any()) for tensor in labels.harm[:3])
    if not has_reward and not has_cost:
        raise DataError("no pair or exchange has a label; expected better, safer or is_safe")
    trained: tuple[Literal["reward", "cost"], ...] = (
        *(("reward",) if has_reward else ()),
        *(("cost",) if has_cost else ()),
    )
    return labels, trained, taxonomy


_Row = tuple[int, int, int, int]
"""As the fields of `Harm`."""


def _harm(rows: Sequence[Sequence[_Row]], width: int) -> Harm:
    return Harm(*torch.tensor(rows, dtype=torch.long).reshape(len(rows), width, 4).unbind(-1))


def _as_compared(row: _Row, is_compared: bool) -> _Row:
    """A row's labels, without what they say of one answer beside the other where nothing compares them."""
    return row if is_compared else (-1, row[1], row[2], 0)


def _overall(pair: Pair) -> _Row:
    unsafe = [-1 if answer.is_safe is None else int(not answer.is_safe) for answer in pair.answers]
    gap = _gap([severity_of(answer) for answer in pair.answers])
    return _choice(pair.safer), unsafe[0], unsafe[1], gap


def _of_category(pair: Pair, name: str) -> _Row:
    first, second = flags = [_flag(answer, name) for answer in pair.answers]
    levels = [_grade(answer, name, flag) for answer, flag in zip(pair.answers, flags, strict=True)]
    gap = _gap(levels)
    if -1 in flags:
        safer = -1
    elif first != second:
        safer = 0 if first < second else 1
    else:
        safer = -1 if not gap else int(gap < 0)
    return safer, first, second, gap


def _flag(answer: Answer, name: str) -> int:
    """Whether an answer is of a category: 1, 0, or -1 not known."""
    grade = (answer.category_severity or {}).get(name)
    if name in (answer.categories or ()):
        return 1
    if answer.is_safe or (answer.categories is None and grade == 0):
        return 0
    if answer.categories is None:
        return -1 if grade is None else 1
    return 0 if answer.rated is None or name in answer.rated else -1


def _grade(answer: Answer, name: str, flag: int) -> int | None:
    """Severity of one category; that of the whole answer where it is of this category only."""
    if flag < 1:
        return None if flag else 0
    alone = answer.severity if answer.categories == frozenset({name}) else None
    return (answer.category_severity or {}).get(name, alone)


def _gap(levels: Sequence[int | None]) -> int:
    first, second = levels
    return 0 if first is None or second is None else second - first


def _taxonomy_of(pairs: Sequence[Pair], taxonomies: Collection[str]) -> Taxonomy:
    names = sorted({*taxonomies, *(pair.taxonomy for pair in pairs)})
    if len(names) != 1:
        raise DataError(f"category_weight: records of taxonomies {', '.join(names) or 'none'}; expected one")
    taxonomy = load_taxonomy(names[0])
    for category in {name for pair in pairs for answer in pair.answers for name in answer.categories or ()}:
        taxonomy.index(category)
    return taxonomy


def _choice(value: object) -> int:
    return value if isinstance(value, int) else -1
