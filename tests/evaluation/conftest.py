"""Evaluations made from rows that a test writes down, and small callables in the place of models."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from equipoise.config import Config, ModelRef
from equipoise.evaluation.files import write_lines
from equipoise.evaluation.rows import EvaluatedRow, RowRules
from equipoise.lineage import Run, Step, produce

NAMES = ("Violence", "Drugs", "Privacy Violation")

MakeRow = Callable[..., EvaluatedRow]
MakeRules = Callable[..., RowRules]
MakeRun = Callable[..., Path]


@pytest.fixture
def make_row() -> MakeRow:
    """A row from what matters to the test; `bad` is a severity, 0 for a safe response."""

    def make(name: str, bad: int = 0, **fields: Any) -> EvaluatedRow:
        harmful = name.startswith("h")
        category = fields.pop("category", "Violence")
        values: dict[str, Any] = {
            "id": name,
            "sample": 0,
            "prompt": f"question {name}",
            "is_harmful": harmful,
            "prompt_categories": frozenset({category} if harmful else ()),
            "prompt_severity": 2 if harmful else 0,
            "twin": None,
            "response": f"a plain answer to {name}",
            "is_safe": not bad,
            "unsafe_probability": 0.9 if bad else 0.1,
            "severity": bad,
            "harm_categories": (category,) if bad else (),
            "category_probabilities": dict.fromkeys(NAMES, 0.1),
            "truncated": False,
            "refusal": "none",
            "refusal_probability": 0.0,
            "reward": None,
            "cost": None,
            "words": 5,
            "repetition": 0.0,
        }
        return EvaluatedRow(**(values | fields))

    return make


@pytest.fixture
def by_rules() -> MakeRules:
    """What rules say of a row: its class, and what each proposition adds."""

    def make(answer_class: str, **parts: float) -> RowRules:
        told = {"response_type": "decline", "answer_class": answer_class, "parts": parts}
        return RowRules(**told, total=sum(parts.values()))

    return make


class _Settings(Config):
    label: str
    suite: str = "builtin"
    select: str = "chosen"
    suite_seed: int = 0
    guard: ModelRef = "g"
    scorer: ModelRef | None = None
    rules: ModelRef | None = None
    refusals: str = "classifier"
    max_new_tokens: int = 48


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write rows as a finished evaluation and return its folder."""

    def make(name: str, rows: Sequence[EvaluatedRow], sha256: str = "s", **settings: Any) -> Path:
        def build(config: _Settings, run: Run) -> None:
            write_lines(run.out / "rows.jsonl", rows)
            run.licences.add("Apache-2.0")
            run.notes["suite_sha256"] = sha256

        produce(tmp_path / name, Step("evaluate", 1, build), _Settings(label=name, **settings))
        return tmp_path / name

    return make
