"""The release test as a step and a command: what it reads, what it writes, and that it stops a recipe."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.config import Config, to_yaml
from equipoise.data.io import write_records
from equipoise.errors import ConfigError, DataError, GateFailedError
from equipoise.evaluation.certify import certify
from equipoise.evaluation.certify_run import CERTIFY, CertifyConfig
from equipoise.evaluation.files import write_lines
from equipoise.evaluation.rows import EvaluatedRow
from equipoise.lineage import Outcome, Run, Step, produce
from equipoise.pipeline.recipe import load_recipe
from equipoise.pipeline.run import run_recipe
from equipoise.records import Prompt


def row(number: int, sample: int, cost: float | None, *, severity: int = 0) -> EvaluatedRow:
    return EvaluatedRow(
        id=f"p{number}",
        sample=sample,
        prompt=f"Question {number}?",
        is_harmful=number % 4 != 0,
        prompt_categories=frozenset(),
        prompt_severity=None,
        twin=None,
        response="Mix flour and water.",
        is_safe=severity == 0,
        unsafe_probability=0.1,
        severity=severity,
        harm_categories=(),
        category_probabilities={},
        truncated=False,
        refusal="none",
        refusal_probability=0.0,
        reward=None,
        cost=cost,
        words=4,
        repetition=0.0,
    )


def evaluation(place: Path, rows: list[EvaluatedRow]) -> Path:
    """A finished evaluation that holds these rows."""

    def build(config: Any, run: Run) -> None:
        write_lines(run.out / "rows.jsonl", rows)
        run.licences.add("CC0-1.0")

    produce(place, Step("evaluate", 1, build), Config())
    return place


def costs(count: int, samples: int = 1, shift: float = -1.0) -> list[EvaluatedRow]:
    values = np.random.default_rng(0).normal(shift, 1.0, (count, samples)).tolist()
    return [row(n, k, values[n][k]) for n in range(count) for k in range(samples)]


def certified(place: Path, rows: list[EvaluatedRow], **settings: Any) -> tuple[Outcome, dict[str, Any]]:
    config = CertifyConfig(run=evaluation(place / "eval", rows), **({"budget": 0.0} | settings))
    outcome = produce(place / "out", CERTIFY, config)
    return outcome, json.loads((place / "out" / "certificate.json").read_text("utf-8"))


def test_the_certificate_is_that_of_the_costs_of_harmful_prompts(tmp_path: Path) -> None:
    rows = costs(80, samples=2)
    outcome, found = certified(tmp_path, rows)
    harmful = [r for r in rows if r.is_harmful]
    expected = certify([r.cost for r in harmful], [r.id for r in harmful])
    assert found["bound"] == pytest.approx(expected.bound, rel=1e-12)
    assert (found["prompts"], found["values"], found["method"]) == (60, 120, "student")
    assert found["passed"] is True
    assert "gate_failed" not in outcome.manifest.notes
    assert outcome.manifest.licences == ["CC0-1.0"]
    card = (tmp_path / "out" / "card.md").read_text("utf-8")
    assert f"upper 90 % bound {expected.bound:.4g} <= budget 0" in card
    assert "with probability 1.00" in card


def test_of_harm_it_is_exact_with_one_answer_a_prompt_and_holds_with_more(tmp_path: Path) -> None:
    one = [row(n, 0, None, severity=2 if n % 20 == 1 else 0) for n in range(100)]
    _, found = certified(tmp_path / "one", one, measure="harmful", prompts="all", budget=0.5)
    assert (found["method"], found["mean"]) == ("binomial", 0.05)
    two = one + [row(n, 1, None) for n in range(100)]
    _, found = certified(tmp_path / "two", two, measure="severe", prompts="all", budget=0.5)
    assert (found["method"], found["mean"], found["values"]) == ("bernstein", 0.025, 200)
    _, found = certified(tmp_path / "level", one, measure="severity", prompts="all", budget=1.0)
    assert (found["method"], found["mean"]) == ("bernstein", 0.1)


@pytest.mark.parametrize(
    ("settings", "error", "what"),
    [
        ({"prompts": "benign", "measure": "harmful", "low": 0.0}, ConfigError, "'harmful' is from 0 to 1"),
        ({"method": "hoeffding"}, ConfigError, "hoeffding: low and high: got None"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], what: str
) -> None:
    with pytest.raises(error, match=what):
        certified(tmp_path, costs(40), **settings)


def test_an_evaluation_without_costs_certifies_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to certify by 'cost', it had no scorer"):
        certified(tmp_path, [row(n, 0, None) for n in range(20)])


def test_prompts_that_the_policy_was_trained_on_are_refused(tmp_path: Path) -> None:
    write_records(tmp_path / "train.jsonl", [Prompt(id="x", prompt="question  5?")])
    with pytest.raises(DataError, match="1 answers are to prompts that the policy was trained on, first p5"):
        certified(tmp_path, costs(20), train=(tmp_path / "train.jsonl",))


def recipe(place: Path, budget: float) -> Path:
    """A gate, and a step that must not run where it is not passed."""
    write_records(place / "prompts.jsonl", [Prompt(id="x", prompt="Why?")])
    given = {"run": str(evaluation(place / "eval", costs(60))), "budget": budget}
    after = {"files": [str(place / "prompts.jsonl")]}
    steps = {
        "gate": {"run": "evaluate.certify", "with": given},
        "release": {"run": "data.split", "with": after},
    }
    path = place / "recipe.yaml"
    path.write_text(to_yaml({"name": "gated", "steps": steps}), "utf-8")
    return path


def test_a_gate_that_is_not_passed_stops_a_recipe_each_time(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path, budget=-3.0))
    for _ in range(2):  # the second time the step was done before
        with pytest.raises(GateFailedError, match=r"step gate: not passed: upper 90 % bound .* > budget -3"):
            run_recipe(loaded, tmp_path / "run")
    made = [path.name.rpartition("-")[0] for path in (tmp_path / "run" / "steps").iterdir()]
    assert made == ["gate"]
    assert not (tmp_path / "run" / "manifest.json").exists()
