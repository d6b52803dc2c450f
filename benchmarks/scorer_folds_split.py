"""The rows of `scorer_folds.py`, and how they are split into folds."""

from pathlib import Path
from typing import NamedTuple

from sklearn.model_selection import GroupKFold, KFold

from equipoise.data.rows import read_rows
from equipoise.data.sources import import_records
from equipoise.data.splits import normalise_prompt
from equipoise.records import Pair, text_of
from equipoise.stats import Indices

FOLDS = 5
FILES = {
    "pku_saferlhf_pairs": "CC-BY-NC-4.0",
    "pku_saferlhf_mini": "CC-BY-NC-4.0",
    "hh_harmless_test": "MIT",
}
"""Files of rows, and the licence of each."""
ORDERED = ("pku_saferlhf_pairs", "hh_harmless_test")
"""Files whose pairs are to be put in order."""
SPLITS: dict[str, tuple[tuple[str, ...], bool]] = {
    "pku, by prompt": (("pku_saferlhf_pairs", "pku_saferlhf_mini"), True),
    "pku, at random": (("pku_saferlhf_pairs", "pku_saferlhf_mini"), False),
    "hh_harmless, by prompt": (("hh_harmless_test",), True),
}
"""Name -> the files, which are split together, and whether a prompt stays on one side."""
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

    @property
    def prompts(self) -> list[str]:
        """As they are compared, one to a pair."""
        return [normalise_prompt(text_of(pair.prompt)) for pair in self.pairs]


def read_split(data: Path, name: str) -> Split:
    """Read the files of a split and draw its folds."""
    files, by_prompt = SPLITS[name]
    pairs: list[Pair] = []
    is_ordered: list[bool] = []
    for file in files:
        rows = import_records("jsonl", read_rows(data / f"{file}.jsonl"), licence=FILES[file])
        found = [row.model_copy(update={"source": file}) for row in rows if isinstance(row, Pair)]
        pairs += found
        is_ordered += [file in ORDERED] * len(found)
    split = Split(pairs, is_ordered, [])
    kind = GroupKFold if by_prompt else KFold
    folds = kind(FOLDS, shuffle=True, random_state=0).split(
        pairs, groups=split.prompts if by_prompt else None
    )
    return split._replace(folds=list(folds))


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
