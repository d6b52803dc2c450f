"""The data commands as a user runs them: results, files, exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from equipoise.cli.data import _SOURCES, app
from equipoise.data.io import read_records
from equipoise.data.sources import SOURCES
from equipoise.errors import ConfigError, DataError
from equipoise.lineage import read_manifest
from equipoise.records import Exchange, Pair


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def last_json(result: Result) -> dict[str, Any]:
    found = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"r{number}", "prompt": f"question {number}", "response": "an answer"} | more


PAIR = {
    "id": "p",
    "prompt": "q",
    "answers": [{"response": "a", "is_safe": True}, {"response": "b", "is_safe": False}],
    "safer": 1,
}


def test_import_writes_records_and_a_manifest_and_is_skipped_the_second_time(tmp_path: Path) -> None:
    source, out = (
        lines(tmp_path / "in.jsonl", row(1, harm_categories=["Drugs"], extra=1)),
        tmp_path / "out.parquet",
    )
    result = last_json(run("import", "jsonl", source, "--out", out, "--licence", "MIT", "--json"))
    assert (result["records"], result["kind"], result["was_done"]) == (1, "Exchange", False)
    (record,) = read_records(out, Exchange)
    assert (record.categories, record.licence, record.provenance) == ({"Drugs"}, "MIT", {"extra": 1})
    manifest = read_manifest(tmp_path / "out.parquet.manifest.json")
    assert (manifest.step, manifest.licences) == ("data import", ["MIT"])
    again = run("import", "jsonl", source, "--out", out, "--licence", "MIT", "--json")
    assert last_json(again)["was_done"] is True


def test_import_lists_bad_rows_and_writes_nothing_unless_told_to_skip(tmp_path: Path) -> None:
    source, out = lines(tmp_path / "in.jsonl", row(1), row(2, is_safe="no"), row(3)), tmp_path / "out.jsonl"
    result = run("import", "jsonl", source, "--out", out)
    assert result.exit_code == 1
    assert "in.jsonl:2: is_safe: " in result.stdout
    assert not out.exists()
    settings = ("--set", "on_bad=skip", "--force", "--json")
    found = last_json(run("import", "jsonl", source, "--out", out, *settings))
    assert found["records"] == 2
    assert "in.jsonl:2: is_safe" in found["skipped"][0]


def test_import_renames_columns_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("question,answer\nq,a\n", "utf-8")
    names = ("--set", "columns.question=prompt", "--set", "columns.answer=response")
    run("import", "jsonl", tmp_path / "t.csv", "--out", tmp_path / "o.jsonl", *names)
    (record,) = read_records(tmp_path / "o.jsonl", Exchange)
    assert (record.prompt, record.response) == ("q", "a")


def test_import_exports_the_built_in_corpus(tmp_path: Path) -> None:
    result = run("import", "builtin", "pairs", "--out", tmp_path / "pairs.jsonl", "--json")
    assert last_json(result)["kind"] == "Pair"
    assert run("check", tmp_path / "pairs.jsonl").exit_code == 0


def test_import_names_a_wrong_source_setting_or_file(tmp_path: Path) -> None:
    source, out = lines(tmp_path / "in.jsonl", row(1)), tmp_path / "o.jsonl"
    with pytest.raises(ConfigError, match=r"no source 'jsnol'.*did you mean 'jsonl'"):
        run("import", "jsnol", source, "--out", out)
    with pytest.raises(ConfigError, match=r"licnce: no such setting .did you mean 'licence'"):
        run("import", "jsonl", source, "--out", out, "--set", "licnce=MIT")
    with pytest.raises(DataError, match=r"gone.jsonl: no such file"):
        run("import", "jsonl", tmp_path / "gone.jsonl", "--out", out)
    with pytest.raises(ConfigError, match=r"in.jsonl: exists and is no run"):
        run("import", "jsonl", source, "--out", source)


def test_check_names_every_problem_reads_the_rest_and_exits_with_1(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    problems = [
        b'{"id": "a", "prompt": "p", "response": "cut o',
        json.dumps(row(2, severity="high")).encode(),
        json.dumps(row(3, categories=["Cyber crime"])).encode(),
        json.dumps(row(4, is_safe=True, severity=3)).encode(),
        b'{"id": "e", "prompt": "caf\xe9", "response": "r"}',
        json.dumps(row(6, is_safe=True)).encode(),
    ]
    path.write_bytes(b"\n".join(problems) + b"\n")
    result = run("check", path, "--json")
    assert result.exit_code == 1
    found = last_json(result)
    assert found["records"] == 3
    assert [(f["line"], f["field"], f["kind"]) for f in found["findings"]] == [
        (1, "response", "unreadable"),
        (2, "severity", "unreadable"),
        (3, "categories", "category"),
        (4, "severity", "contradiction"),
        (5, "prompt", "unreadable"),
    ]
    text = run("check", path).stdout
    assert all(f"bad.jsonl:{line}: " in text for line in (1, 2, 3, 4, 5))
    assert text.splitlines()[-1] == "3 records in 1 files, 5 problems"


def test_check_of_a_file_with_bad_lines_only_lists_them(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{\n{\n", "utf-8")
    good = lines(tmp_path / "good.jsonl", row(1))
    result = run("check", tmp_path / "bad.jsonl", good, "--json")
    assert result.exit_code == 1
    assert [f["line"] for f in last_json(result)["findings"]] == [1, 2]


@pytest.mark.parametrize(
    ("choice", "safer", "counted"),
    [("drop", [], "1 dropped"), ("flip", [0], "1 flipped"), ("keep", [1], "1 kept")],
)
def test_check_treats_contradictions_as_told(
    tmp_path: Path, choice: str, safer: list[int], counted: str
) -> None:
    good = PAIR | {"id": "g", "prompt": "g", "safer": 0}
    path, out = lines(tmp_path / "in.jsonl", PAIR, good), tmp_path / "out.jsonl"
    result = run("check", path, "--on-contradiction", choice, "--out", out)
    assert result.exit_code == 0
    assert "in.jsonl:1: safer: " in result.stdout
    assert counted in result.stdout
    assert [pair.safer for pair in read_records(out, Pair)] == [*safer, 0]


def test_check_with_error_writes_nothing_where_something_is_found(tmp_path: Path) -> None:
    path, out = lines(tmp_path / "in.jsonl", PAIR), tmp_path / "out.jsonl"
    assert run("check", path, "--out", out).exit_code == 1
    assert not out.exists()
    with pytest.raises(ConfigError, match="--on-contradiction drop: needs a file to write"):
        run("check", path, "--on-contradiction", "drop")


def test_split_keeps_prompts_apart_over_all_files(tmp_path: Path) -> None:
    first = lines(tmp_path / "a.jsonl", *(row(n) for n in range(30)))
    second = lines(tmp_path / "b.jsonl", *({"id": f"p{n}", "prompt": f"QUESTION {n}?"} for n in range(30)))
    out = tmp_path / "parts"
    found = last_json(
        run("split", first, second, "--out", out, "--fractions", "train=0.75,test=0.25", "--json")
    )
    assert found["parts"] == {"train": {"a": 23, "b": 23}, "test": {"a": 7, "b": 7}}
    sides = {}
    for part in ("train", "test"):
        rows = [
            json.loads(line) for f in (out / part).iterdir() for line in f.read_text("utf-8").splitlines()
        ]
        sides[part] = {item["prompt"].lower().rstrip("?") for item in rows}
    assert not sides["train"] & sides["test"]
    assert "# Split data" in (out / "card.md").read_text("utf-8")
    assert read_manifest(out / "manifest.json").notes["records"] == 60


def test_split_refuses_what_cannot_be_done(tmp_path: Path) -> None:
    path, out = lines(tmp_path / "a.jsonl", row(1)), tmp_path / "parts"
    with pytest.raises(DataError, match="part 'test' would be empty, got 1 rows"):
        run("split", path, "--out", out)
    with pytest.raises(ConfigError, match="expected part=share"):
        run("split", path, "--out", out, "--fractions", "train")
    (tmp_path / "sub").mkdir()
    with pytest.raises(ConfigError, match="two files are named 'a'"):
        run("split", path, lines(tmp_path / "sub" / "a.jsonl", row(1)), "--out", tmp_path / "other")


def test_merge_says_what_it_left_out(tmp_path: Path) -> None:
    first = lines(tmp_path / "a.jsonl", row(1, is_safe=True), row(2))
    second = lines(tmp_path / "b.jsonl", row(1, is_safe=True), row(1, is_safe=False))
    result = run("merge", first, second, "--out", tmp_path / "m.jsonl")
    assert "2 duplicates" not in result.stdout
    assert "3 records, 1 duplicates left out, 1 ids made unique" in result.stdout
    assert "b.jsonl:2: is_safe: unsafe, but the same text is safe at" in result.stdout


def test_stats_and_card_agree(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", row(1, licence="MIT", is_safe=True), row(2, licence="CC0-1.0"))
    assert last_json(run("stats", path, "--json"))["response_labels"]["safe_share"] == 1.0
    assert "| MIT | 1 |" in run("stats", path).stdout
    run("card", path, "--out", tmp_path / "card.md", "--title", "Own rows")
    assert (tmp_path / "card.md").read_text("utf-8").startswith("# Own rows\n")
    assert read_manifest(tmp_path / "card.md.manifest.json").licences == ["CC0-1.0", "MIT"]


def test_help_names_every_source() -> None:
    assert all(name in _SOURCES for name in [*SOURCES, "builtin"])
