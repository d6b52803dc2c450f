"""A recipe runs in order, does nothing twice, and survives being killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.config import Config, to_yaml
from equipoise.data.corpus import corpus_path
from equipoise.errors import ConfigError
from equipoise.lineage import hash_file, read_manifest
from equipoise.pipeline import (
    STEPS,
    Finished,
    built_in_recipe,
    check_settings,
    load_recipe,
    needed_by,
    run_recipe,
    step_of,
)

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
Recipe = dict[str, Any]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Twenty exchanges, safe and unsafe."""
    path = tmp_path / "rows.jsonl"
    lines = [
        {"id": f"r{n}", "prompt": f"question {n}", "response": f"answer {n} bread", "is_safe": n % 2 == 0}
        for n in range(20)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture
def data(rows: Path) -> Recipe:
    """Three steps on data: two files, then a folder; `lone` is needed by nobody."""
    return {
        "name": "small",
        "settings": {"seed": 3, "stratify": False, "part": "train", "shares": {"train": 0.5, "test": 0.5}},
        "steps": {
            "rows": {"run": "data.check", "with": {"files": [str(rows)]}},
            "lone": {"run": "data.merge", "with": {"files": ["${builtin.pairs}"]}},
            "all": {
                "run": "data.merge",
                "with": {"files": ["${steps.rows}", "${builtin.exchanges}"]},
                "file": "merged.jsonl",
            },
            "parts": {
                "run": "data.split",
                "with": {
                    "files": ["${steps.all}"],
                    "fractions": "${settings.shares}",
                    "seed": "${settings.seed}",
                    "stratify": "${settings.stratify}",
                },
            },
        },
        "publish": {"half.jsonl": "${steps.parts}/${settings.part}/merged.jsonl"},
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Recipe], Path]:
    def to_file(recipe: Recipe) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(to_yaml(recipe), "utf-8")
        return path

    return to_file


Write = Callable[[Recipe], Path]


def by_name(done: list[Finished]) -> dict[str, Finished]:
    return {step.name: step for step in done}


def skipped(done: list[Finished]) -> dict[str, bool]:
    return {step.name: step.skipped for step in done}


