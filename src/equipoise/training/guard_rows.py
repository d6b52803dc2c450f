"""Labelled records as rows of the guard's training: texts, and what is known of each as weights.

Each row trains only the heads it has labels for: one with nothing but `is_safe` trains the first
severity threshold, which is P(unsafe). A prompt with a label of its own becomes a row without a
response. Where several annotators judged a record, their shares are its labels.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.data.splits import normalise_prompt
from equipoise.errors import DataError, TaxonomyError
from equipoise.models.guard import Target
from equipoise.models.windows import TextPair
from equipoise.records import REFUSALS, Exchange, Judgement, Labels, Prompt, text_of
from equipoise.taxonomy import Taxonomy

NO_GROUP = -1


class GuardTargets(NamedTuple):
    """What is known of rows: weights of outcomes, 0 where nothing is known (`objectives.classification`).

    Shapes: B rows, K severity thresholds, C categories.
    """

    passed: Tensor
    """[B, K] severity is above j."""
    failed: Tensor
    """[B, K] severity is j."""
    categories: Tensor
    """[B, C] 0..1."""
    category_weight: Tensor
    """[B, C] above 0 where looked at."""
    refusal: Tensor
    """[B, 3] in the order of `records.REFUSALS`."""
    group: Tensor
    """[B] rows to be ranked among themselves have the same number; -1 for none."""

    @property
    def unsafe(self) -> Tensor:
        """[B] 1 unsafe, 0 safe, -1 not known or equal shares of both."""
        up, down = self.passed[:, 0], self.failed[:, 0]
        return torch.where(up == down, -1, (up > down).long())

    def pick(self, rows: Sequence[int]) -> "GuardTargets":
        """Return the targets of some rows."""
        return GuardTargets(*(tensor[list(rows)] for tensor in self))


class GuardRows(NamedTuple):
    """What there is to learn from."""

    texts: list[TextPair]
    targets: GuardTargets
    kinds: tuple[Target, ...]
    """What a guard of these rows can judge."""
    contradicting: int
    """Prompts whose own labels contradict each other; the majority counted, ties as harmful."""


def guard_rows(
    exchanges: Sequence[Exchange],
    taxonomy: Taxonomy,
    prompts: Sequence[Prompt] = (),
    judgements: Iterable[Judgement] = (),
) -> GuardRows:
    """Turn records into rows; where none has a label DataError is raised.

    A prompt label becomes a row of its own, once per prompt. A harmful prompt takes the severity and
    categories of the worst response that goes along with it, where there is one; of a `prompts` record
    with the same text the own labels count. The labels of a judged exchange are those of its judgements.
    """
    votes: dict[str, list[Labels]] = defaultdict(list)
    for judgement in judgements:
        if judgement.labels is not None:
            votes[judgement.subject].append(judgement.labels)
    texts: list[TextPair] = []
    labels: list[tuple[Exchange, Sequence[Labels]]] = []
    groups: list[str | None] = []
    asked: dict[str, list[Exchange]] = defaultdict(list)
    for record in exchanges:
        said = votes.get(record.id, [record])
        if any(v.is_safe is not None or v.severity is not None or v.refusal is not None for v in said):
            texts.append(TextPair(text_of(record.prompt), record.response))
            labels.append((record, said))
            groups.append(f"response {normalise_prompt(text_of(record.prompt))}")
        if record.prompt_is_harmful is not None:
            asked[text_of(record.prompt)].append(record)
    kinds: tuple[Target, ...] = ("response",) if labels else ()
    alone: dict[str, list[Exchange]] = defaultdict(list)
    for prompt in prompts:
        if prompt.is_harmful is not None:
            alone[text_of(prompt.prompt)].append(_asked_alone(prompt))
    twins = _twin_groups(prompts)
    for text, records in (asked | alone).items():
        row = _prompt_row(records)
        texts.append(TextPair(text, None))
        labels.append((row, [row]))
        groups.append(next((twins[r.id] for r in alone.get(text, ()) if r.id in twins), None))
    if not labels:
        raise DataError(
            "exchanges, pairs and prompts: no row has a label;"
            " expected is_safe, severity or refusal, or is_harmful of a prompt"
        )
    kinds += ("prompt",) if asked or alone else ()
    number: dict[str, int] = {}
    group = [NO_GROUP if name is None else number.setdefault(name, len(number)) for name in groups]
    targets = _targets(labels, taxonomy)._replace(group=torch.tensor(group))
    contradicting = sum(len({r.prompt_is_harmful for r in found}) > 1 for found in (asked | alone).values())
    return GuardRows(texts, targets, kinds, contradicting)


def _asked_alone(prompt: Prompt) -> Exchange:
    """Return a labelled prompt in the form of an exchange that went along with it."""
    own = prompt.model_dump(include={"id", "prompt", "source", "severity", "categories"})
    return Exchange(**own, response="", prompt_is_harmful=prompt.is_harmful, is_safe=not prompt.is_harmful)


def _twin_groups(prompts: Sequence[Prompt]) -> dict[str, str]:
    """Id of each linked prompt -> its group, named after the harmful one; a link counts from either side."""
    linked = {p.twin: p.id for p in prompts if p.twin is not None and p.is_harmful}
    groups = {}
    for prompt in prompts:
        harmful = prompt.id if prompt.is_harmful else prompt.twin or linked.get(prompt.id)
        if harmful is not None:
            groups[prompt.id] = f"twins {harmful}"
    return groups


def _prompt_row(records: Sequence[Exchange]) -> Exchange:
    """One row for a prompt, from all records that say whether it is harmful."""
    harmful = [record for record in records if record.prompt_is_harmful]
    if 2 * len(harmful) < len(records):
        safe = {"is_safe": True, "severity": 0, "categories": frozenset(), "refusal": None}
        return records[0].model_copy(update=safe)
    worst = max(harmful, key=lambda record: (record.is_safe is False, record.severity or 0))
    known = worst.is_safe is False
    return worst.model_copy(
        update={
            "is_safe": False,
            "severity": worst.severity if known else None,
            "categories": worst.categories if known else None,
            "refusal": None,
        }
    )


def _targets(rows: Sequence[tuple[Exchange, Sequence[Labels]]], taxonomy: Taxonomy) -> GuardTargets:
    """Shares of the labels of each row; `group` is left empty."""
    count, highest = len(rows), len(taxonomy.severities) - 1
    passed, failed = torch.zeros(count, highest), torch.zeros(count, highest)
    categories, rated = (torch.zeros(count, len(taxonomy.names)) for _ in range(2))
    refusal = torch.zeros(count, len(REFUSALS))
    for i, (record, labels) in enumerate(rows):
        for label in labels:
            unsafe, level = _unsafe(label), label.severity
            if level is not None and level > highest:
                raise DataError(
                    f"{record.source}: {record.id}: severity is not on the scale of {taxonomy.name},"
                    f" got {level}; expected 0 to {highest}"
                )
            if unsafe is not None:
                (passed if unsafe else failed)[i, 0] += 1
            if level is not None:
                passed[i, 1:level] += 1
                if 0 < level < highest:
                    failed[i, level] += 1
            if label.refusal is not None:
                refusal[i, REFUSALS.index(label.refusal)] += 1
            if unsafe and label.categories:  # the head is P(category | unsafe)
                names = taxonomy.names if label.rated is None else label.rated
                rated[i, _places(names, taxonomy, record)] += 1
                categories[i, _places(label.categories, taxonomy, record)] += 1
        levels = sum(label.severity is not None for label in labels)
        judged = passed[i, 0] + failed[i, 0]
        for part in (passed[i], failed[i]):
            part[:1] /= judged.clamp(min=1)
            part[1:] /= max(levels, 1)
    refusal /= refusal.sum(-1, keepdim=True).clamp(min=1)
    return GuardTargets(
        passed, failed, categories / rated.clamp(min=1), (rated > 0).float(), refusal, torch.empty(0)
    )


def _places(names: Iterable[str], taxonomy: Taxonomy, record: Exchange) -> list[int]:
    try:
        return [taxonomy.index(name) for name in names]
    except TaxonomyError as exc:
        of = f"; it is labelled by {record.taxonomy}" if record.taxonomy != taxonomy.name else ""
        raise TaxonomyError(f"{record.source}: {record.id}: {exc}{of}") from None


def _unsafe(label: Labels) -> bool | None:
    if label.severity is not None:
        return label.severity > 0
    return None if label.is_safe is None else not label.is_safe


def by_group(targets: GuardTargets, *, most: int = 8) -> list[list[int]]:
    """Rows in lists that hold whole groups, in order of their first row; a row without one is alone.

    A group of more than `most` rows is dealt into several lists, each with its share of unsafe rows.
    """
    members: Mapping[int, list[int]] = defaultdict(list)
    for row, group in enumerate(targets.group.tolist()):
        members[group if group != NO_GROUP else -2 - row].append(row)
    unsafe = targets.unsafe.tolist()
    lists = []
    for rows in members.values():
        dealt = sorted(rows, key=unsafe.__getitem__)
        hands = -(-len(rows) // most)
        lists += [sorted(dealt[hand::hands]) for hand in range(hands)]
    return lists
