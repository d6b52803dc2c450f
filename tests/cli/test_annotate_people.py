"""`annotate export`, `serve` and `import` as a user runs them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from equipoise.annotation.environment import potato_requirements
from equipoise.annotation.project import read_project
from equipoise.cli.annotate_people import app
from equipoise.data.io import write_records
from equipoise.errors import ConfigError
from equipoise.records import Answer, Pair

STAND_IN = """#!/bin/sh
exec {python} -m http.server "$6" --bind 127.0.0.1
"""


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def last_json(result: Result) -> dict[str, Any]:
    found = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    answers = (Answer(response="one"), Answer(response="two"))
    write_records(tmp_path / "pairs.jsonl", [Pair(id="p", prompt="q", answers=answers, licence="MIT")])
    return tmp_path / "pairs.jsonl"


def enter(project: Path, name: str, value: str) -> None:
    (key,) = read_project(project).items
    labels = [[{"schema": name, "name": value}, value]]
    state = {"user_id": "ann", "instance_id_to_label_to_value": {key: labels}}
    (project / "answers" / "ann").mkdir(parents=True, exist_ok=True)
    (project / "answers" / "ann" / "user_state.json").write_text(json.dumps(state), "utf-8")


def test_export_and_import_say_what_they_did(pairs: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    found = last_json(run("export", pairs, "--to", "potato", "--out", project, "--json"))
    assert (found["items"], found["card"], found["with_suggestions"]) == (1, "dual", 0)
    assert last_json(run("export", pairs, "--out", project, "--json"))["skipped"] is True
    enter(project, "better", "tie")
    result = run("import", project, "--out", tmp_path / "j.jsonl")
    assert result.exit_code == 0
    assert "incomplete p by ann" in result.stdout
    assert "3 judgements; cards: ann 1" in result.stdout
    found = last_json(run("import", project, "--out", tmp_path / "j.jsonl", "--json"))
    assert (found["judgements"], found["was_done"]) == (3, True)


def test_a_bad_answer_is_listed_and_the_exit_code_is_1(pairs: Path, tmp_path: Path) -> None:
    run("export", pairs, "--out", tmp_path / "project")
    enter(tmp_path / "project", "better", "neither")
    result = run("import", tmp_path / "project", "--out", tmp_path / "j.jsonl", "--json")
    assert result.exit_code == 1
    (finding,) = last_json(result)["findings"]
    assert (finding["id"], finding["field"]) == ("p", "better")
    skip = ("--set", "on_bad=skip", "--json")
    assert (
        last_json(run("import", tmp_path / "project", "--out", tmp_path / "j.jsonl", *skip))["judgements"]
        == 0
    )


def test_what_people_entered_is_not_exported_over(pairs: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    run("export", pairs, "--out", project)
    enter(project, "better", "tie")
    with pytest.raises(ConfigError, match=r"answers: holds what people entered; choose another place"):
        run("export", pairs, "--out", project, "--card", "overall", "--force")
    assert read_project(project).card.kind == "dual"


def test_label_studio_needs_its_export_and_is_not_started_here(pairs: Path, tmp_path: Path) -> None:
    run("export", pairs, "--to", "label-studio", "--out", tmp_path / "project")
    with pytest.raises(ConfigError, match=r"--answers: missing"):
        run("import", tmp_path / "project", "--out", tmp_path / "j.jsonl")
    with pytest.raises(ConfigError, match=r"was exported for label-studio"):
        run("serve", tmp_path / "project")


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_serve_prints_where_and_ends_its_server_when_it_is_ended(
    pairs: Path, tmp_path: Path, ending: signal.Signals
) -> None:
    run("export", pairs, "--out", tmp_path / "project")
    # an environment that is there already, whose Python is a small server
    script = f"""
import hashlib, sys
from pathlib import Path
from equipoise.annotation.environment import install_tool
from equipoise.cli.annotate_people import app
folder = Path({str(tmp_path)!r}) / "tools" / "potato"
(folder / "bin").mkdir(parents=True)
(folder / "bin" / "python").write_text({STAND_IN.format(python=sys.executable)!r})
(folder / "bin" / "python").chmod(0o755)
wanted = f"{{sys.version_info[:2]}}\\n" + {potato_requirements()!r}
(folder / "installed.sha256").write_text(hashlib.sha256(wanted.encode()).hexdigest())
app(["serve", {str(tmp_path / "project")!r}, "--json"])
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "EQUIPOISE_CACHE": str(tmp_path)},
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            told = json.loads(process.stdout.readline())
            os.kill(told["pid"], 0)  # raises where there is none
            process.send_signal(ending)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert told["url"].startswith("http://127.0.0.1:")
    assert (process.returncode, errors) == (0, "stopped\n")
    with pytest.raises(ProcessLookupError):
        os.kill(told["pid"], 0)
