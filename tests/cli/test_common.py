"""How commands put settings together and print results."""

import json
from pathlib import Path

import pytest
import typer

from equipoise.cli.common import emit, fail_on_findings, gather, listed
from equipoise.config import Config
from equipoise.data.check import Finding, FoundError
from equipoise.errors import ConfigError
from equipoise.lineage import Run, Step


class Optim(Config):
    lr: float = 1.0
    epochs: int = 1


class Settings(Config):
    name: str = "default"
    width: int = 1
    depth: int = 1
    optim: Optim = Optim()


def build(config: Settings, run: Run) -> None:
    """Never called: only the settings matter here."""


STEP = Step("s", 1, build, config=Settings)


def test_settings_come_from_defaults_then_file_then_options_then_set(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("{name: file, width: 2, depth: 2, optim: {lr: 2, epochs: 2}}")
    found = gather(STEP, {"width": 3, "depth": 3}, config=file, overrides=["depth=4", "optim.lr=1e-5"])
    assert found == Settings(name="file", width=3, depth=4, optim=Optim(lr=1e-5, epochs=2))


def test_an_option_that_was_not_given_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("width: 2")
    assert gather(STEP, {"width": None, "depth": None}, config=file) == Settings(width=2)
    assert gather(STEP, {}) == Settings()


def test_a_wrong_setting_names_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("widht: 2")
    with pytest.raises(ConfigError, match=r"s\.yaml: widht: no such setting .did you mean 'width'"):
        gather(STEP, {}, config=file)
    with pytest.raises(ConfigError, match=r"command line: optim\.lr: .*got 'fast'"):
        gather(STEP, {}, overrides=["optim.lr=fast"])


def test_a_result_is_a_text_or_one_json_object_that_keeps_letters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    emit({"name": "café"}, False, "a text")
    emit({"name": "café"}, True, "a text")
    assert capsys.readouterr().out == 'a text\n{"name": "café"}\n'


def test_a_long_list_is_cut_and_says_so() -> None:
    lines = [str(number) for number in range(60)]
    assert listed("- ", lines[:50]) == [f"- {line}" for line in lines[:50]]
    assert listed("", lines) == [*lines[:50], "... and 10 more; --json lists all"]


def test_findings_are_shown_whole_as_json_and_leave_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [Finding("f.jsonl", n, f"r{n}", "id", "duplicate-id", "twice") for n in range(60)]
    error = FoundError("nothing was written", findings)
    with pytest.raises(typer.Exit) as left:
        fail_on_findings(error, as_json=True)
    assert left.value.exit_code == 1
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 60
    with pytest.raises(typer.Exit):
        fail_on_findings(error, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "f.jsonl:0: id: twice (duplicate-id, id r0)"
    assert lines[-1] == "nothing was written: 60 problems in the data"
