"""A run's own manifest and card: what was done, with which hashes, and that it is complete."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.data.corpus import corpus_path
from equipoise.errors import ConfigError
from equipoise.lineage import Manifest, content_hash, hash_file, inherited_licences, read_manifest
from equipoise.pipeline.recipe import load_recipe
from equipoise.pipeline.run import run_recipe

Recipe = dict[str, Any]
Write = Callable[[Recipe], Path]


def manifest_of_run(out: Path) -> Manifest:
    return read_manifest(out / "manifest.json")


def test_the_manifest_holds_steps_hashes_licences_versions_and_cost(
    data: Recipe, write: Write, tmp_path: Path, rows: Path
) -> None:
    rows.write_text(rows.read_text("utf-8").replace('"is_safe"', '"licence": "MIT", "is_safe"'), "utf-8")
    recipe, out = load_recipe(write(data)), tmp_path / "out"
    done = run_recipe(recipe, out)
    found = manifest_of_run(out)
    assert (found.step, found.config) == ("run", recipe.model_dump(mode="json", by_alias=True))
    steps: Any = found.notes["steps"]
    for step in done:
        entry = steps[step.name]
        assert entry["run"] == recipe.steps[step.name].run
        assert (entry["key"], entry["outputs"]) == (step.manifest.key, step.manifest.outputs)
        assert out / entry["place"] == step.place
    assert found.outputs == {name: hash_file(out / name) for name in ("half.jsonl", "card.md")}
    united = {licence for step in done for licence in step.manifest.licences}
    assert "MIT" in united
    assert found.licences == sorted(united)
    assert found.versions["python"]
    assert found.wall_seconds == pytest.approx(sum(s.manifest.wall_seconds for s in done), abs=1e-3)
    assert found.cpu_seconds == pytest.approx(sum(s.manifest.cpu_seconds for s in done), abs=1e-3)
    assert found.peak_memory_mib == max(s.manifest.peak_memory_mib for s in done)
    # what no step made is what the whole run read
    assert {name: source.path for name, source in found.inputs.items()} == {
        "rows.files.0": str(rows),
        "lone.files.0": str(corpus_path("pairs")),
        "all.files.1": str(corpus_path("exchanges")),
    }


def test_what_a_run_publishes_hands_its_licences_on(data: Recipe, write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_recipe(load_recipe(write(data)), out)
    found = manifest_of_run(out)
    source = next(iter(found.inputs.values())).model_copy(update={"path": str(out / "half.jsonl")})
    assert inherited_licences([source]) == set(found.licences)
    assert content_hash(out) == content_hash(out)


def test_the_card_names_each_step_where_it_lies_what_it_ended_with_and_what_is_published(
    data: Recipe, write: Write, tmp_path: Path
) -> None:
    data["about"] = "Three steps on data."
    out = tmp_path / "out"
    done = {step.name: step for step in run_recipe(load_recipe(write(data)), out)}
    card = (out / "card.md").read_text("utf-8")
    assert card.startswith("# small\n\nThree steps on data.\n")
    cells = {
        line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:]
        for line in card.splitlines()
        if line.startswith("| ")
    }
    assert list(cells)[2:] == ["rows", "lone", "all", "parts"]
    assert cells["rows"][0] == "data.check"
    assert cells["rows"][2] == "records: 20; findings: 0; dropped: 0; flipped: 0; kept: 0 |"
    place = f"steps/parts-{done['parts'].manifest.key[:8]}"
    assert cells["parts"][1] == f"[{place}]({place}/card.md)"
    for line in card.splitlines():
        for target in line.split("](")[1:]:
            assert (out / target.split(")")[0]).exists(), line
    assert "- [half.jsonl](half.jsonl)" in card
    licences = card.split("## Licences of what it was made from\n\n")[1].splitlines()
    assert licences == [f"- {name}" for name in manifest_of_run(out).licences]


def test_the_same_rows_and_settings_elsewhere_give_the_same_key_and_hashes(
    data: Recipe, write: Write, tmp_path: Path, rows: Path
) -> None:
    run_recipe(load_recipe(write(data)), tmp_path / "a")
    moved = rows.rename(tmp_path / "moved.jsonl")
    run_recipe(load_recipe(write(data), [f"steps.rows.files=[{moved}]"]), tmp_path / "b" / "c")
    one, other = manifest_of_run(tmp_path / "a"), manifest_of_run(tmp_path / "b" / "c")
    assert one.key == other.key
    assert one.outputs == other.outputs
    run_recipe(load_recipe(write(data), [f"steps.rows.files=[{moved}]", "seed=4"]), tmp_path / "d")
    assert manifest_of_run(tmp_path / "d").key != one.key


def test_a_run_that_stopped_in_a_late_step_is_not_complete_and_ends_with_the_same_hashes(
    data: Recipe, write: Write, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_recipe(load_recipe(write(data)), whole)
    with pytest.raises(ConfigError, match="shares that add up to 1"):  # what only the last step knows
        run_recipe(load_recipe(write(data), ["shares.test=0.4"]), out)
    assert not (out / "manifest.json").exists()
    assert not (out / "card.md").exists()
    assert [step.skipped for step in run_recipe(load_recipe(write(data)), out)] == [True, True, True, False]
    resumed, expected = manifest_of_run(out), manifest_of_run(whole)
    assert (resumed.key, resumed.outputs, resumed.notes) == (expected.key, expected.outputs, expected.notes)


def test_a_run_is_not_complete_while_it_is_changed(data: Recipe, write: Write, tmp_path: Path) -> None:
    recipe, out = load_recipe(write(data)), tmp_path / "out"
    run_recipe(recipe, out)
    first = manifest_of_run(out)
    run_recipe(recipe, out, only="all")  # nothing was done: it is as complete as before
    assert manifest_of_run(out) == first
    changed = load_recipe(write(data), ["seed=4"])
    run_recipe(changed, out, only="all")
    assert not (out / "manifest.json").exists()
    assert not (out / "card.md").exists()
    run_recipe(changed, out)
    assert manifest_of_run(out).key != first.key
    run_recipe(recipe, out)
    assert manifest_of_run(out).key == first.key
    forced = run_recipe(recipe, out, force="all")
    assert [step.skipped for step in forced] == [True, True, False, True]
    assert manifest_of_run(out).outputs == first.outputs


def test_a_published_file_that_was_deleted_is_made_again(data: Recipe, write: Write, tmp_path: Path) -> None:
    recipe, out = load_recipe(write(data)), tmp_path / "out"
    run_recipe(recipe, out)
    half = (out / "half.jsonl").read_bytes()
    (out / "half.jsonl").unlink()
    run_recipe(recipe, out)
    assert (out / "half.jsonl").read_bytes() == half
    assert json.loads((out / "manifest.json").read_text("utf-8"))["outputs"].keys() == {
        "half.jsonl",
        "card.md",
    }


def test_a_file_from_outside_may_be_published(data: Recipe, write: Write, tmp_path: Path) -> None:
    data["publish"]["corpus/pairs.jsonl"] = "${builtin.pairs}"
    out = tmp_path / "out"
    run_recipe(load_recipe(write(data)), out)
    assert manifest_of_run(out).outputs["corpus/pairs.jsonl"] == hash_file(corpus_path("pairs"))
    assert hash_file(out / "corpus" / "pairs.jsonl") == hash_file(corpus_path("pairs"))
