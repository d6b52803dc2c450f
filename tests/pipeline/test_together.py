"""Several processes that run one recipe into one folder at the same time."""

import fcntl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from equipoise.config import read_yaml
from equipoise.lineage import hash_file, read_manifest
from equipoise.pipeline.recipe import load_recipe
from equipoise.pipeline.run import run_recipe

Recipe = dict[str, Any]
Write = Callable[[Recipe], Path]
AtOnce = Callable[[str, Sequence[str]], list[str]]

SCRIPT = """
import sys
from pathlib import Path
from equipoise.pipeline.recipe import load_recipe
from equipoise.pipeline.run import run_recipe

recipe = load_recipe(Path("recipe.yaml"), sys.argv[1:])
print("ready", flush=True)
sys.stdin.readline()
run_recipe(recipe, Path("out"))
"""


def test_the_steps_are_made_once_and_the_folder_is_that_of_one_of_them(
    data: Recipe, write: Write, tmp_path: Path, at_once: AtOnce
) -> None:
    write(data)
    said = at_once(SCRIPT, ["seed=3", "seed=3", "seed=4"])
    out = tmp_path / "out"
    made = {path: read_manifest(path) for path in (out / "steps").glob("*/*manifest.json")}
    assert len(made) == 5  # the split twice, the others once
    done = [line for text in said for line in text.splitlines() if ": done in " in line]
    assert len(done) == 5
    for path, manifest in made.items():
        assert manifest.attempts == 1
        assert {name: hash_file(path.parent / name) for name in manifest.outputs} == manifest.outputs
    whole = read_manifest(out / "manifest.json")
    assert whole.config == read_yaml(out / "config.yaml")
    assert {name: hash_file(out / name) for name in whole.outputs} == whole.outputs
    names = ["card.md", "config.yaml", "half.jsonl", "manifest.json", "steps"]
    assert sorted(path.name for path in out.iterdir()) == names


def test_a_folder_that_is_complete_is_looked_at_without_a_lock(
    data: Recipe, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a folder that may not be written to has no place for a lock")

    recipe, out = load_recipe(write(data)), tmp_path / "out"
    run_recipe(recipe, out)
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert all(step.skipped for step in run_recipe(recipe, out))
