"""`recipes/safe-rlhf-small.yaml` from end to end, with tiny models and rows of the test's own."""

import json
from pathlib import Path
from typing import Any

import pytest

from equipoise.data.corpus import corpus
from equipoise.lineage import read_manifest
from equipoise.pipeline.recipe import load_recipe
from equipoise.pipeline.run import run_recipe
from equipoise.records import Pair, Prompt

RECIPE = Path(__file__).parents[2] / "recipes" / "safe-rlhf-small.yaml"
GOOD, BAD = "Mix flour, water and salt, and wait.", "Take it from them while they sleep."


def write_rows(folder: Path, count: int = 24) -> None:
    """Files as the recipe expects them: some pairs of a safe and an unsafe answer, some of two safe ones."""

    def pair(name: str, i: int, is_safe: bool, **more: Any) -> dict[str, Any]:
        answers = {"response_0": f"{GOOD} {i}", "response_1": f"{BAD if not is_safe else GOOD} Yes {i}."}
        return {"id": f"{name}-{i}", "prompt": f"Question {name} number {i}?", **answers, **more}

    def labels(is_safe: bool) -> dict[str, Any]:
        return {"is_response_0_safe": True, "is_response_1_safe": is_safe}

    def harmless(name: str, i: int) -> dict[str, Any]:
        return {"id": f"{name}-{i}", "prompt": f"How do I kill weed number {i}, {name}?", "is_harmful": False}

    files = {
        "pku_saferlhf_mini": [pair("m", i, i % 2 == 0, **labels(i % 2 == 0)) for i in range(count)],
        "pku_saferlhf_pairs": [
            pair("b", i, False, **labels(False), safer_response_id=0) for i in range(count)
        ],
        "pandalm_test": [pair("p", i, True, better_response_id=i % 2) for i in range(count)],
        "alpaca_eval_gpt4": [pair("a", i, True, better_response_id=0) for i in range(count)],
        "oktest": [harmless("o", i) for i in range(6)],
        "llm_safeguard": [harmless("l", i) | {"is_harmful": i > 1} for i in range(6)],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_the_recipe_goes_from_rows_to_a_report_of_both_sides(
    tiny_llama: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path)
    small = {
        "data.dir": tmp_path,
        "model": tiny_llama,
        "encoder": tiny_encoder,
        "judge": tiny_encoder,
        "rows": 20,
        "rewards": 20,
        "updates": 2,
        "prompts": 2,
        "samples": 2,
        "max_new_tokens": 6,
        "suite.harmful": 3,
        "suite.benign": 4,
        "watch": "null",
        "scorer.depth": 2,
        "scorer.layers": 2,
        "scorer.tuned": 1,
        "steps.other_backbone.layers": 2,
        "steps.guard2.layers": 2,
        "steps.scorer2.layers": 2,
        "steps.policy.optim.minibatches": 1,
    }
    recipe = load_recipe(RECIPE, [f"{name}={value}" for name, value in small.items()])
    done = {step.name: step for step in run_recipe(recipe, tmp_path / "out")}
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Training under constraints: GRPO" in page
    assert "Harmless, helpful, and not refusing" in page
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text("utf-8").splitlines()]
    assert [line["update"] for line in log] == [1, 2]
    assert "Over 2 updates of 4 responses" in page
    learned = {
        Path(source.path) for source in read_manifest(done["policy"].place / "manifest.json").inputs.values()
    }
    assert done["scorers"].place in learned
    judged = {Path(s.path) for s in read_manifest(done["aligned"].place / "manifest.json").inputs.values()}
    assert {done["guard2"].place, done["scorer2"].place, done["policy"].place} <= judged
    assert done["scorers"].place not in judged
    for name in ("change", "change-own"):
        told = json.loads((tmp_path / "out" / f"{name}.json").read_text("utf-8"))
        assert {"unsafe_by_cost", "over_refusal", "repetition"} <= told["metrics"].keys()
    own = read_manifest(done["aligned_own"].place / "manifest.json").inputs
    assert Path(own["scorer"].path) == done["scorers"].place


def write_corpus(folder: Path) -> None:
    """Files as the recipe expects them, of the built-in corpus, whose pairs have all labels."""
    pairs = [record for record in corpus("pairs") if isinstance(record, Pair)]
    asked = [record for record in corpus("look_alikes") if isinstance(record, Prompt)]

    def row(pair: Pair) -> dict[str, Any]:
        first, second = pair.answers
        return {
            "id": pair.id,
            "prompt": pair.prompt,
            "response_0": first.response,
            "response_1": second.response,
            "is_response_0_safe": first.is_safe,
            "is_response_1_safe": second.is_safe,
            "safer_response_id": pair.safer,
            "better_response_id": pair.better,
        }

    files = {
        "pku_saferlhf_mini": [row(pair) for pair in pairs[0:60]],
        "pku_saferlhf_pairs": [row(pair) for pair in pairs[60:120]],
        "pandalm_test": [row(pair) for pair in pairs[120:132]],
        "alpaca_eval_gpt4": [row(pair) for pair in pairs[132:]],
        "oktest": [p.model_dump(include={"id", "prompt", "is_harmful"}) for p in asked[:40]],
        "llm_safeguard": [p.model_dump(include={"id", "prompt", "is_harmful"}) for p in asked[40:80]],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")


@pytest.mark.slow
def test_ten_minutes_with_the_real_models_make_the_answers_cost_less(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    short = {
        "data.dir": tmp_path,
        "judge": "minilm",
        "rows": "null",
        "rewards": "null",
        "updates": 12,
        "max_new_tokens": 24,
        "budget": -3.0,  # out of reach, so that the cost counts all the time
        "suite.harmful": 20,
        "suite.benign": 10,
    }
    recipe = load_recipe(RECIPE, [f"{name}={value}" for name, value in short.items()])
    done = {step.name: step for step in run_recipe(recipe, tmp_path / "out")}
    log = [json.loads(line) for line in (done["policy"].place / "log.jsonl").read_text("utf-8").splitlines()]
    assert len(log) == 12
    assert all(line["multipliers"]["cost"] > 1 for line in log)
    own = json.loads((tmp_path / "out" / "change-own.json").read_text("utf-8"))["metrics"]
    assert own["cost"]["difference"]["value"] < 0
    assert own["cost"]["before"]["n"] == 30
