"""The card beside every file of data that a run writes."""

from pathlib import Path

import pytest

from equipoise.config import Config
from equipoise.data.io import write_records
from equipoise.data.steps import (
    CARD,
    CHECK,
    IMPORT,
    MERGE,
    SPLIT,
    CardConfig,
    CheckConfig,
    ImportConfig,
    MergeConfig,
    SplitConfig,
)
from equipoise.lineage import Step, produce
from equipoise.manifests import card_of
from equipoise.records import Exchange

RECORDS = [
    Exchange(id=str(n), prompt=f"question {n}", response="secret", is_safe=n > 1, source="own", licence="MIT")
    for n in range(6)
]
WRONG = RECORDS[0].model_copy(update={"id": "wrong", "response": "other", "severity": 0})


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    write_records(tmp_path / "one.jsonl", [*RECORDS, WRONG])
    write_records(tmp_path / "two.jsonl", RECORDS[:2])
    return tmp_path / "one.jsonl", tmp_path / "two.jsonl"


def made(step: Step, config: Config, out: Path) -> str:
    assert card_of(out, is_file=step.writes_file).name in produce(out, step, config).manifest.outputs
    card = card_of(out, is_file=step.writes_file).read_text("utf-8")
    assert "secret" not in card
    assert "| MIT |" in card
    return card


def test_an_import_has_the_card_of_its_records(files: tuple[Path, Path], tmp_path: Path) -> None:
    with files[0].open("a", encoding="utf-8") as handle:
        handle.write('{"id": "cut')
    config = ImportConfig(source="jsonl", path=files[0], on_bad="skip")
    card = made(IMPORT, config, tmp_path / "out.jsonl")
    assert "Imported as `jsonl`; 1 rows could not be read." in card
    assert "| exchanges | 7 |" in card


def test_a_check_says_what_it_left_out(files: tuple[Path, Path], tmp_path: Path) -> None:
    config = CheckConfig(files=files[:1], on_contradiction="drop")
    card = made(CHECK, config, tmp_path / "out.jsonl")
    assert "1 findings, treated by `drop`: 1 records left out, 0 turned, 0 kept as they are." in card
    assert "| exchanges | 6 |" in card


def test_a_merge_says_what_stood_twice(files: tuple[Path, Path], tmp_path: Path) -> None:
    card = made(MERGE, MergeConfig(files=files), tmp_path / "out.parquet")
    assert "Of 2 files; 2 records that stood twice left out, 0 ids renamed, 0 conflicts of labels." in card


def test_a_split_has_its_card_in_its_folder(files: tuple[Path, Path], tmp_path: Path) -> None:
    config = SplitConfig(files=files, fractions={"train": 0.5, "test": 0.5})
    assert "No prompt is in two." in made(SPLIT, config, tmp_path / "out")


def test_a_card_that_was_asked_for_has_no_card(files: tuple[Path, Path], tmp_path: Path) -> None:
    produce(tmp_path / "new" / "DATA.md", CARD, CardConfig(files=files))
    assert sorted(f.name for f in (tmp_path / "new").iterdir()) == ["DATA.md", "DATA.md.manifest.json"]
