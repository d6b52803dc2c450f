"""`equipoise run` and `equipoise demo`: what they print, where they write, how they end."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from equipoise.cli.main import app
from equipoise.config import to_yaml
from equipoise.errors import ConfigError, ModelError


def command(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def last_json(result: Result) -> dict[str, Any]:
    found = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


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
        "publish": {"card.md": "${steps.parts}/card.md"},
    }
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe), "utf-8")
    return tmp_path


def test_a_run_prints_what_it_published_and_tells_the_rest_on_stderr(folder: Path) -> None:
    result = command("run", "recipe.yaml", "--out", folder / "out")
    assert result.exit_code == 0
    assert result.stdout == f"{folder / 'out' / 'card.md'}\n"
    assert (folder / "out" / "card.md").read_text("utf-8").startswith("# Split data")
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["[1/2] pairs", "[2/2] parts"]
    again = command("run", "recipe.yaml", "--out", folder / "out")
    assert again.stderr == "[1/2] pairs: done before\n[2/2] parts: done before\n"


def test_the_json_tells_each_step(folder: Path) -> None:
    found = last_json(command("run", "recipe.yaml", "--json"))
    assert found["out"] == "runs/small"
    assert found["published"] == ["runs/small/card.md"]
    assert [(step["step"], step["skipped"]) for step in found["steps"]] == [
        ("pairs", False),
        ("parts", False),
    ]
    for step in found["steps"]:
        assert Path(step["place"]).exists()
        assert step["key"][:8] in step["place"]
        assert step["wall_seconds"] >= 0
        assert step["peak_memory_mib"] > 1
    forced = last_json(command("run", "recipe.yaml", "--force", "parts", "--json"))
    assert [step["skipped"] for step in forced["steps"]] == [True, False]


def test_one_step_prints_where_it_lies(folder: Path) -> None:
    result = command("run", "recipe.yaml", "--only", "pairs")
    (place,) = (folder / "runs" / "small" / "steps").glob("pairs-*/pairs.jsonl")
    assert result.stdout == f"{place.relative_to(folder)}\n"
    assert last_json(command("run", "recipe.yaml", "--only", "pairs", "--json"))["published"] == []


def test_set_reaches_the_recipe() -> None:
    command("run", "recipe.yaml")
    found = last_json(command("run", "recipe.yaml", "--set", "seed=1", "--json"))
    assert [step["skipped"] for step in found["steps"]] == [True, False]
    with pytest.raises(ConfigError, match=r"no such setting 'sead' .did you mean 'seed'"):
        command("run", "recipe.yaml", "--set", "sead=1")


def test_a_step_that_finds_problems_in_data_lists_them_and_ends_with_1(folder: Path) -> None:
    rows = folder / "rows.jsonl"
    bad = {"prompt": "q", "response": "a", "is_safe": True, "severity": 2}
    rows.write_text("".join(json.dumps({"id": f"r{n}"} | bad) + "\n" for n in range(3)), "utf-8")
    override = ("--set", f"steps.pairs.files=[{rows}]")
    result = command("run", "recipe.yaml", *override)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split(":")[1:3] for line in lines[:3]] == [[str(n), " severity"] for n in (1, 2, 3)]
    assert lines[3] == "nothing was written: 3 problems in the data"
    result = command("run", "recipe.yaml", *override, "--json")
    assert result.exit_code == 1
    assert [found["line"] for found in last_json(result)["findings"]] == [1, 2, 3]
    assert not list((folder / "runs").rglob("*.manifest.json"))


def test_the_demo_is_the_quickstart_and_says_how_to_get_its_models(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(folder / "cache"))
    with pytest.raises(
        ConfigError, match=r"no such setting 'modell' .did you mean 'model'.*known: model, enc"
    ):
        command("demo", "--set", "modell=x")
    with pytest.raises(ModelError, match="run: equipoise models install minilm"):
        command("demo")
    assert (folder / "runs" / "quickstart" / "config.yaml").exists()
