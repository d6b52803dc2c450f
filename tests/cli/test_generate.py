"""`equipoise generate` as a user calls it."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from equipoise.cli.generate import generate
from equipoise.errors import ConfigError, MissingExtraError, RunStoppedError

app = typer.Typer()
app.command()(generate)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "a", "prompt": "Hi"}\n{"id": "b", "prompt": "Bread?", "mine": 1}\n')
    return path


def test_a_file_of_prompts_becomes_a_file_of_responses(
    tiny_llama: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    command = ["--model", str(tiny_llama), "--prompts", str(prompts), "--out", str(out), "-k", "2"]
    command += ["--set", "sampling.temperature=1", "--set", "sampling.max_new_tokens=4", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    summary = {"out": str(out), "rows": 2, "errors": 0, "missing": 0, "skipped": False}
    assert json.loads(result.stdout) == summary
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [(r["id"], r["sample"]) for r in rows] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert rows[2]["mine"] == 1
    again = CliRunner().invoke(app, command)
    assert json.loads(again.stdout) == {**summary, "skipped": True}


def test_a_config_file_gives_what_the_flags_leave_out(
    tiny_llama: Path, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(
        f"models: [{tiny_llama}]\nprompts: {prompts}\nsampling:\n  max_new_tokens: 4\n"
    )
    command = ["--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out.jsonl")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'out.jsonl'}: written, 2 prompts answered, 0 bad lines\n"


def test_each_prompt_gets_a_greedy_answer_and_k_samples(
    tiny_llama: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    command = ["--model", str(tiny_llama), "--prompts", str(prompts), "--out", str(out), "-k", "2"]
    command += ["--greedy-first", "--set", "sampling.temperature=1", "--set", "sampling.max_new_tokens=4"]
    assert CliRunner().invoke(app, command).exit_code == 0
    greedy = tmp_path / "greedy.jsonl"
    command = ["--model", str(tiny_llama), "--prompts", str(prompts), "--out", str(greedy)]
    assert CliRunner().invoke(app, [*command, "--set", "sampling.max_new_tokens=4"]).exit_code == 0
    rows, firsts = ([json.loads(line) for line in path.read_text().splitlines()] for path in (out, greedy))
    assert [r["sample"] for r in rows] == [0, 1, 2] * 2
    assert [r for r in rows if r["sample"] == 0] == firsts


def test_bad_lines_exit_1(tiny_llama: Path, prompts: Path, tmp_path: Path) -> None:
    prompts.write_text(prompts.read_text() + '{"id": "c"}\n')
    command = ["--model", str(tiny_llama), "--prompts", str(prompts), "--out", str(tmp_path / "out.jsonl")]
    result = CliRunner().invoke(app, [*command, "--set", "sampling.max_new_tokens=4"])
    assert result.exit_code == 1
    assert "2 prompts answered, 1 bad lines" in result.stdout


def test_no_model_is_the_users_mistake(prompts: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--prompts", str(prompts), "--out", str(tmp_path / "out.jsonl")])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == "command line: models: missing"


def test_a_server_is_asked_where_torch_is_not_installed(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    out = tmp_path / "out.jsonl"
    command = [
        "--endpoint",
        "http://127.0.0.1:9",
        "--model",
        "m",
        "--prompts",
        str(prompts),
        "--out",
        str(out),
    ]
    command += ["--set", "endpoint.tries=1", "--set", "endpoint.first_wait_seconds=0.01"]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, RunStoppedError)  # nobody listens there
    assert "http://127.0.0.1:9/v1: model 'm': the server is dead" in str(result.exception)


def test_without_torch_the_extra_is_named(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    command = ["--model", "m", "--prompts", str(prompts), "--out", str(tmp_path / "out.jsonl")]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, MissingExtraError)
    assert str(result.exception) == (
        "equipoise generate needs the extra 'train': pip install 'equipoise[train]'"
    )
