"""`equipoise run` and `equipoise demo`: what they print, where they write, how they end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from equipoise.config import to_yaml
from equipoise.errors import ConfigError, DataError, ModelError

Call = Callable[..., Result]
Tell = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run, with a recipe of two steps."""
    monkeypatch.chdir(tmp_path)
    recipe = {
        "name": "small",
        "settings": {"part": "pairs", "seed": 0},
        "steps": {
            "pairs": {"run": "data.check", "with": {"files": ["${builtin.pairs}"]}},
            "parts": {"run": "data.split", "with": {"files": ["${steps.pairs}"], "seed": "${settings.seed}"}},
        },
        "publish": {"parts.md": "${steps.parts}/card.md"},
    }
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe), "utf-8")
    return tmp_path


def test_a_run_prints_what_it_published_and_tells_the_rest_on_stderr(call: Call, folder: Path) -> None:
    result = call("run", "recipe.yaml", "--out", folder / "out")
    assert result.exit_code == 0
    assert result.stdout == f"{folder / 'out' / 'parts.md'}\n"
    assert (folder / "out" / "parts.md").read_text("utf-8").startswith("# Split data")
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["[1/2] pairs", "[2/2] parts"]
    again = call("run", "recipe.yaml", "--out", folder / "out")
    assert again.stderr == "[1/2] pairs: done before\n[2/2] parts: done before\n"
    assert again.stdout == result.stdout
    assert "| parts | data.split |" in (folder / "out" / "card.md").read_text("utf-8")


def test_a_missing_file_is_named_with_the_setting_and_nothing_is_left(call: Call, folder: Path) -> None:
    recipe = folder / "recipe.yaml"
    text = recipe.read_text("utf-8").replace("${builtin.pairs}", "${settings.dir}/rows.jsonl")
    recipe.write_text(text.replace("part: pairs", "dir: data"), "utf-8")
    says = r"^step pairs: files\.0: gone/rows\.jsonl: no such file or folder \(from the setting dir\)$"
    with pytest.raises(DataError, match=says):
        call("run", "recipe.yaml", "--set", "dir=gone")
    assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]


def test_the_json_tells_each_step(tell: Tell, folder: Path) -> None:
    found = tell("run", "recipe.yaml")
    assert found["out"] == "runs/small"
    assert found["published"] == ["runs/small/parts.md"]
    assert [(step["step"], step["skipped"]) for step in found["steps"]] == [
        ("pairs", False),
        ("parts", False),
    ]
    for step in found["steps"]:
        assert Path(step["place"]).exists()
        assert step["key"][:8] in step["place"]
        assert step["wall_seconds"] >= 0
        assert step["peak_memory_mib"] > 1
    forced = tell("run", "recipe.yaml", "--force", "parts")
    assert [step["skipped"] for step in forced["steps"]] == [True, False]


def test_one_step_prints_where_it_lies(call: Call, tell: Tell, folder: Path) -> None:
    result = call("run", "recipe.yaml", "--only", "pairs")
    (place,) = (folder / "runs" / "small" / "steps").glob("pairs-*/pairs.jsonl")
    assert result.stdout == f"{place.relative_to(folder)}\n"
    assert tell("run", "recipe.yaml", "--only", "pairs")["published"] == []


def test_set_reaches_the_recipe(call: Call, tell: Tell) -> None:
    call("run", "recipe.yaml")
    found = tell("run", "recipe.yaml", "--set", "seed=1")
    assert [step["skipped"] for step in found["steps"]] == [True, False]
    with pytest.raises(ConfigError, match=r"no such setting 'sead' .did you mean 'seed'"):
        call("run", "recipe.yaml", "--set", "sead=1")


def test_a_step_that_finds_problems_in_data_lists_them_and_ends_with_1(call: Call, folder: Path) -> None:
    rows = folder / "rows.jsonl"
    bad = {"prompt": "q", "response": "a", "is_safe": True, "severity": 2}
    rows.write_text("".join(json.dumps({"id": f"r{n}"} | bad) + "\n" for n in range(3)), "utf-8")
    override = ("--set", f"steps.pairs.files=[{rows}]")
    result = call("run", "recipe.yaml", *override)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split(":")[1:3] for line in lines[:3]] == [[str(n), " severity"] for n in (1, 2, 3)]
    assert lines[3] == "nothing was written: 3 problems in the data"
    result = call("run", "recipe.yaml", *override, "--json")
    assert result.exit_code == 1
    assert [found["line"] for found in json.loads(result.stdout.splitlines()[-1])["findings"]] == [1, 2, 3]
    assert not list((folder / "runs").iterdir())


def test_the_demo_is_the_quickstart_and_says_how_to_get_its_models(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(folder / "cache"))
    with pytest.raises(
        ConfigError, match=r"no such setting 'modell' .did you mean 'model'.*known: model, enc"
    ):
        call("demo", "--set", "modell=x")
    with pytest.raises(ModelError, match=r"^step guard: backbone: .*run: equipoise models install minilm"):
        call("demo")
    assert not (folder / "runs").exists()
