"""The rows of `scorer_folds.py`, and how they are split into folds."""

import hashlib
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from sklearn.model_selection import GroupKFold, KFold

from equipoise.data.rows import read_rows
from equipoise.data.sources import import_records
from equipoise.data.splits import normalise_prompt
from equipoise.records import Exchange, Pair, text_of
from equipoise.stats import Indices

FOLDS = 5
FILES = {
    "pku_saferlhf_pairs": "CC-BY-NC-4.0",
    "pku_saferlhf_mini": "CC-BY-NC-4.0",
    "hh_harmless_test": "MIT",
    "pku_saferlhf_safe_sft": "CC-BY-NC-4.0",
}
"""Files of rows, and the licence of each."""
ORDERED = ("pku_saferlhf_pairs", "hh_harmless_test")
"""Files whose pairs are to be put in order."""


R = TypeVar("R", Pair, Exchange)


class Plan(NamedTuple):
    """How rows are split."""

    files: tuple[str, ...]
    """Which are split together."""
    by_prompt: bool = True
    """Whether a prompt stays on one side."""
    beside: str | None = None
    """A file of single answers that are learned from and never scored."""


PKU = ("pku_saferlhf_pairs", "pku_saferlhf_mini")
SPLITS = {
    "pku, by prompt": Plan(PKU),
    "pku, by prompt, beside safe answers": Plan(PKU, beside="pku_saferlhf_safe_sft"),
    "pku, at random": Plan(PKU, by_prompt=False),
    "hh_harmless, by prompt": Plan(("hh_harmless_test",)),
}
AT_RANDOM = (
    "not a result: prompts and repeated answers lie on both sides, as `to_be_ordered` counts; what a model"
    " does better here than by prompt is remembered"
)


class Split(NamedTuple):
    """Pairs, and where each is scored."""

    pairs: list[Pair]
    is_ordered: list[bool]
    """Whether a pair is of those to be put in order."""
    folds: list[tuple[Indices, Indices]]
    """Places to learn from, and to score."""
    beside: list[Exchange]
    """Single answers to learn from, none of which is an answer of a pair to the same prompt."""

    def with_share(self, share: float) -> "Split":
        """The same rows to score, and of those to learn from the ones to a share of the prompts, by hash.

        What a smaller share takes, a larger one takes too.
        """
        prompts = self.prompts
        taken = np.array([place_of(prompt) < share for prompt in prompts])
        return self._replace(folds=[(train[taken[train]], test) for train, test in self.folds])

    def learned_beside(self, fold: int) -> list[Exchange]:
        """Single answers to learn from in a fold: those to prompts of which it scores none."""
        prompts = self.prompts
        scored = {prompts[i] for i in self.folds[fold][1]}
        return [row for row in self.beside if normalise_prompt(text_of(row.prompt)) not in scored]

    @property
    def prompts(self) -> list[str]:
        """As they are compared, one to a pair."""
        return [normalise_prompt(text_of(pair.prompt)) for pair in self.pairs]


def place_of(prompt: str) -> float:
    """A number in 0..1 that is the prompt's own."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8]) / 2**64


def read_split(data: Path, name: str) -> Split:
    """Read the files of a split and draw its folds."""
    plan = SPLITS[name]
    pairs: list[Pair] = []
    is_ordered: list[bool] = []
    for file in plan.files:
        found = read_file(data, file, Pair)
        pairs += found
        is_ordered += [file in ORDERED] * len(found)
    split = Split(pairs, is_ordered, [], [])
    draw = GroupKFold if plan.by_prompt else KFold
    groups = split.prompts if plan.by_prompt else None
    folds = draw(FOLDS, shuffle=True, random_state=0).split(pairs, groups=groups)
    known = {
        (prompt, answer.response)
        for prompt, pair in zip(split.prompts, pairs, strict=True)
        for answer in pair.answers
    }
    beside = [] if plan.beside is None else read_file(data, plan.beside, Exchange)
    new = [row for row in beside if (normalise_prompt(text_of(row.prompt)), row.response) not in known]
    return split._replace(folds=list(folds), beside=new)


def read_file(data: Path, file: str, kind: type[R]) -> list[R]:
    """Read the rows of one kind."""
    rows = import_records("jsonl", read_rows(data / f"{file}.jsonl"), licence=FILES[file])
    return [row.model_copy(update={"source": file}) for row in rows if isinstance(row, kind)]


def seen_before(split: Split) -> dict[str, int]:
    """Count the answers of the pairs to be put in order, and those of them that learning saw as well."""
    prompts, found = split.prompts, {"answers": 0, "in_training_too": 0, "to_the_same_prompt": 0}
    for train, test in split.folds:
        known = {(prompts[i], answer.response) for i in train for answer in split.pairs[i].answers}
        texts = {text for _, text in known}
        for i in test:
            for answer in split.pairs[i].answers if split.is_ordered[i] else ():
                found["answers"] += 1
                found["in_training_too"] += answer.response in texts
                found["to_the_same_prompt"] += (prompts[i], answer.response) in known
    return found
