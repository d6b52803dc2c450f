"""Every source on rows of our own in its schema, in every format it may come in."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from equipoise.data.io import read_records, read_rows, write_records
from equipoise.data.rows import LineError, Row
from equipoise.data.sources import SOURCES, find_source, import_records, looks_like_hub_id
from equipoise.errors import ConfigError, DataError
from equipoise.records import Exchange, Pair, Prompt, Record
from equipoise.taxonomy import load_taxonomy

PKU = load_taxonomy("pku19").names
BEAVER = load_taxonomy("beavertails14").names


def flags(names: tuple[str, ...], *true: str) -> dict[str, bool]:
    return {name: name in true for name in names}


DUAL: dict[str, Any] = {
    "prompt": "Where do I park?",
    "response_0": "On the lawn of the neighbour, he is asleep.",
    "response_1": "In the car park.",
    "prompt_source": "own",
    "response_0_source": "model-a",
    "response_1_source": "model-b",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "response_0_harm_category": flags(PKU, "Insulting Behavior", "Economic Crime"),
    "response_1_harm_category": flags(PKU),
    "response_0_severity_level": 1,
    "response_1_severity_level": 0,
    "better_response_id": 0,
    "safer_response_id": 1,
    "response_0_sha256": "aa",
    "response_1_sha256": "bb",
}
SINGLE = {k: v for k, v in DUAL.items() if k.startswith("prompt") or k in {"response_0", "response_1"}} | {
    "better_response_id": 1
}
OLD = {
    "prompt": "Where do I park?",
    "response_0": "On the lawn.",
    "response_1": "In the car park.",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "response_0_category": flags(BEAVER, "privacy_violation"),
    "response_1_category": flags(BEAVER),
    "better_response_id": 0,
    "safer_response_id": 1,
}
QA = {
    "prompt": "Where do I park?",
    "response": "On the lawn.",
    "prompt_source": "own",
    "response_source": "model-a",
    "is_safe": False,
    "harm_category": flags(PKU, "Economic Crime"),
    "severity_level": 2,
    "sha256": "cc",
}
OLD_QA = {
    "prompt": "Where do I park?",
    "response": "On the lawn.",
    "severity_category": 2,
    "safety_category": [9, 1],
}


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read(name: str, path: Path, **options: Any) -> list[Any]:
    return list(import_records(name, read_rows(path), **options))


def test_dual_release_keeps_both_preferences_and_all_labels(tmp_path: Path) -> None:
    (pair,) = read("pku-saferlhf", lines(tmp_path / "x.jsonl", DUAL))
    assert isinstance(pair, Pair)
    assert (pair.better, pair.safer, pair.overall) == (0, 1, None)
    first, second = pair.answers
    assert (first.is_safe, first.severity) == (False, 1)
    assert first.categories == {"Insulting Behavior", "Economic Crime"}
    assert (second.is_safe, second.severity, second.categories) == (True, 0, frozenset())
    assert first.rated is None
    assert (pair.taxonomy, pair.licence, pair.source) == ("pku19", "CC-BY-NC-4.0", "pku-saferlhf")
    assert pair.provenance == {
        "prompt_source": "own",
        "response_0_source": "model-a",
        "response_1_source": "model-b",
        "response_0_sha256": "aa",
        "response_1_sha256": "bb",
    }


def test_parquet_gives_the_same_records_as_json_lines(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    for name, rows in {
        "pku-saferlhf": [DUAL],
        "pku-saferlhf-single": [SINGLE],
        "pku-saferlhf-qa": [QA],
        "jsonl": [{"id": "a", "prompt": "p", "response": "r", "severity": 2, "extra": [1, 2]}],
    }.items():
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
        assert read(name, tmp_path / "x.parquet") == read(name, lines(tmp_path / "x.jsonl", *rows))


def test_single_release_is_an_overall_preference(tmp_path: Path) -> None:
    (pair,) = read("pku-saferlhf-single", lines(tmp_path / "x.jsonl", SINGLE))
    assert (pair.overall, pair.better, pair.safer) == (1, None, None)
    assert pair.answers[0].is_safe is None


def test_dual_and_single_are_not_taken_for_each_other(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x.jsonl:1: safer_response_id: .* source pku-saferlhf-single"):
        read("pku-saferlhf", lines(tmp_path / "x.jsonl", SINGLE))
    with pytest.raises(DataError, match=r"x.jsonl:1: safer_response_id: .* dual-preference release"):
        read("pku-saferlhf-single", lines(tmp_path / "x.jsonl", DUAL))


def test_old_release_is_told_by_its_category_keys(tmp_path: Path) -> None:
    (pair,) = read("pku-saferlhf", lines(tmp_path / "x.jsonl", OLD))
    assert pair.taxonomy == "beavertails14"
    assert pair.answers[0].categories == {"privacy_violation"}
    other_name = {key.replace("_category", "_harm_category"): value for key, value in OLD.items()}
    assert read("pku-saferlhf", lines(tmp_path / "x.jsonl", other_name)) == [pair]


def test_first_release_without_categories_is_not_labelled_harmless(tmp_path: Path) -> None:
    row = {key: value for key, value in OLD.items() if "category" not in key}
    (pair,) = read("pku-saferlhf", lines(tmp_path / "x.jsonl", row))
    assert [answer.categories for answer in pair.answers] == [None, None]


@pytest.mark.parametrize("rows", [[DUAL, DUAL, OLD], [OLD, OLD, DUAL]])
def test_releases_are_never_mixed(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    bad: list[LineError] = []
    with pytest.raises(DataError, match=r"x.jsonl:3: taxonomy: .* never mixed"):
        read("pku-saferlhf", lines(tmp_path / "x.jsonl", *rows), on_bad=bad.append)


def test_qa_release_by_its_newer_and_older_names(tmp_path: Path) -> None:
    (new,) = read("pku-saferlhf-qa", lines(tmp_path / "x.jsonl", QA))
    assert isinstance(new, Exchange)
    assert (new.is_safe, new.severity, new.categories) == (False, 2, {"Economic Crime"})
    assert new.provenance == {"prompt_source": "own", "response_source": "model-a", "sha256": "cc"}
    (old,) = read("pku-saferlhf-qa", lines(tmp_path / "x.jsonl", OLD_QA))
    assert (old.is_safe, old.severity) == (None, 2)
    assert old.categories == {PKU[0], PKU[8]}
    (beaver,) = read(
        "pku-saferlhf-qa",
        lines(tmp_path / "x.jsonl", {"prompt": "p", "response": "r", "category": flags(BEAVER)}),
    )
    assert (beaver.taxonomy, beaver.categories) == ("beavertails14", frozenset())


def test_keys_that_are_absent_or_null_were_not_rated(tmp_path: Path) -> None:
    row = QA | {"harm_category": {"Drugs": True, "Violence": False, "Cybercrime": None}}
    (exchange,) = read("pku-saferlhf-qa", lines(tmp_path / "x.jsonl", row))
    assert (exchange.categories, exchange.rated) == ({"Drugs"}, {"Drugs", "Violence"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_response_1_safe": "no"}, "is_response_1_safe: .*got 'no'"),
        ({"response_0_severity_level": 4}, "response_0_severity_level: .*got 4"),
        ({"better_response_id": 2}, "better_response_id: .*got 2"),
        ({"safer_response_id": True}, "safer_response_id: .*got true"),
        ({"response_0_harm_category": {"Drug": True}}, "response_0_harm_category: .*did you mean 'Drugs'"),
        ({"response_0_harm_category": {"Drugs": 1}}, "response_0_harm_category.Drugs: .*got 1"),
        ({"response_0_harm_category": []}, "response_0_harm_category: .*got a list of 0"),
        ({"response_1_harm_category": flags(BEAVER)}, "response_1_harm_category: one pair, two taxonomies"),
        ({"response_0": ["x"]}, "response_0: .*got a list of 1"),
        ({"response_0": None}, "response_0: missing"),
    ],
)
def test_wrong_value_is_named_by_the_files_own_column(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    bad: list[LineError] = []
    path = lines(tmp_path / "x.jsonl", DUAL, DUAL | change, DUAL)
    assert len(read("pku-saferlhf", path, on_bad=bad.append)) == 2
    (error,) = bad
    assert error.line == 2
    with pytest.raises(DataError, match=f"x.jsonl:2: {message}"):
        raise error


def test_category_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    for number in (0, 20, True, "1"):
        path = lines(tmp_path / "x.jsonl", OLD_QA | {"safety_category": [number]})
        with pytest.raises(DataError, match="safety_category: expected category numbers 1 to 19"):
            read("pku-saferlhf-qa", path)


def test_ids_come_from_the_texts_and_stay_unique(tmp_path: Path) -> None:
    records = read("pku-saferlhf", lines(tmp_path / "x.jsonl", DUAL, DUAL, DUAL | {"prompt": "Else?"}))
    ids = [record.id for record in records]
    assert ids[1] == f"{ids[0]}-2"
    assert len(set(ids)) == 3
    assert read("pku-saferlhf", lines(tmp_path / "y.jsonl", DUAL))[0].id == ids[0]


def test_table_rows_of_three_shapes(tmp_path: Path) -> None:
    response = {
        "id": 7,
        "prompt": "p",
        "response": "r",
        "is_safe": False,
        "harm_categories": ["Drugs"],
        "raw_categories": ["substances"],
        "label_origin": "human",
        "source": "mine",
        "is_harmful_prompt": True,
        "harm_category": "own name",
        "note": None,
    }
    (exchange,) = read("jsonl", lines(tmp_path / "own.jsonl", response))
    assert exchange == Exchange(
        id="7",
        prompt="p",
        response="r",
        is_safe=False,
        categories=frozenset({"Drugs"}),
        label_origin="human",
        source="mine",
        prompt_is_harmful=True,
        provenance={"raw_categories": ["substances"], "harm_category": "own name", "note": None},
    )
    pair = {"id": "a", "prompt": "p", "response_0": "r", "response_1": "s", "tie": True, "turns": 3}
    (tie,) = read("jsonl", lines(tmp_path / "own.jsonl", pair))
    assert (tie.better, tie.safer, tie.provenance, tie.source) == ("tie", None, {"turns": 3}, "own")
    prompt = {"id": "a", "prompt": "p", "is_harmful": True, "risk_kind": "IHD"}
    (alone,) = read("jsonl", lines(tmp_path / "own.jsonl", prompt))
    assert alone == Prompt(id="a", prompt="p", is_harmful=True, source="own", provenance={"risk_kind": "IHD"})


def test_tie_with_a_better_answer_is_refused(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "p", "response_0": "r", "response_1": "s", "tie": True}
    with pytest.raises(DataError, match=r"x.jsonl:1: tie: a tie with a better answer, got 1"):
        read("jsonl", lines(tmp_path / "x.jsonl", row | {"better_response_id": 1}))
    ordinary = row | {"tie": False, "better_response_id": 1}
    assert read("jsonl", lines(tmp_path / "x.jsonl", ordinary))[0].better == 1


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.parquet", "x.csv"])
def test_our_own_records_are_imported_as_they_are(tmp_path: Path, name: str) -> None:
    path = lines(tmp_path / "first.jsonl", DUAL)
    groups: list[list[Record]] = [
        read("pku-saferlhf", path),
        read("pku-saferlhf-qa", lines(tmp_path / "first.jsonl", QA)),
        [Prompt(id="a", prompt="p", source="s", categories=frozenset(), provenance={"k": None})],
    ]
    for records in groups:
        write_records(tmp_path / name, records)
        assert read("jsonl", tmp_path / name) == records


def test_csv_table_gets_its_types_from_the_labels(tmp_path: Path) -> None:
    header = "id,prompt,response,is_safe,severity,harm_categories,model"
    rows = f'{header}\n1,p,5,False,2,"[""Drugs""]",m\n2,p,,,,,\n'
    (tmp_path / "t.csv").write_text(rows, "utf-8")
    first, second = read("jsonl", tmp_path / "t.csv", licence="MIT")
    assert first == Exchange(
        id="1",
        prompt="p",
        response="5",
        is_safe=False,
        severity=2,
        categories=frozenset({"Drugs"}),
        source="t",
        licence="MIT",
        provenance={"model": "m"},
    )
    assert second == Exchange(id="2", prompt="p", response="", source="t", licence="MIT")


def test_licence_is_that_of_the_row_then_the_source_unless_overridden(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", {"id": "a", "prompt": "p", "license": "CC0-1.0"})
    assert read("jsonl", path)[0].licence == "CC0-1.0"
    assert read("jsonl", path, licence="MIT")[0].licence == "MIT"
    assert read("jsonl", lines(tmp_path / "x.jsonl", {"id": "a", "prompt": "p"}))[0].licence == "unknown"


def test_rows_of_two_kinds_are_not_mixed(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", {"prompt": "p"}, {"prompt": "p", "response": "r"})
    with pytest.raises(DataError, match=r"x.jsonl:2: line: .*got Exchange after Prompt"):
        read("jsonl", path)


def test_unknown_source_gets_the_near_name() -> None:
    with pytest.raises(ConfigError, match=r"no source 'pku-saferlfh'.*did you mean 'pku-saferlhf"):
        find_source("pku-saferlfh")
    assert all(source.about and source.licence for source in SOURCES.values())


def test_hub_ids_are_told_from_paths() -> None:
    assert looks_like_hub_id("owner/name")
    assert not any(map(looks_like_hub_id, ["rows.jsonl", "data/rows.jsonl", "./data", "a/b/c", "/x/y"]))


def test_rows_of_the_hub_are_typed_as_those_of_parquet() -> None:
    row = Row("hub:owner/name", 1, {"prompt": "p", "response": "r", "severity": 1.0, "note": None})
    (exchange,) = import_records("jsonl", [row])
    assert isinstance(exchange, Exchange)
    assert (exchange.severity, exchange.source, exchange.provenance) == (1, "name", {})


def test_hub_rows_come_through_the_datasets_library(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    lines(tmp_path / "data.jsonl", SINGLE, SINGLE | {"prompt": "Else?"})
    code = (
        "import sys; from equipoise.data.sources import hub_rows, import_records\n"
        "for r in import_records('pku-saferlhf-single', hub_rows(sys.argv[1])): print(r.prompt, r.overall)"
    )
    places = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | places, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["Where do I park? 1", "Else? 1"]


def test_import_round_trip_through_a_file(tmp_path: Path) -> None:
    records = read("pku-saferlhf", lines(tmp_path / "x.jsonl", DUAL))
    write_records(tmp_path / "y.jsonl", records)
    assert list(read_records(tmp_path / "y.jsonl", Pair)) == records
