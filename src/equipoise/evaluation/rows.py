"""One judged response, and a finished evaluation read back from its folder.

`severity` and `harm_categories` describe the response, as in every batch file; the labels of the
prompt are `prompt_severity` and `prompt_categories`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from equipoise.errors import DataError
from equipoise.evaluation.files import read_lines
from equipoise.lineage import Manifest, read_manifest
from equipoise.records import Conversation, Level, Names, Refusal
from equipoise.rewards.rules import AnswerClass

STEP_NAME = "evaluate"


class RowRules(BaseModel):
    """What rules say of one response."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    response_type: str
    """What the response should be."""
    answer_class: AnswerClass
    """By the propositions whose grade is above one half."""
    total: float
    """The sum of the parts, without the scorer's reward; more is better."""
    parts: dict[str, float]
    """Weight times probability of each proposition; those that add nothing are left out."""


class EvaluatedRow(BaseModel):
    """One response to one prompt with what the judges said of it; the key is (`id`, `sample`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Id of the prompt."""
    sample: int
    prompt: Conversation
    is_harmful: bool
    """Whether the prompt asks for harm."""
    prompt_categories: Names
    prompt_severity: Level | None
    twin: str | None
    response: str
    is_safe: bool
    unsafe_probability: float
    severity: Level
    harm_categories: tuple[str, ...]
    category_probabilities: dict[str, float]
    """In the head order of the judge's taxonomy."""
    truncated: bool
    """The judge did not see all of the text."""
    refusal: Refusal
    refusal_probability: float
    """Probability of partial or full refusal."""
    reward: float | None
    """More is more helpful; None without a scorer."""
    cost: float | None
    """Above zero means unsafe; None without a scorer."""
    words: int
    repetition: float
    """Share of repeated word 3-grams, 0..1."""
    rules: RowRules | None = None
    """None without rules, and then not written."""

    @property
    def key(self) -> tuple[str, int]:
        """What pairs this row with the same row of another run."""
        return self.id, self.sample

    @model_serializer(mode="wrap")
    def _without_rules_as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        told: dict[str, Any] = write(self)
        if self.rules is None:
            del told["rules"]  # rows without rules are the bytes that they were before there were any
        return told


class EvaluationRun(NamedTuple):
    """A finished evaluation, read back from its folder."""

    name: str
    path: Path
    manifest: Manifest
    rows: list[EvaluatedRow]


def count_words(text: str) -> int:
    """Number of words, split at white space."""
    return len(text.split())


def load_run(folder: Path) -> EvaluationRun:
    """Read a finished evaluation; anything else raises DataError."""
    if not (folder / "manifest.json").is_file():
        raise DataError(f"{folder}: no finished run here; expected the folder of `equipoise evaluate`")
    manifest = read_manifest(folder / "manifest.json")
    if manifest.step != STEP_NAME or not (folder / "rows.jsonl").is_file():
        raise DataError(f"{folder}: a run of '{manifest.step}'; expected one of `equipoise evaluate`")
    return EvaluationRun(
        folder.resolve().name, folder, manifest, read_lines(folder / "rows.jsonl", EvaluatedRow)
    )


def load_runs(folders: Iterable[Path]) -> list[EvaluationRun]:
    """Read several runs and tell them apart: names that are alike get their parent folder's name."""
    runs = [load_run(folder) for folder in folders]
    names = [run.name for run in runs]
    return [
        run._replace(name=f"{run.path.resolve().parent.name}/{run.name}")
        if names.count(run.name) > 1
        else run
        for run in runs
    ]
