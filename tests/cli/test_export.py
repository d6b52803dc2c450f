"""`equipoise data export` as a user runs it."""

import json
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from equipoise.cli.export import _FORMATS, export
from equipoise.data.export.formats import FORMATS

app = typer.Typer()
app.command()(export)

PAIR = {
    "id": "p",
    "prompt": "q",
    "answers": [{"response": "a", "is_safe": True}, {"response": "b", "is_safe": False}],
    "safer": 0,
    "licence": "MIT",
}


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_export_writes_the_folder_and_says_what_it_left_out(tmp_path: Path) -> None:
    path, out = lines(tmp_path / "in.jsonl", PAIR, PAIR | {"id": "t", "safer": "tie"}), tmp_path / "out"
    options = ("--to", "trl-preference", "--preference", "safer", "--set", "style=standard", "--out", out)
    result = run(path, *options)
    assert result.stdout.splitlines() == ["left out: 1 x 'safer' is a tie", f"{out}/data/train.jsonl: 1 rows"]
    assert json.loads((out / "data" / "train.jsonl").read_text("utf-8")) == {
        "prompt": "q",
        "chosen": "a",
        "rejected": "b",
    }
    again = json.loads(run(path, *options, "--json").stdout.splitlines()[-1])
    assert again == {
        "out": str(out),
        "rows": {"train": 1},
        "left_out": {"'safer' is a tie": 1},
        "licences": ["MIT"],
        "was_done": True,
    }


def test_a_refused_licence_exits_with_1_and_names_itself(tmp_path: Path) -> None:
    path = lines(tmp_path / "in.jsonl", PAIR, PAIR | {"id": "n", "licence": "CC-BY-NC-4.0"})
    options = (path, "--to", "trl-kto", "--out", tmp_path / "out", "--exclude-licences", "GPL, NC")
    result = run(*options)
    assert result.exit_code == 1
    assert "in.jsonl:2: licence: 1 records under 'CC-BY-NC-4.0', which is excluded (NC)" in result.stdout
    assert not (tmp_path / "out").exists()
    dropped = run(*options, "--drop-licences", "--json")
    assert json.loads(dropped.stdout)["rows"] == {"train": 2}


def test_a_licence_that_nobody_states_is_refused_unless_told_otherwise(tmp_path: Path) -> None:
    path = lines(tmp_path / "in.jsonl", {"id": "a", "prompt": "q"})
    options = (path, "--to", "pku-prompt", "--out", tmp_path / "out")
    assert "1 records under 'unknown'" in run(*options).stdout
    assert run(*options, "--allow-unknown-licence").exit_code == 0


def test_files_are_given_their_split_by_name(tmp_path: Path) -> None:
    first, second = lines(tmp_path / "a.jsonl", PAIR), lines(tmp_path / "b.jsonl", PAIR)
    options = ("--to", "pku-prompt", "--as", "parquet", "--out", tmp_path / "out", "--json")
    result = run(f"train={first}", f"test={second}", *options)
    assert json.loads(result.stdout)["rows"] == {"train": 1, "test": 1}
    names = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert names == ["test.parquet", "train.parquet"]


def test_a_file_with_an_equals_sign_in_its_name_is_a_file(tmp_path: Path) -> None:
    path = lines(tmp_path / "a=b.jsonl", PAIR)
    result = run(path, "--to", "pku-prompt", "--out", tmp_path / "out", "--json")
    assert json.loads(result.stdout)["rows"] == {"train": 1}


def test_help_names_every_format() -> None:
    assert all(name in _FORMATS for name in FORMATS)
