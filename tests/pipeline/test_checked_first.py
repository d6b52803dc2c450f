"""What can be known to be wrong is said before anything runs, and leaves nothing behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.errors import ConfigError, DataError, ModelError
from equipoise.pipeline.recipe import load_recipe
from equipoise.pipeline.run import run_recipe

Recipe = dict[str, Any]
Write = Callable[[Recipe], Path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r["steps"]["parts"]["with"].update(stratfy=True),
            r"step parts: stratfy: no such .*did you mean 'stratify'",
        ),
        (lambda r: r["steps"]["parts"]["with"].update(seed="many"), r"step parts: seed: .*got 'many'"),
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


def test_a_missing_input_of_the_last_step_names_the_step_its_setting_and_that_of_the_recipe(
    data: Recipe, write: Write, tmp_path: Path
) -> None:
    data["settings"]["more"] = {"dir": str(tmp_path)}
    data["steps"]["parts"]["with"]["files"] = ["${steps.all}", "${settings.more.dir}/gone.jsonl"]
    gone, out = tmp_path / "gone.jsonl", tmp_path / "runs" / "out"
    with pytest.raises(DataError) as refused:
        run_recipe(load_recipe(write(data)), out)
    assert str(refused.value) == (
        f"step parts: files.1: {gone}: no such file or folder (from the setting more.dir)"
    )
    assert not out.parent.exists()
    data["steps"]["parts"]["with"]["files"] = [str(gone)]
    with pytest.raises(DataError, match=r"^step parts: files\.0: .*gone\.jsonl: no such file or folder$"):
        run_recipe(load_recipe(write(data)), out)


def test_an_input_is_not_missed_by_a_run_that_does_not_need_it(
    data: Recipe, write: Write, tmp_path: Path
) -> None:
    data["steps"]["parts"]["with"]["files"] = [str(tmp_path / "gone.jsonl")]
    assert [step.name for step in run_recipe(load_recipe(write(data)), tmp_path / "out", only="all")]


def test_a_model_that_is_not_installed_is_said_before_the_first_step(
    data: Recipe, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cache"))
    data["steps"]["guard"] = {"run": "train.guard", "with": {"exchanges": ["${steps.rows}"]}}
    with pytest.raises(ModelError, match=r"^step guard: backbone: model 'minilm' is not installed; run: "):
        run_recipe(load_recipe(write(data)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mistake_leaves_a_run_that_is_complete_as_it_was(
    data: Recipe, write: Write, tmp_path: Path, rows: Path
) -> None:
    out = tmp_path / "out"
    run_recipe(load_recipe(write(data)), out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(DataError, match="no such file or folder"):
        run_recipe(load_recipe(write(data), [f"steps.lone.files=[{rows}.gone]"]), out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_first_step_that_refuses_its_data_leaves_nothing_and_a_later_one_leaves_what_was_done(
    data: Recipe, write: Write, tmp_path: Path, rows: Path
) -> None:
    bad, out = tmp_path / "bad.jsonl", tmp_path / "out"
    bad.write_text('{"id": "b"\n', "utf-8")
    with pytest.raises(DataError):
        run_recipe(load_recipe(write(data), [f"steps.rows.files=[{bad}]"]), out)
    assert not out.exists()
    with pytest.raises(DataError):
        run_recipe(load_recipe(write(data), [f"steps.lone.files=[{bad}]"]), out)
    assert sorted(path.name.split("-")[0] for path in out.glob("*/*")) == ["rows"]
    assert (out / "config.yaml").exists()
