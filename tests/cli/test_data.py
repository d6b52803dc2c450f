"""The data commands as a user runs them: results, files, exit codes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from equipoise.cli.data import _SOURCES
from equipoise.data.io import read_records
from equipoise.data.sources import SOURCES
from equipoise.errors import ConfigError, DataError
from equipoise.lineage import read_manifest
from equipoise.records import Exchange, Pair, Prompt

Call = Callable[..., Result]
Tell = Callable[..., dict[str, Any]]


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


def test_import_writes_records_and_a_manifest_and_is_skipped_the_second_time(
    call: Call, tell: Tell, tmp_path: Path
) -> None:
    source, out = (
        lines(tmp_path / "in.jsonl", row(1, harm_categories=["Drugs"], extra=1)),
        tmp_path / "out.parquet",
    )
    result = tell("data", "import", "jsonl", source, "--out", out, "--licence", "MIT")
    assert (result["records"], result["kind"], result["was_done"]) == (1, "Exchange", False)
    (record,) = read_records(out, Exchange)
    assert (record.categories, record.licence, record.provenance) == ({"Drugs"}, "MIT", {"extra": 1})
    manifest = read_manifest(tmp_path / "out.parquet.manifest.json")
    assert (manifest.step, manifest.licences) == ("data import", ["MIT"])
    again = call("data", "import", "jsonl", source, "--out", out, "--licence", "MIT", "--json")
    assert json.loads(again.stdout.splitlines()[-1])["was_done"] is True


def test_import_lists_bad_rows_and_writes_nothing_unless_told_to_skip(
    call: Call, tell: Tell, tmp_path: Path
) -> None:
    source, out = lines(tmp_path / "in.jsonl", row(1), row(2, is_safe="no"), row(3)), tmp_path / "out.jsonl"
    result = call("data", "import", "jsonl", source, "--out", out)
    assert result.exit_code == 1
    assert "in.jsonl:2: is_safe: " in result.stdout
    assert not out.exists()
    settings = ("--set", "on_bad=skip", "--force")
    found = tell("data", "import", "jsonl", source, "--out", out, *settings)
    assert found["records"] == 2
    assert "in.jsonl:2: is_safe" in found["skipped"][0]


def test_import_renames_columns_of_a_table(call: Call, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("question,answer\nq,a\n", "utf-8")
    names = ("--set", "columns.question=prompt", "--set", "columns.answer=response")
    call("data", "import", "jsonl", tmp_path / "t.csv", "--out", tmp_path / "o.jsonl", *names)
    (record,) = read_records(tmp_path / "o.jsonl", Exchange)
    assert (record.prompt, record.response) == ("q", "a")
    names = ("--set", "columns.question=prompt", "--set", "columns.anser=response")
    with pytest.raises(DataError, match=r"t\.csv:2: no column 'anser' to rename; it has: question, answer"):
        call("data", "import", "jsonl", tmp_path / "t.csv", "--out", tmp_path / "p.jsonl", *names)
    (tmp_path / "dots.csv").write_text("a.question\nq\n", "utf-8")
    names = ("--set", "columns={a.question: prompt}")
    call("data", "import", "jsonl", tmp_path / "dots.csv", "--out", tmp_path / "q.jsonl", *names)
    (asked,) = read_records(tmp_path / "q.jsonl", Prompt)
    assert asked.prompt == "q"


def test_import_gives_labels_to_rows_that_have_none(call: Call, tmp_path: Path) -> None:
    table, out = tmp_path / "t.jsonl", tmp_path / "o.jsonl"
    rows = [{"is_safe": None}, {"is_safe": False}, {}, {"is_safe": ""}]
    lines = [json.dumps({"prompt": "q", "response": f"r{i}"} | row) for i, row in enumerate(rows)]
    table.write_text("\n".join(lines), "utf-8")
    call("data", "import", "jsonl", table, "--out", out, "--set", "labels.is_safe=true")
    assert [record.is_safe for record in read_records(out, Exchange)] == [True, False, True, True]
    with pytest.raises(ConfigError, match=r"labels: no field 'is_saef' .did you mean 'is_safe'"):
        call("data", "import", "jsonl", table, "--out", out, "--force", "--set", "labels.is_saef=true")


def test_a_file_is_not_written_to_a_folder(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "q"}\n', "utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"\.: is a folder; expected a file to write"):
        call("data", "import", "jsonl", "t.jsonl", "--out", ".")


def test_import_translates_labels_in_other_words(call: Call, tmp_path: Path) -> None:
    table, out = tmp_path / "t.csv", tmp_path / "o.jsonl"
    table.write_text("prompt,response,action\nq,a,0\nq,b,5\nq,c,\n", "utf-8")
    names = ("--set", "columns.action=refusal", "--set", 'values.refusal={"0": full, "5": none}')
    call("data", "import", "jsonl", table, "--out", out, *names)
    assert [record.refusal for record in read_records(out, Exchange)] == ["full", "none", None]
    result = call(
        "data", "import", "jsonl", table, "--out", out, "--force", *names[:3], 'values.refusal={"0": full}'
    )
    assert result.exit_code == 1
    assert "t.csv:3: refusal: values has no meaning for it, got '5'; known: 0" in result.stdout
    unquoted = (*names[:3], "values.refusal={0: full, 5: none}", "--force", "--set", "sample=2")
    call("data", "import", "jsonl", table, "--out", out, *unquoted)
    assert {record.refusal for record in read_records(out, Exchange)} <= {"full", "none", None}
    with pytest.raises(DataError, match="values: no row has a column 'refused'"):
        call("data", "import", "jsonl", table, "--out", out, "--force", "--set", "values.refused={a: none}")


def test_import_exports_the_built_in_corpus(call: Call, tmp_path: Path) -> None:
    result = call("data", "import", "builtin", "pairs", "--out", tmp_path / "pairs.jsonl", "--json")
    assert json.loads(result.stdout.splitlines()[-1])["kind"] == "Pair"
    assert call("data", "check", tmp_path / "pairs.jsonl").exit_code == 0


def test_import_names_a_wrong_source_setting_or_file(call: Call, tmp_path: Path) -> None:
    source, out = lines(tmp_path / "in.jsonl", row(1)), tmp_path / "o.jsonl"
    with pytest.raises(ConfigError, match=r"no source 'jsnol'.*did you mean 'jsonl'"):
        call("data", "import", "jsnol", source, "--out", out)
    with pytest.raises(ConfigError, match=r"licnce: no such setting .did you mean 'licence'"):
        call("data", "import", "jsonl", source, "--out", out, "--set", "licnce=MIT")
    with pytest.raises(DataError, match=r"gone.jsonl: no such file"):
        call("data", "import", "jsonl", tmp_path / "gone.jsonl", "--out", out)
    with pytest.raises(ConfigError, match=r"in.jsonl: exists and is no run"):
        call("data", "import", "jsonl", source, "--out", source)


def test_check_names_every_problem_reads_the_rest_and_exits_with_1(call: Call, tmp_path: Path) -> None:
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
    result = call("data", "check", path, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["records"] == 3
    assert [(f["line"], f["field"], f["kind"]) for f in found["findings"]] == [
        (1, "response", "unreadable"),
        (2, "severity", "unreadable"),
        (3, "categories", "category"),
        (4, "severity", "contradiction"),
        (5, "prompt", "unreadable"),
    ]
    text = call("data", "check", path).stdout
    assert all(f"bad.jsonl:{line}: " in text for line in (1, 2, 3, 4, 5))
    assert text.splitlines()[-1] == "3 records in 1 files, 5 problems"


def test_check_of_a_file_with_bad_lines_only_lists_them(call: Call, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{\n{\n", "utf-8")
    good = lines(tmp_path / "good.jsonl", row(1))
    result = call("data", "check", tmp_path / "bad.jsonl", good, "--json")
    assert result.exit_code == 1
    assert [f["line"] for f in json.loads(result.stdout.splitlines()[-1])["findings"]] == [1, 2]


@pytest.mark.parametrize(
    ("choice", "safer", "counted"),
    [("drop", [], "1 dropped"), ("flip", [0], "1 flipped"), ("keep", [1], "1 kept")],
)
def test_check_treats_contradictions_as_told(
    call: Call, tmp_path: Path, choice: str, safer: list[int], counted: str
) -> None:
    good = PAIR | {"id": "g", "prompt": "g", "safer": 0}
    path, out = lines(tmp_path / "in.jsonl", PAIR, good), tmp_path / "out.jsonl"
    result = call("data", "check", path, "--on-contradiction", choice, "--out", out)
    assert result.exit_code == 0
    assert "in.jsonl:1: safer: " in result.stdout
    assert counted in result.stdout
    assert [pair.safer for pair in read_records(out, Pair)] == [*safer, 0]


@pytest.mark.parametrize("choice", ["drop", "flip", "keep"])
def test_check_ends_with_1_where_more_is_found_than_was_chosen(
    call: Call, tmp_path: Path, choice: str
) -> None:
    path, out = lines(tmp_path / "in.jsonl", PAIR, PAIR | {"prompt": "g"}), tmp_path / "out.jsonl"
    result = call("data", "check", path, "--on-contradiction", choice, "--out", out)
    assert result.exit_code == 1
    assert "in.jsonl:2: id: stands already at" in result.stdout
    assert not out.exists()


def test_check_lists_opposite_preferences_over_all_files(call: Call, tmp_path: Path) -> None:
    answers = [{"response": "a"}, {"response": "b"}]
    one = {"id": "1", "prompt": "ask", "answers": answers, "better": 0}
    other = {"id": "2", "prompt": "ask", "answers": answers[::-1], "better": 0}
    files = [lines(tmp_path / "a.jsonl", one), lines(tmp_path / "b.jsonl", one | {"id": "3"}, other)]
    result = call("data", "check", *files)
    assert result.exit_code == 1
    against = "better: the same two answers are preferred the other way at"
    assert result.stdout.splitlines()[:3] == [
        f"{files[0]}:1: {against} {files[1]}:2 (preference, id 1)",
        f"{files[1]}:1: {against} {files[1]}:2 (preference, id 3)",
        f"{files[1]}:2: {against} {files[0]}:1 (preference, id 2)",
    ]
    out = tmp_path / "out.jsonl"
    good = lines(tmp_path / "c.jsonl", one | {"id": "4", "prompt": "g"})
    result = call("data", "check", *files, good, "--on-contradiction", "drop", "--out", out)
    assert result.exit_code == 0
    assert [pair.id for pair in read_records(out, Pair)] == ["4"]


def test_check_with_error_writes_nothing_where_something_is_found(call: Call, tmp_path: Path) -> None:
    path, out = lines(tmp_path / "in.jsonl", PAIR), tmp_path / "out.jsonl"
    assert call("data", "check", path, "--out", out).exit_code == 1
    assert not out.exists()
    with pytest.raises(ConfigError, match="--on-contradiction drop: needs a file to write"):
        call("data", "check", path, "--on-contradiction", "drop")


def test_split_keeps_prompts_apart_over_all_files(tell: Tell, tmp_path: Path) -> None:
    first = lines(tmp_path / "a.jsonl", *(row(n) for n in range(30)))
    second = lines(tmp_path / "b.jsonl", *({"id": f"p{n}", "prompt": f"QUESTION {n}?"} for n in range(30)))
    out = tmp_path / "parts"
    found = tell("data", "split", first, second, "--out", out, "--fractions", "train=0.75,test=0.25")
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


def test_split_refuses_what_cannot_be_done(call: Call, tmp_path: Path) -> None:
    path, out = lines(tmp_path / "a.jsonl", row(1)), tmp_path / "parts"
    with pytest.raises(DataError, match="part 'test' would be empty, got 1 rows"):
        call("data", "split", path, "--out", out)
    with pytest.raises(ConfigError, match="expected part=share"):
        call("data", "split", path, "--out", out, "--fractions", "train")
    (tmp_path / "sub").mkdir()
    with pytest.raises(ConfigError, match="two files are named 'a'"):
        call("data", "split", path, lines(tmp_path / "sub" / "a.jsonl", row(1)), "--out", tmp_path / "other")


def test_merge_says_what_it_left_out(call: Call, tmp_path: Path) -> None:
    first = lines(tmp_path / "a.jsonl", row(1, is_safe=True), row(2))
    second = lines(tmp_path / "b.jsonl", row(1, is_safe=True), row(1, is_safe=False))
    result = call("data", "merge", first, second, "--out", tmp_path / "m.jsonl")
    assert "2 duplicates" not in result.stdout
    assert "3 records, 1 duplicates left out, 1 ids made unique" in result.stdout
    assert "b.jsonl:2: is_safe: unsafe, but the same text is safe at" in result.stdout


def test_prompts_are_taken_once_with_what_their_answers_say(call: Call, tell: Tell, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", row(1, is_safe=True), row(1, is_safe=False), row(2, is_safe=True))
    out = tmp_path / "p.jsonl"
    assert f"{out}: 2 of 2 prompts" in call("data", "prompts", path, "--out", out).stdout
    harmful = ["--by-answers", "--set", "is_harmful=true", "--out", tmp_path / "h.jsonl"]
    told = tell("data", "prompts", path, *harmful)
    assert (told["records"], told["prompts_in_all"], told["was_done"]) == (1, 2, False)


def test_stats_and_card_agree(call: Call, tell: Tell, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", row(1, licence="MIT", is_safe=True), row(2, licence="CC0-1.0"))
    assert tell("data", "stats", path)["response_labels"]["safe_share"] == 1.0
    assert "| MIT | 1 |" in call("data", "stats", path).stdout
    call("data", "card", path, "--out", tmp_path / "card.md", "--title", "Own rows")
    assert (tmp_path / "card.md").read_text("utf-8").startswith("# Own rows\n")
    assert read_manifest(tmp_path / "card.md.manifest.json").licences == ["CC0-1.0", "MIT"]


def test_the_help_says_how_columns_are_mapped_and_when_check_ends_with_1(call: Call) -> None:
    text = " ".join(call("data", "import", "--help").stdout.split())
    assert "--set columns.question=prompt --set columns.answer=response" in text
    text = " ".join(call("data", "check", "--help").stdout.split())
    assert "The exit code is 1 if anything is found that was not to be dropped, flipped or kept" in text


def test_help_names_every_source() -> None:
    assert all(name in _SOURCES for name in [*SOURCES, "builtin"])


def test_stats_write_a_page_and_the_same_numbers_as_are_printed(
    call: Call, tell: Tell, tmp_path: Path
) -> None:
    path, out = lines(tmp_path / "in.jsonl", PAIR), tmp_path / "stats"
    printed = tell("data", "stats", path)
    assert printed["pair_counts"]["mixed"] == 1
    assert tell("data", "stats", path, "--out", out, "--title", "Two answers") == printed
    assert json.loads((out / "statistics.json").read_text("utf-8")) == printed
    assert "<h1>Two answers</h1>" in (out / "statistics.html").read_text("utf-8")
    outputs = read_manifest(out / "manifest.json").outputs
    assert outputs.keys() == {"card.md", "statistics.html", "statistics.json"}
    again = call("data", "stats", path, "--out", out, "--title", "Two answers")
    assert again.stdout.strip() == str(out / "statistics.html")
    assert (out / "card.md").read_text("utf-8").startswith("# Two answers")
