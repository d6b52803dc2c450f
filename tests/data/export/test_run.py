"""An export as a run: the folder, the licence gate, what is left out, and the hub's own reader."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from equipoise.config import parse_config, read_yaml
from equipoise.data.check import FoundError
from equipoise.data.export.run import EXPORT
from equipoise.data.export.settings import ExportConfig
from equipoise.data.io import read_records, read_rows, write_records
from equipoise.data.sources import import_records
from equipoise.errors import ConfigError, DataError
from equipoise.lineage import Outcome, produce
from equipoise.records import Answer, Exchange, Message, Pair, Prompt


def pair(n: int, **more: Any) -> Pair:
    values: dict[str, Any] = {
        "id": f"p{n}",
        "prompt": f"Where, {n}?",
        "answers": (
            Answer(response=f"On lawn {n}.", is_safe=False, severity=1, categories=frozenset({"Drugs"})),
            Answer(response=f"In street {n}.", is_safe=True, severity=0, categories=frozenset()),
        ),
        "better": 0,
        "safer": 1,
        "source": "pku-saferlhf",
        "licence": "CC-BY-NC-4.0",
        "label_origin": "human",
    }
    return Pair(**values | more)


def export(folder: Path, *files: Path, to: str = "pku-dual", **more: Any) -> Outcome:
    config = parse_config(ExportConfig, {"files": list(files), "to": to} | more, "test")
    return produce(folder, EXPORT, config)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_exported_pairs_come_back_as_the_same_records(tmp_path: Path, file_format: str) -> None:
    first = tmp_path / "first.jsonl"
    write_records(first, [pair(n) for n in range(5)])
    export(tmp_path / "once", first, file_format=file_format)
    # the first export fills in the columns of the release that our own records lack
    given = list(
        import_records("pku-saferlhf", read_rows(tmp_path / "once" / "data" / f"train.{file_format}"))
    )
    write_records(tmp_path / "second.jsonl", given)
    export(tmp_path / "twice", tmp_path / "second.jsonl", file_format=file_format)
    path = tmp_path / "twice" / "data" / f"train.{file_format}"
    back = list(import_records("pku-saferlhf", read_rows(path)))
    assert back == given
    labels = {"prompt", "answers", "better", "safer", "source", "licence", "label_origin", "taxonomy"}
    assert [r.model_dump(include=labels) for r in back] == [
        pair(n).model_dump(include=labels) for n in range(5)
    ]


@pytest.mark.parametrize("to", ["pku-dual", "pku-qa", "trl-preference", "trl-kto", "trl-prompt"])
def test_parquet_holds_what_json_lines_hold(tmp_path: Path, to: str) -> None:
    path = tmp_path / "in.jsonl"
    partly = Answer(response="x", is_safe=False, categories=frozenset({"Drugs"}), rated=frozenset({"Drugs"}))
    write_records(path, [pair(0), pair(1, answers=(partly, Answer(response="y", is_safe=True)))])
    more = {"preference": "safer"} if to == "trl-preference" else {}
    export(tmp_path / "a", path, to=to, **more)
    export(tmp_path / "b", path, to=to, file_format="parquet", **more)
    one = [row.values for row in read_rows(tmp_path / "a" / "data" / "train.jsonl")]
    other = [row.values for row in read_rows(tmp_path / "b" / "data" / "train.parquet")]
    assert one == other
    assert [list(row) for row in one] == [list(row) for row in other]


def test_records_are_exported_as_they_are(tmp_path: Path) -> None:
    path, records = tmp_path / "in.jsonl", [pair(0), pair(1, licence="MIT")]
    write_records(path, records)
    for file_format in ("jsonl", "parquet"):
        out = tmp_path / file_format
        assert export(out, path, to="records", file_format=file_format).manifest.notes["rows"] == {"train": 2}
        assert list(read_records(out / "data" / f"train.{file_format}", Pair)) == records


def test_each_kind_of_record_is_a_configuration_of_its_own(tmp_path: Path) -> None:
    paths = {}
    for name, record in {
        "asked": Prompt(id="q", prompt="Where, 0?", licence="MIT"),
        "train": pair(0),
        "test": pair(1),
    }.items():
        paths[name] = tmp_path / f"{name}.jsonl"
        write_records(paths[name], [record])
    export(tmp_path / "out", *paths.values(), splits=list(paths), to="records")
    front = (tmp_path / "out" / "README.md").read_text("utf-8").split("---\n")[1]
    (tmp_path / "front.yaml").write_text(front, "utf-8")
    configs = {c["config_name"]: c["data_files"] for c in read_yaml(tmp_path / "front.yaml")["configs"]}
    assert configs == {
        "prompts": [{"split": "asked", "path": "data/asked.jsonl"}],
        "pairs": [
            {"split": "train", "path": "data/train.jsonl"},
            {"split": "test", "path": "data/test.jsonl"},
        ],
    }


def test_the_folder_holds_a_card_that_the_hub_reads(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    write_records(path, [pair(0), pair(1, better="tie", licence="MIT", source="own"), pair(2)])
    outcome = export(tmp_path / "out", path, title="Own pairs: three", description="Not good for much.")
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    _, front, body = text.split("---\n", 2)
    (tmp_path / "front.yaml").write_text(front, "utf-8")
    assert read_yaml(tmp_path / "front.yaml") == {
        "pretty_name": "Own pairs: three",
        "license": "cc-by-nc-4.0",
        "task_categories": ["text-generation"],
        "size_categories": ["n<1K"],
        "tags": ["safety", "alignment", "equipoise", "pku-dual"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/train.jsonl"}],
            }
        ],
    }
    assert "# Own pairs: three\n" in body
    assert "Not good for much." in body
    assert "| 'better' is a tie, and the format has none | 1 |" in body
    assert "| CC-BY-NC-4.0 | 2 |" in body
    assert "- pku-saferlhf: Ji et al., PKU-SafeRLHF" in body
    assert "MIT" not in body  # no row of it was written
    assert "Where, 0?" not in text
    assert lines(tmp_path / "out" / "left_out.jsonl") == [
        {
            "split": "train",
            "file": "in.jsonl",
            "line": 2,
            "id": "p1",
            "reason": "'better' is a tie, and the format has none",
        }
    ]
    assert outcome.manifest.licences == ["CC-BY-NC-4.0"]
    assert outcome.manifest.outputs.keys() >= {"README.md", "data/train.jsonl", "left_out.jsonl"}
    assert outcome.manifest.notes["left_out"] == {"'better' is a tie, and the format has none": 1}


def test_where_nothing_is_left_out_there_is_no_list(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    write_records(path, [pair(0)])
    assert "left_out.jsonl" not in export(tmp_path / "out", path).manifest.outputs
    assert "## Left out\n\nNothing." in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_splits_are_files_of_one_data_set_that_the_datasets_library_loads(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for name, numbers in (("train", range(3)), ("test", range(3, 5))):
        write_records(tmp_path / f"{name}.jsonl", [pair(n) for n in numbers])
    files = (tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    for file_format in ("jsonl", "parquet"):
        export(tmp_path / file_format, *files, splits=["train", "test"], file_format=file_format)
    code = (
        "import sys; from datasets import load_dataset\n"
        "for place in sys.argv[1:]:\n"
        "    data = load_dataset(place)\n"
        "    print({name: len(rows) for name, rows in data.items()}, data['test'][0]['prompt'])"
    )
    places = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "jsonl"), str(tmp_path / "parquet")]
    done = subprocess.run(command, env=os.environ | places, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["{'train': 3, 'test': 2} Where, 3?"] * 2


def test_an_excluded_licence_is_refused_by_name_and_number_and_nothing_stays_behind(tmp_path: Path) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out"
    write_records(path, [pair(0, licence="MIT"), *(pair(n) for n in (1, 2)), pair(3, licence="unknown")])
    with pytest.raises(FoundError) as caught:
        export(out, path, exclude_licences=["GPL", "NC"])
    assert [(found.line, found.id, found.message) for found in caught.value.findings] == [
        (2, "p1", "2 records under 'CC-BY-NC-4.0', which is excluded (NC)"),
        (4, "p3", "1 records under 'unknown', which is excluded (unknown)"),
    ]
    assert not out.exists()
    with pytest.raises(FoundError) as caught:
        export(out, path)
    assert [found.line for found in caught.value.findings] == [4]
    notes = export(out, path, exclude_licences=["NC"], drop_licences=True).manifest.notes
    assert notes["rows"] == {"train": 1}
    assert notes["refused_licences"] == {"CC-BY-NC-4.0": 2, "unknown": 1}
    reasons = [row["reason"] for row in lines(out / "left_out.jsonl")]
    assert reasons.count("licence 'CC-BY-NC-4.0' is excluded (NC)") == 2
    allowed = export(tmp_path / "all", path, allow_unknown_licence=True).manifest
    assert allowed.notes["rows"] == {"train": 4}
    assert allowed.licences == ["CC-BY-NC-4.0", "MIT", "unknown"]


def test_unknown_that_is_named_is_refused_even_where_it_is_allowed(tmp_path: Path) -> None:
    write_records(tmp_path / "in.jsonl", [pair(0, licence="unknown")])
    with pytest.raises(FoundError):
        export(
            tmp_path / "out", tmp_path / "in.jsonl", exclude_licences=["unknown"], allow_unknown_licence=True
        )


def test_an_export_without_a_row_says_why(tmp_path: Path) -> None:
    write_records(tmp_path / "in.jsonl", [pair(0, better=None), pair(1, better="tie"), pair(2, better="tie")])
    message = (
        "split 'train': no row left to export as pku-dual: 2 x 'better' is a tie.*1 x 'better' is not lab"
    )
    with pytest.raises(DataError, match=message):
        export(tmp_path / "out", tmp_path / "in.jsonl")
    assert not (tmp_path / "out").exists()


def test_the_same_prompt_is_given_once(tmp_path: Path) -> None:
    chat = (Message(role="user", content="q"),)
    write_records(tmp_path / "a.jsonl", [Prompt(id="1", prompt="q", licence="MIT")])
    exchanges = [
        Exchange(id=str(n), prompt=chat if n else "r", response="x", licence="MIT") for n in range(3)
    ]
    write_records(tmp_path / "b.jsonl", exchanges)
    outcome = export(
        tmp_path / "out", tmp_path / "a.jsonl", tmp_path / "b.jsonl", to="trl-prompt", style="standard"
    )
    assert [row["prompt"] for row in lines(tmp_path / "out" / "data" / "train.jsonl")] == ["q", "r"]
    assert outcome.manifest.notes["left_out"] == {"the prompt stands already": 2}


def test_two_licences_are_both_told_to_the_hub_and_an_unusual_one_by_name(tmp_path: Path) -> None:
    from equipoise.data.export.card import hub_licence

    assert hub_licence(["CC-BY-NC-4.0", "MIT"]) == {"license": ["cc-by-nc-4.0", "mit"]}
    assert hub_licence(["Own Terms"]) == {"license": "other", "license_name": "own-terms"}
    assert hub_licence(["ODC-BY-1.0"]) == {"license": "odc-by"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "pku-dal"}, r"to: no such format \(did you mean 'pku-dual'\?\); known: .*, got 'pku-dal'"),
        ({"to": "trl-preference"}, "preference: missing, and 'trl-preference' needs it"),
        ({"to": "pku-dual", "ties": "both"}, "ties: 'pku-dual' takes no such choice; it takes: none"),
        (
            {"to": "trl-kto", "preference": "safer"},
            "preference: 'trl-kto' takes no such choice; it takes: label",
        ),
        ({"to": "trl-prompt", "style": "chat"}, "style: .*got 'chat'"),
        ({"to": "pku-dual", "splits": ["a", "b"]}, "splits: expected one name for each of 1 files, got 2"),
        ({"to": "pku-dual", "splits": ["../a"]}, "splits: expected letters, digits, _ and . in a name"),
        ({"to": ["pku-dual"]}, r"to: .*got \['pku-dual'\]"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(ExportConfig, {"files": [tmp_path / "x.jsonl"]} | settings, "test")


def test_the_resolved_settings_repeat_the_run(tmp_path: Path) -> None:
    write_records(tmp_path / "in.jsonl", [pair(0)])
    out = tmp_path / "out"
    export(out, tmp_path / "in.jsonl", to="trl-preference", preference="safer")
    settings = read_yaml(out / "config.yaml")
    assert (settings["ties"], settings["style"], settings["label"]) == ("drop", "conversational", None)
    assert produce(out, EXPORT, parse_config(ExportConfig, settings, "config.yaml")).skipped
