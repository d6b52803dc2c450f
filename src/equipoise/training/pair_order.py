"""Which answers of a pair a policy learns from, in which order, and what the pair counts for.

Nothing is left out silently: every pair that is not trained on is counted by its reason.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field

from equipoise.config import Config
from equipoise.data.check import ranked_safer, severity_of
from equipoise.errors import DataError
from equipoise.models.layout import Row
from equipoise.objectives.preference import safe_dpo_order
from equipoise.records import Conversation, Pair
from equipoise.training.policy_rows import make_row


class PairSettings(Config):
    """Which pairs are trained on, and how."""

    objective: str = "safe_dpo"
    preference: Literal["better", "safer", "overall", "is_safe"] = "better"
    """Which label says who is chosen; SafeDPO reorders it by safety. `is_safe`, for KTO alone, makes
    every safe answer desirable and every unsafe one undesirable, each by itself."""
    both_unsafe_weight: float | None = Field(default=None, ge=0)
    """What a pair of two unsafe answers counts for: 0 drops it, 1 keeps it. None leaves it to the
    objective: SafeDPO drops it, the others keep it. Where SafeDPO keeps it, `safer` is chosen."""
    severity_weight: float = Field(default=0.0, ge=0)
    """How much more a pair counts for each level by which its rejected answer is more severe."""
    max_pairs: int | None = Field(default=None, ge=1)
    """Take only this many pairs, in a seeded order."""
    max_tokens: int = Field(default=512, ge=8)
    """Pairs with more tokens (prompt and both responses) are left out and counted; none is cut."""

    @property
    def both_unsafe(self) -> float:
        """What a pair of two unsafe answers counts for under this objective."""
        if self.both_unsafe_weight is None:
            return 0.0 if self.objective == "safe_dpo" else 1.0
        return self.both_unsafe_weight


class OrderedPair(NamedTuple):
    """A pair as the loss sees it."""

    row: Row
    """Responses are [chosen, rejected]."""
    chosen_unsafe: bool
    rejected_unsafe: bool
    severity_gap: int | None
    """Levels by which the rejected answer is more severe; None where one of them is not known."""
    weight: float
    prompt: Conversation = ""
    texts: tuple[str, str] = ("", "")
    """Chosen and rejected, for who reads text and not tokens."""


class LabelledRow(NamedTuple):
    """Answers to one prompt, each wanted or not by itself."""

    row: Row
    desirable: tuple[bool, ...]
    """Of each response of the row."""
    weight: float


class _Picked(NamedTuple):
    pair: Pair
    order: tuple[int, ...]
    row: Row


def order_pairs(
    tokenizer: Any, pairs: Sequence[Pair], settings: PairSettings, seed: int
) -> tuple[list[OrderedPair], Counter[str]]:
    """Choose, order and weigh pairs; what is left out is counted by its reason. Weights have mean 1.

    Raises:
        DataError: The preference contradicts itself, or severities are asked for and none is known.
    """

    def pick(pair: Pair) -> tuple[int, ...] | str:
        return _chosen_first(pair, settings)

    picked, left_out = _pick(tokenizer, pairs, settings, seed, pick)
    found = []
    for pair, order, row in picked:
        chosen, rejected = (pair.answers[index] for index in order)
        levels = (severity_of(chosen), severity_of(rejected))
        gap = None if levels[0] is None or levels[1] is None else levels[1] - levels[0]
        weight = settings.both_unsafe if _unsafe(pair) == [True, True] else 1.0
        weight *= 1 + settings.severity_weight * max(gap or 0, 0)
        unsafe = (chosen.is_safe is False, rejected.is_safe is False)
        texts = (chosen.response, rejected.response)
        found.append(OrderedPair(row, *unsafe, gap, weight, pair.prompt, texts))
    if settings.severity_weight and found and all(one.severity_gap is None for one in found):
        raise no_severity("severity_weight")
    mean = sum(one.weight for one in found) / max(len(found), 1)
    return [one._replace(weight=one.weight / mean) for one in found], left_out


def label_answers(
    tokenizer: Any, pairs: Sequence[Pair], settings: PairSettings, seed: int
) -> tuple[list[LabelledRow], Counter[str]]:
    """Rows for an unpaired objective: chosen and rejected, or with `is_safe` every answer by its label."""
    if settings.preference != "is_safe":
        ordered, left_out = order_pairs(tokenizer, pairs, settings, seed)
        return [LabelledRow(one.row, (True, False), one.weight) for one in ordered], left_out

    def pick(pair: Pair) -> tuple[int, ...] | str:
        known = tuple(index for index in (0, 1) if pair.answers[index].is_safe is not None)
        return known or "no safety label"

    picked, left_out = _pick(tokenizer, pairs, settings, seed, pick)
    return [
        LabelledRow(row, tuple(pair.answers[index].is_safe is True for index in order), 1.0)
        for pair, order, row in picked
    ], left_out


def no_severity(where: str) -> DataError:
    """Return the error of a setting that needs severities where there are none."""
    return DataError(f"{where}: no pair has the severity of both answers; expected one at least")


def unusable(texts: Sequence[str]) -> str | None:
    """Return why nothing is to be learned from responses to one prompt, one or two; None where there is."""
    if not all(text.strip() for text in texts):
        return "with an empty response"
    return "with equal responses" if len(texts) == 2 and texts[0] == texts[1] else None


def told(left_out: Counter[str]) -> str:
    """Reasons and counts as one phrase.

    >>> told(Counter({"equal responses": 2, "both unsafe": 1}))
    '2 equal responses, 1 both unsafe'
    """
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "the files are empty"


def _pick(
    tokenizer: Any,
    pairs: Sequence[Pair],
    settings: PairSettings,
    seed: int,
    pick: Callable[[Pair], tuple[int, ...] | str],
) -> tuple[list[_Picked], Counter[str]]:
    """Go through pairs in a seeded order; `pick` says which answers are taken, or why none is."""
    kept: list[_Picked] = []
    left_out: Counter[str] = Counter()
    for index in torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist():
        if settings.max_pairs is not None and len(kept) == settings.max_pairs:
            break
        pair = pairs[index]
        order = pick(pair)
        texts = [pair.answers[k].response for k in order] if isinstance(order, tuple) else []
        if isinstance(order, str):
            left_out[order] += 1
        elif reason := unusable(texts):
            left_out[reason] += 1
        else:
            row = make_row(tokenizer, pair.prompt, texts)
            if row.length > settings.max_tokens:
                left_out[f"over {settings.max_tokens} tokens"] += 1
            else:
                kept.append(_Picked(pair, order, row))
    return kept, left_out


def _chosen_first(pair: Pair, settings: PairSettings) -> tuple[int, ...] | str:
    unsafe = _unsafe(pair)
    both = unsafe == [True, True]
    if both and settings.both_unsafe == 0:
        return "both unsafe"
    preferred = getattr(pair, settings.preference)
    if settings.preference == "safer" and preferred in (0, 1):
        _refuse_contradiction(pair, preferred)
    if settings.objective == "bfpo" and None in unsafe:
        return "no safety label"  # unknown is not safe
    if settings.objective == "safe_dpo":
        chosen = pair.safer if both else safe_dpo_order(preferred, unsafe[0], unsafe[1])
        reason = "no preference or safety label"
    else:
        chosen, reason = preferred, "no preference, or a tie"
    return (chosen, 1 - chosen) if chosen in (0, 1) else reason


def _refuse_contradiction(pair: Pair, safer: int) -> None:
    if ranked_safer(pair) == 1 - safer:
        raise DataError(
            f"{pair.source}: {pair.id}: safer names the unsafe answer of a pair with a safe one;"
            " see `equipoise data check --on-contradiction`"
        )


def _unsafe(pair: Pair) -> list[bool | None]:
    return [None if answer.is_safe is None else not answer.is_safe for answer in pair.answers]