def test_steps_run_in_order_and_references_lead_to_what_was_made(
    data: Recipe, write: Write, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run_recipe(load_recipe(write(data)), out)
    assert [step.name for step in done] == ["rows", "lone", "all", "parts"]
    steps = by_name(done)
    merged = steps["all"].manifest.inputs
    assert merged["files.0"].sha256 == hash_file(steps["rows"].place)
    assert merged["files.1"].sha256 == hash_file(corpus_path("exchanges"))
    assert steps["parts"].manifest.inputs["files.0"].path == str(steps["all"].place)
    assert steps["parts"].place == out / "steps" / f"parts-{steps['parts'].manifest.key[:8]}"


def test_a_step_that_writes_a_file_has_it_in_a_folder_of_its_own(
    data: Recipe, write: Write, tmp_path: Path
) -> None:
    steps = by_name(run_recipe(load_recipe(write(data)), tmp_path / "out", only="all"))
    assert steps["rows"].place.name == "rows.jsonl"
    assert steps["all"].place.name == "merged.jsonl"
    for step in steps.values():
        assert step.place.parent == tmp_path / "out" / "steps" / f"{step.name}-{step.manifest.key[:8]}"
        assert sorted(f.name for f in step.place.parent.iterdir()) == [
            step.place.name,
            f"{step.place.name}.manifest.json",
        ]


def test_a_setting_keeps_its_type(data: Recipe, write: Write, tmp_path: Path) -> None:
    parts = by_name(run_recipe(load_recipe(write(data)), tmp_path / "out"))["parts"]
    config = parts.manifest.config
    assert config["seed"] == 3
    assert config["stratify"] is False
    assert config["fractions"] == {"train": 0.5, "test": 0.5}


def test_set_changes_a_setting_or_one_of_a_step(data: Recipe, write: Write) -> None:
    recipe = load_recipe(write(data), ["shares.test=0.25", "shares.train=0.75", "steps.all.files=[]"])
    assert recipe.settings["shares"] == {"train": 0.75, "test": 0.25}
    assert recipe.steps["all"].with_ == {"files": []}
    del data["steps"]["lone"]["with"]
    assert load_recipe(write(data), ["steps.lone.a.b=1"]).steps["lone"].with_ == {"a": {"b": 1}}


def with_(recipe: Recipe, step: str, **values: Any) -> Recipe:
    recipe["steps"][step]["with"] |= values
    return recipe


WRONG: dict[str, tuple[Callable[[Recipe], Any], str]] = {
    "kind of step": (
        lambda r: r["steps"]["all"].update(run="data.merg"),
        r"step all: no step 'data.merg' .did you mean 'data.merge'\?.; known: data.import, ",
    ),
    "key of the recipe": (
        lambda r: r.update(setings={}),
        r"setings: no such setting .did you mean 'settings'",
    ),
    "key of a step": (
        lambda r: r["steps"]["all"].update(wiht={}),
        r"steps.all.wiht: no such setting .did you mean 'with'",
    ),
    "setting": (
        lambda r: with_(r, "parts", seed="${settings.sed}"),
        r"'\$\{settings.sed\}' names no setting",
    ),
    "setting, near": (lambda r: with_(r, "parts", seed="${settings.sed}"), r"did you mean 'settings.seed'"),
    "setting inside one": (
        lambda r: with_(r, "parts", seed="${settings.shares.tran}"),
        r"did you mean 'settings.shares.train'",
    ),
    "word before the dot": (
        lambda r: with_(r, "parts", seed="${step.rows}"),
        r"'\$\{step.rows\}' names no setting and no step .did you mean 'steps.rows'",
    ),
    "step": (
        lambda r: with_(r, "all", files=["${steps.row}"]),
        r"step all: 'row' is no step before it .did you mean 'rows'",
    ),
    "later step": (
        lambda r: with_(r, "rows", files=["${steps.all}"]),
        r"step rows: 'all' is no step before it",
    ),
    "step itself": (
        lambda r: with_(r, "all", files=["${steps.all}"]),
        r"step all: 'all' is no step before it",
    ),
    "corpus": (
        lambda r: with_(r, "all", files=["${builtin.exchange}"]),
        r"no built-in corpus 'exchange' .did you mean 'exchanges'",
    ),
    "step to publish": (
        lambda r: r["publish"].update(a="${steps.part}/a"),
        r"'\$\{steps.part\}' names no setting and no step .did you mean 'steps.parts'",
    ),
    "no steps": (lambda r: r.update(steps={}), r"steps: "),
    "steps as a list": (lambda r: r.update(steps=["a"]), r"recipe.yaml: steps: .*got \['a'\]"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_in_a_recipe_is_one_line_with_the_near_name(data: Recipe, write: Write, what: str) -> None:
    change, message = WRONG[what]
    change(data)
    with pytest.raises(ConfigError, match=message) as refused:
        load_recipe(write(data), ["seed=4"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=4", "--set sed=4: no such setting 'sed' .did you mean 'seed'.*; known: seed, stratify, "),
        ("shares.tran=1", "no such setting 'tran' .did you mean 'train'"),
        ("seed.more=1", "no such setting 'more'; known: none"),
        (
            "steps.al.files=[]",
            r"expected steps\.STEP\.SETTING=value .did you mean 'all'.*; steps: rows, lone",
        ),
        ("steps.all=[]", r"expected steps\.STEP\.SETTING=value"),
        ("steps=[]", r"expected steps\.STEP\.SETTING=value"),
        ("seed", "expected key=value"),
    ],
)
def test_an_override_of_nothing_is_refused(data: Recipe, write: Write, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(data), [override])


def test_a_recipe_without_settings_has_none_to_set(data: Recipe, write: Write) -> None:
    recipe = {"name": "bare", "steps": {"rows": data["steps"]["rows"]}}
    with pytest.raises(ConfigError, match="no such setting 'seed'; known: none"):
        load_recipe(write(recipe), ["seed=1"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: with_(r, "parts", stratfy=True),
            r"step parts: stratfy: no such .*did you mean 'stratify'",
        ),
        (lambda r: with_(r, "parts", seed="many"), r"step parts: seed: .*got 'many'"),
        (
            lambda r: r["steps"]["parts"].update(file="a.jsonl"),
            r"step parts: file: data.split writes a folder",
        ),
    ],
)
def test_a_wrong_setting_of_the_last_step_is_found_before_the_first_runs(
    data: Recipe, write: Write, tmp_path: Path, change: Callable[[Recipe], Any], message: str
) -> None:
    change(data)
    with pytest.raises(ConfigError, match=message):
        run_recipe(load_recipe(write(data)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_second_run_skips_everything_and_writes_nothing(
    data: Recipe, write: Write, tmp_path: Path
) -> None:
    recipe, out = load_recipe(write(data)), tmp_path / "out"
    assert not any(skipped(run_recipe(recipe, out)).values())
    before = {f: f.stat().st_mtime_ns for f in (out / "steps").rglob("*")}
    assert all(skipped(run_recipe(recipe, out)).values())
    assert {f: f.stat().st_mtime_ns for f in (out / "steps").rglob("*")} == before


def test_a_changed_setting_leaves_the_old_results(data: Recipe, write: Write, tmp_path: Path) -> None:
    path, out = write(data), tmp_path / "out"
    old = by_name(run_recipe(load_recipe(path), out))["parts"].place
    changed = load_recipe(path, ["seed=4"])
    done = run_recipe(changed, out)
    assert skipped(done) == {"rows": True, "lone": True, "all": True, "parts": False}
    new = by_name(done)["parts"].place
    assert new != old
    assert (old / "manifest.json").exists()
    assert (out / "half.jsonl").read_bytes() == (new / "train" / "merged.jsonl").read_bytes()
    assert all(skipped(run_recipe(load_recipe(path), out)).values())  # and back again
    assert (out / "half.jsonl").read_bytes() == (old / "train" / "merged.jsonl").read_bytes()


def test_changed_rows_are_seen_without_force(data: Recipe, write: Write, tmp_path: Path, rows: Path) -> None:
    recipe, out = load_recipe(write(data)), tmp_path / "out"
    run_recipe(recipe, out)
    rows.write_text(rows.read_text("utf-8").replace("answer 7", "another answer"), "utf-8")
    assert skipped(run_recipe(recipe, out)) == {"rows": False, "lone": True, "all": False, "parts": False}


def test_a_folder_of_another_recipe_is_refused(data: Recipe, write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_recipe(load_recipe(write(data)), out)
    before = (out / "config.yaml").read_bytes()
    data["name"] = "other"
    with pytest.raises(ConfigError, match=r"out: holds a run of another recipe"):
        run_recipe(load_recipe(write(data)), out)
    assert (out / "config.yaml").read_bytes() == before


def test_a_folder_with_other_things_in_it_is_refused(data: Recipe, write: Write, tmp_path: Path) -> None:
    recipe = load_recipe(write(data))
    with pytest.raises(ConfigError, match="exists and is no run of equipoise"):
        run_recipe(recipe, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "tmp.config.yaml").write_text("cut o")  # a kill in the first moment leaves this
    assert len(run_recipe(recipe, out)) == 4


def test_only_runs_what_is_needed_and_publishes_nothing(data: Recipe, write: Write, tmp_path: Path) -> None:
    recipe, out = load_recipe(write(data)), tmp_path / "out"
    assert needed_by(recipe, "parts") == {"rows", "all", "parts"}
    assert needed_by(recipe, "lone") == {"lone"}
    assert [step.name for step in run_recipe(recipe, out, only="all")] == ["rows", "all"]
    assert not (out / "half.jsonl").exists()
    assert skipped(run_recipe(recipe, out)) == {"rows": True, "lone": False, "all": True, "parts": False}


def test_force_step_does_one_step_again(data: Recipe, write: Write, tmp_path: Path) -> None:
    recipe, out = load_recipe(write(data)), tmp_path / "out"
    before = by_name(run_recipe(recipe, out))
    done = run_recipe(recipe, out, force="all")
    # what it made is the same again, so that nothing after it has to be
    assert skipped(done) == {"rows": True, "lone": True, "all": False, "parts": True}
    assert by_name(done)["all"].manifest.outputs == before["all"].manifest.outputs


@pytest.mark.parametrize("option", ["only", "force"])
def test_a_step_to_run_that_is_not_there_is_named(
    data: Recipe, write: Write, tmp_path: Path, option: str
) -> None:
    recipe = load_recipe(write(data))
    with pytest.raises(ConfigError, match=r"no step 'part' .did you mean 'parts'.*; steps: rows, lone, all"):
        run_recipe(recipe, tmp_path / "out", **{option: "part"})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_what_is_published_is_whole_or_as_it_was(data: Recipe, write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    parts = by_name(run_recipe(load_recipe(write(data)), out))["parts"].place
    half = (out / "half.jsonl").read_bytes()
    assert half == (parts / "train" / "merged.jsonl").read_bytes()
    assert sorted(f.name for f in out.iterdir()) == ["config.yaml", "half.jsonl", "steps"]
    data["publish"]["half.jsonl"] = "${steps.parts}/no such file"
    with pytest.raises(FileNotFoundError):
        run_recipe(load_recipe(write(data)), out)
    assert (out / "half.jsonl").read_bytes() == half
    assert sorted(f.name for f in out.iterdir()) == ["config.yaml", "half.jsonl", "steps"]


@pytest.mark.parametrize("name", STEPS)
def test_every_kind_of_step_is_there_and_takes_settings(name: str) -> None:
    step = step_of(name)
    assert issubclass(step.config, Config)
    assert step.config is not Config
    assert callable(step.build)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_that_we_publish_loads_and_its_settings_fit(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.about
    check_settings(recipe, recipe.steps)


def test_a_recipe_that_ships_is_found_by_name() -> None:
    assert load_recipe(built_in_recipe("quickstart")).name == "quickstart"
    with pytest.raises(ConfigError, match="no recipe 'quickstrat' ships"):
        built_in_recipe("quickstrat")


def command(path: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "equipoise", "run", str(path), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def stop_in_training(path: Path, out: Path, sign: int, after: int) -> subprocess.Popen[str]:
    """Start the run, wait for a checkpoint after step `after`, and send the signal."""
    process = command(path, out)
    until = time.monotonic() + 60
    while newest_checkpoint(out) <= after and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(sign)
    return process


def newest_checkpoint(out: Path) -> int:
    sealed = out.glob("steps/guard-*/scratch/checkpoints/checkpoint-*/complete.json")
    return max((int(path.parent.name.split("-")[1]) for path in sealed), default=0)


@pytest.mark.slow  # three processes that load torch
def test_a_run_killed_in_training_goes_on_and_ends_with_the_same_bytes(
    rows: Path, write: Write, tiny_encoder: Path, tmp_path: Path
) -> None:
    """Once interrupted as by Ctrl-C, once killed without warning, then left to end."""
    import torch

    optim = {"epochs": 60, "batch_size": 8, "checkpoint_every": 10, "device": "cpu", "lr": 0.001}
    guard = {"exchanges": ["${steps.rows}"], "backbone": str(tiny_encoder), "layers": 2, "hidden": 16}
    path = write(
        {
            "name": "slow",
            "steps": {
                "rows": {"run": "data.check", "with": {"files": [str(rows)]}},
                "guard": {"run": "train.guard", "with": {**guard, "tune": "full", "optim": optim}},
            },
            "publish": {"weights.safetensors": "${steps.guard}/weights.safetensors"},
        }
    )
    out = tmp_path / "out"
    first = stop_in_training(path, out, signal.SIGINT, after=0)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 3, said
    assert said.splitlines()[-1] == "stopped: interrupted; the same command resumes"
    assert "Traceback" not in said
    kept = newest_checkpoint(out)
    assert kept > 0

    second = stop_in_training(path, out, signal.SIGKILL, after=kept)
    second.communicate(timeout=60)
    assert second.returncode == -signal.SIGKILL
    assert newest_checkpoint(out) > kept  # it went on from there
    assert not list(out.glob("steps/guard-*/manifest.json"))
    assert not (out / "weights.safetensors").exists()

    third = command(path, out)
    _, said = third.communicate(timeout=120)
    assert third.returncode == 0, said
    assert "[1/2] rows: done before" in said

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = by_name(run_recipe(load_recipe(path), tmp_path / "whole"))["guard"]
    finally:
        torch.set_num_threads(threads)
    (place,) = out.glob("steps/guard-*")
    resumed = read_manifest(place / "manifest.json")
    assert (resumed.attempts, whole.manifest.attempts) == (3, 1)
    assert resumed.key == whole.manifest.key
    assert resumed.outputs == whole.manifest.outputs
    assert "weights.safetensors" in resumed.outputs
    assert hash_file(out / "weights.safetensors") == resumed.outputs["weights.safetensors"]
    assert not (place / "scratch").exists()
