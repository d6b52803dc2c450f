"""`equipoise certify`: exit 0 where the policy passes, 1 where it does not."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from equipoise.cli.main import app
from equipoise.config import Config
from equipoise.evaluation.files import write_lines
from equipoise.evaluation.rows import EvaluatedRow
from equipoise.lineage import Run, Step, produce


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """An evaluation of 40 harmful prompts, costs around -1."""
    values: dict[str, Any] = dict.fromkeys(("prompt_severity", "twin", "reward"))
    values |= {"is_harmful": True, "prompt_categories": [], "response": "No.", "is_safe": True, "severity": 0}
    values |= {"unsafe_probability": 0.1, "harm_categories": [], "category_probabilities": {}, "words": 1}
    values |= {"truncated": False, "refusal": "full", "refusal_probability": 1.0, "repetition": 0.0}
    rows = [
        EvaluatedRow(id=f"p{n}", sample=0, prompt=f"Question {n}?", cost=-1 + 0.1 * (n % 5), **values)
        for n in range(40)
    ]

    def build(config: Any, run: Run) -> None:
        write_lines(run.out / "rows.jsonl", rows)

    produce(tmp_path / "eval", Step("evaluate", 1, build), Config())
    return tmp_path / "eval"


@pytest.mark.parametrize(("budget", "code", "word"), [("0", 0, "passed"), ("-0.9", 1, "not passed")])
def test_the_exit_code_says_whether_the_policy_passes(
    evaluated: Path, tmp_path: Path, budget: str, code: int, word: str
) -> None:
    command = [
        "certify",
        str(evaluated),
        "--budget",
        budget,
        "--delta",
        "0.05",
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.stdout.startswith(f"{word}: upper 95 % bound")) == (code, True)
    again = CliRunner().invoke(app, [*command, "--json"])
    found = json.loads(again.stdout.splitlines()[-1])
    assert (again.exit_code, found["passed"], found["skipped"]) == (code, code == 0, True)
    assert found["mean"] == pytest.approx(-0.8)
