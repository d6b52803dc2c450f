"""`equipoise sweep` as a user types it: a recipe of tiny models, from labels to the front."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from equipoise.cli.main import app
from equipoise.config import to_yaml
from equipoise.data.io import write_records
from equipoise.errors import ConfigError, RunStoppedError
from equipoise.lineage import read_manifest
from equipoise.records import Answer, Exchange, Pair, Prompt

Call = Callable[..., Result]
Tell = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_encoder: Path) -> Path:
    """A folder with a recipe: guard, scorer, a policy with a knob, and evaluations before and after."""
    place = tmp_path_factory.mktemp("shop")
    exchanges = [
        Exchange(
            id=f"e{i}",
            prompt=f"ask {i}",
            response="bad words" if i % 2 else "good words",
            is_safe=not i % 2,
            licence="CC0-1.0",
        )
        for i in range(8)
    ]
    answers = (Answer(response="good answer", is_safe=True), Answer(response="bad answer", is_safe=False))
    pairs = [
        Pair(id=f"p{i}", prompt=f"ask {i}", answers=answers, better=i % 2, safer=0, licence="CC0-1.0")
        for i in range(6)
    ]
    prompts = [Prompt(id=f"q{i}", prompt=f"question {i}", is_harmful=i < 4) for i in range(8)]
    write_records(place / "e.jsonl", exchanges)
    write_records(place / "p.jsonl", pairs)
    write_records(place / "q.jsonl", prompts)
    heads = {"backbone": str(tiny_encoder), "layers": 1, "hidden": 4, "optim": {"epochs": 1}}
    judged = {"suite": str(place / "q.jsonl"), "guard": "${steps.guard}", "scorer": "${steps.scorer}"}
    judged |= {"max_new_tokens": 4, "refusals": "prefix"}
    optim = {"lr": 0.01, "batch_size": 2, "epochs": 1}
    recipe = {
        "name": "small",
        "settings": {"beta": 0.1, "unused": 0},
        "steps": {
            "guard": {"run": "train.guard", "with": {"exchanges": [str(place / "e.jsonl")], **heads}},
            "scorer": {"run": "train.scorer", "with": {"pairs": [str(place / "p.jsonl")], **heads}},
            "policy": {
                "run": "train.preference",
                "with": {
                    "pairs": [str(place / "p.jsonl")],
                    "model": str(tiny_llama),
                    "objective": "dpo",
                    "preference": "safer",
                    "objective_params": {"beta": "${settings.beta}"},
                    "optim": optim,
                },
            },
            "base": {"run": "evaluate", "with": {"model": str(tiny_llama), **judged}},
            "aligned": {"run": "evaluate", "with": {"model": "${steps.policy}", **judged}},
        },
    }
    (place / "recipe.yaml").write_text(to_yaml(recipe), "utf-8")
    return place


def test_a_sweep_runs_each_value_once_and_says_which_failed(call: Call, tell: Tell, shop: Path) -> None:
    out = shop / "out"
    words = ("sweep", shop / "recipe.yaml", "--knob", "settings.beta", "--out", out)
    with pytest.raises(RunStoppedError, match=r"^1 of the values failed: -1$"):
        call(*words, "--values", "0.1,-1,5")
    result = CliRunner().invoke(app, [str(word) for word in (*words, "--values", "0.1,-1,5", "--json")])
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["skipped"] is True
    assert [each["name"] for each in found["candidates"]] == ["base", "0.1", "5"]
    assert "beta" in found["failed"]["-1"]
    assert "settings.beta=-1: failed: " in result.stderr
    assert "guard: done before" in result.stderr
    assert "done in" not in result.stderr  # what ended well was not done again

    steps = sorted(path.name.partition("-")[0] for path in (out / "steps").iterdir())
    assert steps == ["aligned", "aligned", "base", "guard", "policy", "policy", "scorer", "sweep"]
    assert found["helpfulness"] == "Reward, benign prompts"
    assert (found["harmful_prompts"], found["benign_prompts"]) == (4, 4)
    assert found["reference"] == [
        found["candidates"][0][good]["value"] for good in ("helpfulness", "harmlessness")
    ]
    rewards = {each["helpfulness"]["value"] for each in found["candidates"]}
    assert len(rewards) == 3  # the knob decides something
    places = {read_manifest(f / "manifest.json").key: f for f in (out / "steps").glob("aligned-*")}
    betas = {}
    for name in ("0.1", "5"):
        policy = Path(
            str(read_manifest(places[found["evaluations"][name]] / "manifest.json").inputs["model"].path)
        )
        betas[name] = read_manifest(policy / "manifest.json").config["objective_params"]
    assert betas == {"0.1": {"beta": 0.1}, "5": {"beta": 5}}

    # one more value: the others are not done again; the step's own name of the knob is as good
    more = tell(
        "sweep",
        shop / "recipe.yaml",
        "--knob",
        "steps.policy.objective_params.beta",
        "--out",
        out,
        "--values",
        "0.1,5",
        "--helpfulness",
        "truly_safe",
        "--reference",
        "0,0.1",
    )
    assert more["helpfulness"] == "Truly safe"
    assert (more["reference"], more["reference_run"], more["failed"]) == ([0, 0.1], None, {})
    assert {n: more["evaluations"][n] for n in ("0.1", "5")} == {
        n: found["evaluations"][n] for n in ("0.1", "5")
    }
    assert len(list((out / "steps").glob("sweep-*"))) == 2
    text = (out / "sweep.md").read_text("utf-8")
    assert text.startswith("# Trade-off over `steps.policy.objective_params.beta`\n")
    assert "Fewer than 30 prompts of a kind" in text
    assert "<svg" in (out / "sweep.svg").read_text("utf-8")


def test_the_cause_is_raised_where_no_value_ran(call: Call, shop: Path) -> None:
    with pytest.raises(ConfigError, match="beta"):
        call("sweep", shop / "recipe.yaml", "--knob", "beta", "--values=-1,-2", "--out", shop / "none")
    assert not (shop / "none" / "sweep.json").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--knob", "bete", "--values", "1"], r"no such setting 'bete' .did you mean 'beta'"),
        (
            ["--knob", "unused", "--values", "1"],
            r"knob: no evaluation depends on unused; evaluations: base, ali",
        ),
        (
            ["--knob", "settings", "--values", "1"],
            r"knob: got 'settings'; expected settings.KEY or steps.STEP",
        ),
        (["--knob", "beta", "--values", "1,1"], r"values: 1 stands twice"),
        (["--knob", "beta", "--values", ""], r"values: got ''; expected one or more"),
        (["--knob", "beta", "--values", "base"], r"values: 'base' is the name of the base in the front"),
        (["--knob", "beta", "--values", "1,high"], r"step policy: objective_params.beta: .*got 'high'"),
        (
            ["--knob", "beta", "--values", "1", "--point", "base"],
            r"point: no step 'base'; evaluations that depend",
        ),
        (["--knob", "beta", "--values", "1", "--base", "bas"], r"base: no step 'bas' .did you mean 'base'"),
        (["--knob", "beta", "--values", "1", "--reference", "1"], r"sweep: reference"),
        (
            ["--knob", "beta", "--values", "1", "--helpfulness", "reward"],
            r"sweep: helpfulness: .*got 'reward'",
        ),
        (
            ["--knob", "steps.guard.hidden", "--values", "4,8", "--point", "aligned"],
            r"knob: steps.guard.hidden decides guard, by which step aligned is judged",
        ),
        (
            ["--knob", "beta", "--values", "1", "--set", "steps.base.samples=2"],
            r"steps base and aligned do not compare: samples is not the same",
        ),
        (
            [
                *("--knob", "beta", "--values", "1", "--helpfulness", "reward_benign", "--set"),
                "steps.aligned.scorer=",
            ],
            r"helpfulness: step aligned has no scorer, got reward_benign",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(call: Call, shop: Path, words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        call("sweep", shop / "recipe.yaml", *words, "--out", shop / "mistake")
    assert not (shop / "mistake").exists()
