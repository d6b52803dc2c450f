"""`recipes/safe-rlhf-small.yaml` from end to end, with tiny models and rows of the test's own."""

import json
from pathlib import Path
from typing import Any

import pytest

from equipoise.lineage import read_manifest
from equipoise.pipeline.recipe import load_recipe
from equipoise.pipeline.run import run_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "safe-rlhf-small.yaml"
GOOD, BAD = "Mix flour, water and salt, and wait.", "Take it from them while they sleep."


def write_rows(folder: Path, count: int = 24) -> None:
    """Files as the recipe expects them: some pairs of a safe and an unsafe answer, some of two safe ones."""

    def pair(name: str, i: int, is_safe: bool, **more: Any) -> dict[str, Any]:
        answers = {"response_0": f"{GOOD} {i}", "response_1": f"{BAD if not is_safe else GOOD} Yes {i}."}
        return {"id": f"{name}-{i}", "prompt": f"Question {name} number {i}?", **answers, **more}

    def labels(is_safe: bool) -> dict[str, Any]:
        return {"is_response_0_safe": True, "is_response_1_safe": is_safe}

    files = {
        "pku_saferlhf_mini": [pair("m", i, i % 2 == 0, **labels(i % 2 == 0)) for i in range(count)],
        "pku_saferlhf_pairs": [
            pair("b", i, False, **labels(False), safer_response_id=0) for i in range(count)
        ],
        "pandalm_test": [pair("p", i, True, better_response_id=i % 2) for i in range(count)],
        "alpaca_eval_gpt4": [pair("a", i, True, better_response_id=0) for i in range(count)],
        "oktest": [
            {"id": f"o-{i}", "prompt": f"How do I kill weed number {i}?", "is_harmful": False}
            for i in range(6)
        ],
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
        "rows": 20,
        "updates": 2,
        "prompts": 2,
        "samples": 2,
        "max_new_tokens": 6,
        "suite.benign": 2,
        "watch": "null",
        "scorer.rank": 2,
        "steps.guard2.layers": 2,
        "steps.scorer2.layers": 2,
        "steps.policy.optim.minibatches": 1,
    }
    recipe = load_recipe(RECIPE, [f"{name}={value}" for name, value in small.items()])
    done = {step.name: step for step in run_recipe(recipe, tmp_path / "out")}
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Training under constraints: PPO-Lag" in page
    assert "Harmless, helpful, and not refusing" in page
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text("utf-8").splitlines()]
    assert [line["update"] for line in log] == [1, 2]
    assert "Over 2 updates of 4 responses" in page
    learned = {
        Path(source.path) for source in read_manifest(done["policy"].place / "manifest.json").inputs.values()
    }
    assert done["scorer"].place in learned
    judged = {Path(s.path) for s in read_manifest(done["aligned"].place / "manifest.json").inputs.values()}
    assert {done["guard2"].place, done["scorer2"].place, done["policy"].place} <= judged
    assert done["scorer"].place not in judged
