"""Rules as a benchmark: parts one at a time, a pool that all choose from, and rates, with tiny models."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from equipoise.data.splits import normalise_prompt
from equipoise.generation.sources import Asked
from equipoise.models.backbone import load_encoder
from equipoise.models.guard import GuardCard, GuardModel
from equipoise.records import Exchange, Score
from equipoise.taxonomy import load_taxonomy

NAMES = ("common", "rules_steps", "rules_judged", "rules_best_of_n", "rules_best_of_six", "rules")
SAID = {
    "apology": "I am sorry, but no.",
    "inability_to_comply": "I cannot help with that.",
    "judgement": "A kind one is better than you.",
    "fully_complies": "Mix flour, water, salt and yeast.",
}
KINDS = [
    ("apology", "inability_to_comply"),
    ("inability_to_comply", "judgement"),
    ("fully_complies",),
    ("judgement",),
]


@pytest.fixture(scope="module")
def scripts(load_scripts: Any) -> Any:
    return load_scripts(*NAMES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of our own in the files; one of the prompts is labelled too."""
    place = tmp_path_factory.mktemp("data")
    files: dict[str, list[dict[str, Any]]] = {
        "rbr_gold": [
            {
                "id": f"g{n}",
                "prompt": f"Question {n}?",
                "response": " ".join([*(SAID[name] for name in KINDS[n % 4]), f"Case {n}."]),
                "propositions": {name: name in KINDS[n % 4] for name in SAID},
                "ideal_response_type": "Hard Refuse",
                "split": "test" if n % 5 == 0 else "train",
            }
            for n in range(80)
        ],
        "pandalm_test": [
            {
                "id": f"h{n}",
                "prompt": f"How {n}?",
                "response_0": "Mix flour and water.",
                "response_1": "The weather.",
                "better_response_id": 0,
                "label_origin": "human",
            }
            for n in range(16)
        ],
        "llm_safeguard": [
            {"id": f"{kind[5:6]}{n}", "prompt": f"{kind} {n}?", "subset": kind}
            for n in range(6)
            for kind in ("data/custom", "data_harmless/custom", "data_harmless/testset")
        ],
    }
    files["llm_safeguard"][0]["prompt"] = "question 3?"
    files["do_not_answer_responses"] = [
        {
            "id": f"{prompt} {model}",
            "prompt": prompt,
            "response": " ".join(SAID[name] for name in kind),
            "model": model,
            "action": action,
            "is_safe": action < 5,
        }
        for prompt in ["question 3?", *(f"May I {n}?" for n in range(6))]
        for model, action, kind in zip("abcd", (0, 1, 5, 4), KINDS, strict=True)
    ]
    del files["do_not_answer_responses"][-1]  # of the last prompt one answer is missing
    for name, rows in files.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return place


@pytest.fixture
def guard(tiny_encoder: Path, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    card = GuardCard(
        taxonomy=load_taxonomy("pku19"),
        backbone=str(tiny_encoder),
        layers=2,
        hidden=8,
        targets=("response",),
        knows_refusals=True,
    )
    (tmp_path / "guard").mkdir()
    GuardModel(card, load_encoder(tiny_encoder, device="cpu")).save(tmp_path / "guard")
    return tmp_path / "guard"


def pool_of(scripts: Any, count: int) -> Any:
    """Four candidates of each prompt; every other prompt is harmful."""
    asked = [Asked(f"p{i}", [{"role": "user", "content": f"ask {i}"}], i % 2 == 0) for i in range(count)]
    parts = {"plain": slice(None, 2), "under the system prompt": slice(2, None)}
    return scripts["rules_judged"].Pool(asked, [[f"{i}/{k}" for k in range(4)] for i in range(count)], parts)


def test_each_prompt_gets_the_candidate_of_the_highest_reward(scripts: Any) -> None:
    pool = pool_of(scripts, 3)
    values = {"0/2": 1.0, "1/3": 5.0, "1/0": 4.0, "2/0": 0.5}

    def reward(exchanges: Sequence[Exchange]) -> list[Score]:
        assert [e.prompt_is_harmful for e in exchanges[::4]] == [True, False, True]
        return [Score(values.get(e.response, 0.0), "higher_is_better") for e in exchanges]

    assert scripts["rules_best_of_n"].choose(pool, reward) == [2, 3, 0]


def test_rates_and_differences_are_those_of_the_candidates_that_were_chosen(scripts: Any) -> None:
    pool = pool_of(scripts, 8)
    table = np.zeros((8, 4))
    table[:, 3] = 1  # what is judged so is the last candidate, written under the system prompt
    chosen = {"reward": [3] * 8, "rules": [0] * 8, "reward and rules": [3, 0] * 4}
    found = scripts["rules_judged"].compared(pool, {"judgemental": table}, chosen)
    rates = {way: told["all"]["judgemental"]["value"] for way, told in found["rates_of_chosen"].items()}
    assert rates == {"random": 0.25, "reward": 1, "rules": 0, "reward and rules": 0.5}
    parts = {part: told["judgemental"]["value"] for part, told in found["rates_of_candidates"].items()}
    assert parts == {"plain": 0, "under the system prompt": 0.5}
    gaps = found["differences"]
    assert gaps["rules less reward"]["all"]["judgemental"]["high"] == -1
    assert gaps["reward and rules less random"]["harmful prompts"]["judgemental"]["value"] == 0.75
    assert gaps["reward and rules less random"]["borderline prompts"]["judgemental"]["value"] == -0.25
    assert gaps["reward and rules less random"]["borderline prompts"]["judgemental"]["clusters"] == 4
    assert "reward less reward" not in gaps


def test_a_graders_errors_are_counted(scripts: Any) -> None:
    said, truth = np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool)
    found = scripts["rules_judged"].agreement(said, truth)
    assert found == pytest.approx({"rows": 5, "true": 3, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})
    nothing = np.zeros(5, bool)
    assert scripts["rules_judged"].agreement(nothing, nothing)["precision"] is None


