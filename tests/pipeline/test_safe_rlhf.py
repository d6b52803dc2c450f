"""`recipes/safe-rlhf-small.yaml` and `safe-rlhf-rounds.yaml` from end to end, with rows of the test's own."""

import importlib
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from scipy import stats

from equipoise.data.corpus import corpus
from equipoise.evaluation.files import read_lines
from equipoise.evaluation.rows import EvaluatedRow
from equipoise.lineage import manifest_of, read_manifest
from equipoise.pipeline.recipe import load_recipe
from equipoise.pipeline.run import run_recipe
from equipoise.records import Pair, Prompt

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE, ROUNDS = RECIPES / "safe-rlhf-small.yaml", RECIPES / "safe-rlhf-rounds.yaml"
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
    tiny_llama: Path, tiny_encoder: Path, tmp_path: Path, load_scripts: Any, monkeypatch: pytest.MonkeyPatch
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

    found = load_scripts("common", "safe_rlhf")["safe_rlhf"].measured(done)
    rows = read_lines(done["aligned_own"].place / "rows.jsonl", EvaluatedRow)
    costs = [row.cost for row in rows if row.is_harmful and row.cost is not None]
    assert len(costs) == 3
    bound = fmean(costs) + stats.t.ppf(0.95, 2) * stdev(costs) / 3**0.5
    assert found["certificate"]["bound"] == pytest.approx(bound, rel=1e-9)
    assert found["certificate"]["passed"] == (bound <= found["budget"] == 0.4)
    monkeypatch.syspath_prepend(RECIPES.parent / "docs")
    told = importlib.import_module("constrained_table").of_seed("0", found, "greedy answers")
    assert f"its expected cost is below {bound:.3f} with confidence 0.95" in told[0]
    assert told[1].count("\n") == 1 + 14 + len(found["over_refusal"])  # a head of two lines, metrics, sources


def manifest_for(made: Path) -> Path | None:
    """The manifest of a file or folder, or of the folder that a file is a part of."""
    places = [
        manifest_of(made, is_file=made.is_file()),
        *(folder / "manifest.json" for folder in made.parents),
    ]
    return next((place for place in places if place.exists()), None)


def behind(made: Path) -> set[Path]:
    """All files and folders that one was made from, that those were made from, and so on."""
    found: set[Path] = set()
    todo = [made]
    while todo:
        manifest = manifest_for(todo.pop())
        if manifest is not None:
            sources = {Path(source.path) for source in read_manifest(manifest).inputs.values()}
            todo += sources - found
            found |= sources
    return found


@pytest.mark.slow
def test_two_rounds_go_from_rows_to_a_policy_made_of_the_first_ones_answers(
    tiny_llama: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path, 40)
    small = {
        "data.dir": tmp_path,
        "model": tiny_llama,
        "encoder": tiny_encoder,
        "rows": 36,
        "scorer.rank": 2,
        "updates": 2,
        "prompts": 2,
        "samples": 2,
        "max_new_tokens": 6,
        "watch": "null",
        "red.samples": 2,
        "suite.harmful": 3,
        "suite.benign": 3,
        "steps.guard.layers": 2,
        "steps.guard2.layers": 2,
        "steps.scorer2.layers": 2,
        "steps.first.optim.minibatches": 1,
        "steps.second.optim.minibatches": 1,
    }
    recipe = load_recipe(ROUNDS, [f"{name}={value}" for name, value in small.items()])
    done = {step.name: step.place for step in run_recipe(recipe, tmp_path / "out")}
    inputs = {}
    for name, place in done.items():
        manifest = read_manifest(manifest_of(place, is_file=place.is_file()))
        inputs[name] = {setting: Path(source.path) for setting, source in manifest.inputs.items()}

    assert inputs["first"]["roles.policy"] == tiny_llama
    assert inputs["first"]["roles.scorer"] == done["first_scorer"]
    assert inputs["answers"]["models.0"] == done["first"]
    assert inputs["second"]["roles.policy"] == done["first"]
    assert inputs["second"]["roles.scorer"] == done["second_scorer"]
    for name, base in (("first", tiny_llama), ("second", done["first"])):
        adapter = json.loads((done[name] / "adapter_config.json").read_text("utf-8"))
        assert Path(adapter["base_model_name_or_path"]) == base
        log = [json.loads(line) for line in (done[name] / "log.jsonl").read_text("utf-8").splitlines()]
        assert [line["update"] for line in log] == [1, 2]
        assert log[0]["kl"] == pytest.approx(0, abs=1e-5)  # it starts as what it is to stay near
        assert abs(log[1]["kl"]) > 1e-5  # an estimate, which may be negative

    (own,) = set(inputs["second_scorer"].values()) - set(inputs["first_scorer"].values())
    assert own == done["labelled"]
    rows = [json.loads(line) for line in own.read_text("utf-8").splitlines()]
    assert rows
    asked = {json.loads(line)["prompt"] for line in done["red"].read_text("utf-8").splitlines()}
    learned = (tmp_path / "out" / "steps").glob("split-*/judge*/*.jsonl")
    known = {json.loads(line)["prompt"] for path in learned for line in path.read_text("utf-8").splitlines()}
    assert not asked & known
    for row in rows:
        assert row["prompt"] in asked
        assert row["label_origin"] == "model:rounds-guard"
        assert all(answer["is_safe"] in (True, False) for answer in row["answers"])

    first = {done[name] for name in ("guard", "first_scorer", "first")}
    between = {done[name] for name in ("red", "answers", "pairs", "judged", "labelled")}
    second = {done["second_scorer"], done["second"]}
    assert first | between | second <= behind(done["report"])
    assert first | between | {done["second_scorer"]} <= behind(done["second"])
    assert {done["first_scorer"], done["mini"]} <= behind(done["first"])
    assert behind(done["first"]).isdisjoint(between | second)
    for judge in ("guard2", "scorer2"):
        assert behind(done[judge]).isdisjoint(first | between | second)
        assert {inputs[f"{who}_run"][judge[:-1]] for who in ("base", "first", "second")} == {done[judge]}
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert all(label in page for label in ("first round", "second round", "second alignment"))
    assert (tmp_path / "out" / "labelled.jsonl").read_bytes() == own.read_bytes()


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


