"""A recipe runs in order and does nothing twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.data.corpus import PARTS, corpus_path
from equipoise.errors import ConfigError
from equipoise.lineage import hash_file
from equipoise.pipeline.recipe import load_recipe
from equipoise.pipeline.references import resolve
from equipoise.pipeline.run import run_recipe
from equipoise.pipeline.summary import Finished

Recipe = dict[str, Any]
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
        names = {f.name for f in step.place.parent.iterdir()}
        assert names >= {step.place.name, f"{step.place.name}.manifest.json"}
        assert all(name.startswith(step.place.name) for name in names)


def test_a_setting_keeps_its_type(data: Recipe, write: Write, tmp_path: Path) -> None:
    parts = by_name(run_recipe(load_recipe(write(data)), tmp_path / "out"))["parts"]
    config = parts.manifest.config
    assert config["seed"] == 3
    assert config["stratify"] is False
    assert config["fractions"] == {"train": 0.5, "test": 0.5}


def test_the_second_run_skips_everything_and_writes_nothing(
    data: Recipe, write: Write, tmp_path: Path
) -> None:
    recipe, out = load_recipe(write(data)), tmp_path / "out"
    assert not any(skipped(run_recipe(recipe, out)).values())
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*")}
    assert all(skipped(run_recipe(recipe, out)).values())
    assert {f: f.stat().st_mtime_ns for f in out.rglob("*")} == before


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
    left = out / "tmp.config.yaml.ab12_xyz"  # a kill in the first moment leaves this
    left.mkdir()
    (left / "config.yaml").write_text("cut o")
    assert len(run_recipe(recipe, out)) == 4
    assert not left.exists()


def test_only_runs_what_is_needed_and_publishes_nothing(data: Recipe, write: Write, tmp_path: Path) -> None:
    recipe, out = load_recipe(write(data)), tmp_path / "out"
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
    files = ["card.md", "config.yaml", "half.jsonl", "manifest.json", "steps"]
    assert sorted(f.name for f in out.iterdir()) == files
    data["publish"] |= {"half.jsonl": "${steps.lone}", "more": "${steps.parts}/no such file"}
    with pytest.raises(ConfigError, match=r"'small': publish more: .*parts-.*no such file: no such file"):
        run_recipe(load_recipe(write(data)), out)
    assert (out / "half.jsonl").read_bytes() == half
    assert sorted(f.name for f in out.iterdir()) == ["config.yaml", "half.jsonl", "steps"]


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_corpus_can_be_named_in_a_recipe(part: str) -> None:
    path = corpus_path(part)
    assert path.is_file()
    assert resolve({"files": [f"${{builtin.{part}}}"]}, {}, {}) == {"files": [str(path)]}