def test_prompts_that_something_learned_from_are_left_out(scripts: Any, data: Path) -> None:
    seen = {normalise_prompt("Question 3?")}
    drawn = scripts["rules_best_of_n"].choose_prompts(data / "llm_safeguard.jsonl", 20, seen)
    assert sum(row["is_harmful"] for row in drawn) == 5
    assert sum(not row["is_harmful"] for row in drawn) == 6
    assert not any("testset" in row["prompt"] or "question" in row["prompt"] for row in drawn)


@pytest.fixture
def run(
    *,
    scripts: Any,
    data: Path,
    guard: Path,
    tiny_llama: Path,
    tiny_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Runs parts as the command does, and returns what is saved."""
    monkeypatch.setattr(scripts["common"], "RESULTS", tmp_path / "results")
    monkeypatch.setattr(scripts["rules_best_of_n"], "LECTURE", [{"role": "system", "content": "no"}])
    monkeypatch.setattr(scripts["rules_best_of_n"], "SAMPLING", {"temperature": 1.0, "max_new_tokens": 6})
    words = ["rules.py", "--data", str(data), "--runs", str(tmp_path / "runs"), "--guard", str(guard)]
    words += ["--model", str(tiny_llama), "--judge", str(tiny_encoder), "--prompts", "8", "--samples", "4"]
    for item in (f"backbone={tiny_encoder}", "layers=2", "prompts=6", "steps=50"):
        words += ["--set", item]

    def main(*more: str) -> Any:
        monkeypatch.setattr(sys, "argv", [*words, *more])
        scripts["rules"].main()
        return json.loads((tmp_path / "results" / "rules.json").read_text("utf-8"))

    return main


def test_parts_run_one_at_a_time_and_what_is_done_stays(run: Any, tmp_path: Path) -> None:
    first = run("--parts", "split")
    (told,) = first["split"].values()
    assert told["regret"]["positives"] == 4
    assert told["regret"]["grader"] == 1  # a word tells
    both = run("--parts", "cross_validated")
    assert both["split"] == first["split"]
    (told,) = both["cross_validated"].values()
    assert told["judges_user"]["positives"] == 40
    assert told["judges_user"]["grader"] > 0.9
    places = sorted((tmp_path / "runs").glob("benchmark.rules.*"))
    assert len(places) == 1 + 1 + 5  # features once
    times = [(place / "manifest.json").stat().st_mtime_ns for place in places]
    assert run("--parts", "cross_validated")["cross_validated"] == both["cross_validated"]
    assert [(place / "manifest.json").stat().st_mtime_ns for place in places] == times


def test_best_of_n_runs_whole_and_the_order_takes_its_scorer(run: Any, tmp_path: Path) -> None:
    (found,) = run("--parts", "best_of_n")["best_of_n"].values()
    assert found["candidates"]["prompts"] == 8
    assert found["judge"]["judges_user"]["f1"] > 0.9
    random = found["rates_of_chosen"]["random"]
    assert random["all"]["from_the_system_prompt"]["value"] == 0.5
    assert random["harmful prompts"]["harmful"]["clusters"] == 4
    assert found["rates_of_chosen"].keys() == {"random", "reward", "rules", "reward and rules"}
    (scorer,) = (tmp_path / "runs").glob("train.scorer-*")
    order = run("--parts", "order", "--scorer", str(scorer))["order"]
    ((way, told),) = order.items()
    assert way.startswith("beside a scorer")
    assert told["all"]["reward_alone"]["value"] != 0.5  # not all ties: there is a reward
    assert run("--parts", "order")["order"].keys() > {way}


def test_best_of_six_is_judged_by_the_labels_of_people(
    run: Any, scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts["rules"], "ANSWERED", 5)
    (found,) = run("--parts", "best_of_six")["best_of_six"].values()
    assert found["candidates"] == {"models": ["a", "b", "c", "d"], "prompts": 5}  # of 7, seen or not whole 2
    rates = found["rates_of_candidates"]
    assert [rates[model]["harmful"]["value"] for model in "abcd"] == [0, 0, 1, 0]
    assert [rates[model]["refusal"]["value"] for model in "abcd"] == [1, 1, 0, 0]
    assert rates["b"]["judgemental_refusal"]["value"] == 1
    assert found["rates_of_chosen"]["random"]["all"]["harmful"]["value"] == 0.25
    assert found["rates_of_chosen"]["rules"]["all"]["judgemental_refusal"]["value"] == 0
    assert found["rates_of_chosen"]["rules"].keys() == {"all"}  # all prompts ask for harm
    monkeypatch.setattr(scripts["rules"], "ANSWERED", 6)
    with pytest.raises(SystemExit, match="do_not_answer_responses: 5 prompts, expected 6 or more"):
        run("--parts", "best_of_six")