NOISE = 0.15
"""Of the mean cost of four rollouts: twice the standard error of 160 costs of a standard deviation of 0.9, as
measured over all prompts before training, rounded up. The prompts add none: each is asked twice."""


@pytest.mark.slow
def test_a_quarter_of_an_hour_with_the_real_models_brings_the_cost_to_the_budget(tmp_path: Path) -> None:
    """The budget is what 35 of 100 of the first responses keep to; kept on average, without pessimism."""
    write_corpus(tmp_path)
    short = {
        "data.dir": tmp_path,
        "judge": "minilm",
        "rows": "null",
        "rewards": "null",
        "updates": 12,
        "prompts": 10,
        "budget": "null",
        "pessimism": 0,
        "max_new_tokens": 24,
        "suite.harmful": 20,
        "suite.benign": 10,
    }
    recipe = load_recipe(RECIPE, [f"{name}={value}" for name, value in short.items()])
    done = {step.name: step for step in run_recipe(recipe, tmp_path / "out")}
    assert len(done["prompts"].place.read_text("utf-8").splitlines()) == 20  # two rollouts take each once
    log = [json.loads(line) for line in (done["policy"].place / "log.jsonl").read_text("utf-8").splitlines()]
    assert len(log) == 12
    costs = [line["costs"]["cost"] for line in log]
    weights = [line["multipliers"]["cost"] for line in log]
    (budget,) = {line["budgets"]["cost"] for line in log}
    assert costs[0] > budget + NOISE  # or there would be nothing to do
    assert fmean(costs[-4:]) <= budget + NOISE
    assert fmean(costs[-4:]) < fmean(costs[:2]) - NOISE
    assert weights[0] > 0
    assert fmean(weights[-4:]) < fmean(weights[:4])  # a cost within the budget takes the weight off
    asked = {"cost": 30, "repetition": 30, "unsafe_by_cost": 20, "over_refusal": 10}
    told = {
        name: json.loads((tmp_path / "out" / f"{name}.json").read_text("utf-8"))["metrics"]
        for name in ("change", "change-own")
    }
    for metrics in told.values():
        for side in ("before", "after"):
            assert {name: metrics[name][side]["n"] for name in asked} == asked
            assert 0 <= metrics["unsafe_by_cost"][side]["value"] <= 1
            assert 0 <= metrics["repetition"][side]["value"] < 0.2  # it has not learned to say one thing only
    assert told["change-own"]["cost"]["difference"]["value"] < 0
    assert told["change"]["repetition"] == told["change-own"]["repetition"]  # they judge the same responses
    assert told["change"]["cost"]["before"]["value"] != told["change-own"]["cost"]["before"]["value"]
