"""`train rules` with a language model as the grader, whole: a server that knows, a model that does not."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from equipoise.cli.main import app
from equipoise.config import parse_config, to_yaml
from equipoise.data.io import write_records
from equipoise.errors import RunStoppedError
from equipoise.generation.options import load_option_scorer
from equipoise.judges.propositions import PropositionGrader
from equipoise.judges.rules import load_rules
from equipoise.lineage import produce
from equipoise.pipeline.rules import TRAIN_RULES, RulesConfig
from equipoise.records import Exchange
from equipoise.rewards.rules import load_rule_set

SENTENCES = {
    "sorry": "I am sorry, but no.",
    "help": "Mix flour, water and salt.",
    "chat": "A kind answer is a better one.",
}
MADE_OF = {"ideal": ("sorry",), "minimum_style": ("sorry", "chat"), "disallowed": ("help",)}
DECLINE = {
    "ideal": {"all": ["sorry"], "none": ["chat"]},
    "minimum_style": {"all": ["sorry"]},
    "illogical": {"any": ["chat"]},
    "disallowed": {"any": ["help"]},
}
RULES = {
    "name": "tiny",
    "propositions": [{"name": name, "question": f"Does it say {name}?"} for name in SENTENCES],
    "response_types": {"decline": DECLINE, "answer": DECLINE},
    "harmful": "decline",
    "harmless": "answer",
}
PROMPTS = 6
ANSWERS = [
    Exchange(
        id=f"c{n}-{name}",
        licence="CC0-1.0",
        prompt=f"Question {n}?",
        prompt_is_harmful=True,
        response=" ".join(SENTENCES[s] for s in made),
        provenance={"class": name},
    )
    for n in range(PROMPTS)
    for name, made in MADE_OF.items()
]


def knows(text: str) -> str:
    """Say whether the sentence that the question names stands in the answer."""
    asked = re.search(r"Does it say (\w+)\?", text)
    return "yes" if asked and SENTENCES[asked[1]] in text else "no"


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """Settings, without the judge."""
    (tmp_path / "tiny.yaml").write_text(to_yaml(RULES), "utf-8")
    write_records(tmp_path / "ranked.jsonl", ANSWERS)
    files = {"rules": str(tmp_path / "tiny.yaml"), "completions": [str(tmp_path / "ranked.jsonl")]}
    return {**files, "device": "cpu", "steps": 200}


def asks(server: Any) -> dict[str, Any]:
    return {"model": "big", "endpoint": {"url": server.url, "tries": 1, "first_wait_seconds": 0}}


def test_a_judge_behind_a_server_grades_and_the_fit_orders_held_back_answers(
    given: dict[str, Any], server: Any, tmp_path: Path
) -> None:
    server.say, server.gives_logprobs = knows, True
    out = tmp_path / "out"
    words = [f"{key}={json.dumps(value)}" for key, value in (given | {"judge": asks(server)}).items()]
    result = CliRunner().invoke(
        app, ["train", "rules", "--out", str(out), *(word for item in words for word in ("--set", item))]
    )
    assert result.exit_code == 0, result.output
    assert len(server.asked) == PROMPTS * len(MADE_OF) * len(SENTENCES)
    told = json.loads((out / "rules.json").read_text("utf-8"))
    assert told["order"]["decline"]["total"]["value"] == 1
    assert told["f1"] == {}  # nothing was measured: there are no labels
    card = (out / "card.md").read_text("utf-8")
    assert "graded by big" in card
    assert "F1 is by cross-validation" not in card

    rules = load_rules(out)
    good, _, bad = rules(ANSWERS[:3])
    assert good.value > bad.value + 0.5
    grades = [[0.8 if name in made else 0.2 for name in SENTENCES] for made in MADE_OF.values()]
    np.testing.assert_allclose(rules.grader(ANSWERS[:3]), grades, atol=1e-9)


def test_a_server_that_dies_stops_the_run_which_goes_on_without_asking_twice(
    given: dict[str, Any], server: Any, tmp_path: Path
) -> None:
    server.say, server.gives_logprobs, server.dead_after = knows, True, 20
    config = parse_config(RulesConfig, given | {"judge": asks(server)}, "test")
    with pytest.raises(RunStoppedError):
        produce(tmp_path / "out", TRAIN_RULES, config)
    assert not (tmp_path / "out" / "model.json").exists()
    server.dead_after = None
    outcome = produce(tmp_path / "out", TRAIN_RULES, config)
    assert outcome.manifest.attempts == 2
    usage: Any = outcome.manifest.notes["usage"]
    assert usage["answers"] == PROMPTS * len(MADE_OF) * len(SENTENCES)
    assert usage["prompt_tokens"] == 5 * usage["answers"]
    assert len(server.asked) == len(set(server.asked)) == PROMPTS * len(MADE_OF) * len(SENTENCES)


def test_a_model_in_this_process_grades_when_the_weights_are_fitted_and_when_they_are_used(
    given: dict[str, Any], roomy_llama: Path, tmp_path: Path
) -> None:
    judge = {"model": str(roomy_llama), "dtype": "float32"}
    config = parse_config(RulesConfig, given | {"judge": judge}, "test")
    outcome = produce(tmp_path / "out", TRAIN_RULES, config)
    assert outcome.manifest.notes["pairs"] == 3 * (PROMPTS - 2)
    assert outcome.manifest.inputs.keys() >= {"judge.model", "completions.0", "rules"}
    rules = load_rules(tmp_path / "out", device="cpu")
    scorer = load_option_scorer(roomy_llama, dtype="float32", device="cpu")
    grades = PropositionGrader(load_rule_set(str(tmp_path / "tiny.yaml")), scorer)(ANSWERS)
    assert (grades > 0).all()
    assert np.ptp(grades) > 0
    values = [score.value for score in rules(ANSWERS)]
    np.testing.assert_allclose(values, grades @ rules.weights["decline"], atol=1e-4)
