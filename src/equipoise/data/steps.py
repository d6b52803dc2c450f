"""The runs that make data: settings, and what each does. The command line and recipes use the same."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from equipoise.config import Config, InputPath
from equipoise.data.card import card
from equipoise.data.check import Finding, FoundError, check, unreadable
from equipoise.data.identity import AnyRecord
from equipoise.data.io import NoRowsError, Placed, read_placed, record_kind, write_records
from equipoise.data.merge import merge
from equipoise.data.resolve import OnContradiction, resolve
from equipoise.data.rows import LineError, OnBad, fail, read_rows
from equipoise.data.sources import find_source, hub_rows, import_records
from equipoise.data.splits import check_fractions, split
from equipoise.data.statistics import Statistics, statistics
from equipoise.errors import ConfigError, DataError
from equipoise.lineage import Run, Step, write_text
from equipoise.progress import track
from equipoise.records import Record


class ImportConfig(Config):
    """Settings of an import: a source, and either a file or a data set on the hub."""

    source: str
    path: InputPath | None = None
    hub_id: str | None = None
    split: str = "train"
    """Split of a data set on the hub."""
    subset: str | None = None
    """Its configuration, where it has several."""
    revision: str | None = None
    """Its commit, tag or branch."""
    licence: str | None = None
    """Overrides what the source states."""
    columns: dict[str, str] = {}
    """The file's column -> the name that the source expects."""
    on_bad: Literal["error", "skip"] = "error"
    """Whether one bad row stops the import, or is left out and counted."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ImportConfig":
        if (self.path is None) == (self.hub_id is None):
            raise ValueError("expected either path or hub_id")
        return self


class FilesConfig(Config):
    """Settings of a run over files of records."""

    files: tuple[InputPath, ...] = Field(min_length=1)


class CheckConfig(FilesConfig):
    """Settings of a check that writes the records it leaves."""

    on_contradiction: OnContradiction = "error"


class MergeConfig(FilesConfig):
    """Settings of a merge."""


class SplitConfig(FilesConfig):
    """Settings of a split of all files together."""

    fractions: dict[str, float] = {"train": 0.8, "test": 0.2}
    """Part -> its share of the rows; they add up to 1."""
    seed: int = 0
    stratify: bool = True


class CardConfig(FilesConfig):
    """Settings of a data card."""

    title: str = "Data card"
    description: str = ""


def read_files(files: Sequence[Path], on_bad: OnBad | None = None) -> Iterator[Placed[AnyRecord]]:
    """Yield the records of files of records, the kind of each told by its first row."""
    for path in files:
        try:
            kind: type[AnyRecord] = record_kind(path)
        except NoRowsError:
            if on_bad is None or not _report(path, on_bad):
                raise
            continue
        rows = read_placed(path, kind, on_bad=on_bad or fail)
        yield from track(rows, f"reading {path.name}")


def check_files(files: Sequence[Path]) -> tuple[list[Placed[AnyRecord]], list[Finding]]:
    """Read files and return the records that can be read, and all that is wrong, in order of place."""
    bad: list[LineError] = []
    placed = list(read_files(files, bad.append))
    order = {str(path): index for index, path in enumerate(files)}
    findings = [*map(unreadable, bad), *check(placed)]
    return placed, sorted(findings, key=lambda found: (order[found.path], found.line))


def statistics_of(files: Sequence[Path]) -> Statistics:
    """Count what files of records hold."""
    return statistics(placed.record for placed in read_files(files))


def _import(config: ImportConfig, run: Run) -> None:
    bad: list[LineError] = []
    find_source(config.source)
    if config.path is not None:
        rows = read_rows(config.path, on_bad=bad.append, columns=config.columns)
    else:
        assert config.hub_id is not None
        rows = hub_rows(config.hub_id, split=config.split, subset=config.subset, revision=config.revision)
    found = import_records(config.source, rows, licence=config.licence, on_bad=bad.append)
    records = list(track(found, f"importing {config.source}"))
    if bad and config.on_bad == "error":
        raise FoundError("nothing was imported", [unreadable(error) for error in bad])
    if not records:
        raise DataError(f"{config.path or config.hub_id}: no row to import")
    _write(run, records)
    run.notes |= {"kind": type(records[0]).__name__, "skipped": [str(error) for error in bad]}


def _check(config: CheckConfig, run: Run) -> None:
    placed, findings = check_files(config.files)
    left = resolve(placed, findings, config.on_contradiction)
    _write(run, left.records)
    run.notes |= {
        "findings": [str(found) for found in findings],
        "dropped": list(left.dropped),
        "flipped": list(left.flipped),
        "kept": list(left.kept),
    }


def _merge(config: MergeConfig, run: Run) -> None:
    merged = merge(read_files(config.files))
    _write(run, merged.records)
    run.notes |= {
        "duplicates": list(merged.duplicates),
        "renamed": dict(merged.renamed),
        "conflicts": [str(found) for found in merged.conflicts],
    }


def _split(config: SplitConfig, run: Run) -> None:
    check_fractions(config.fractions)
    stems = [_stem(path) for path in config.files]
    for stem in stems:
        if stems.count(stem) > 1:
            raise ConfigError(f"files: two files are named '{stem}', and the parts are named after the files")
    placed = list(read_files(config.files))
    records = [item.record for item in placed]
    parts = split(records, config.fractions, seed=config.seed, stratify=config.stratify)
    empty = [name for name in config.fractions if name not in parts]
    if empty:
        raise DataError(f"fractions: part '{empty[0]}' would be empty, got {len(records)} rows to split")
    counts: dict[str, dict[str, int]] = {}
    for name in config.fractions:
        chosen = [item for item, part in zip(placed, parts, strict=True) if part == name]
        for path, stem in zip(config.files, stems, strict=True):
            rows = [item.record for item in chosen if item.path == str(path)]
            write_records(run.out / name / f"{stem}.jsonl", rows)
            counts.setdefault(name, {})[stem] = len(rows)
    stats = statistics(records)
    run.licences |= set(stats.licences)
    shares = ", ".join(f"{name} {sum(count.values())}" for name, count in counts.items())
    write_text(
        run.out / "card.md", card(stats, "Split data", f"Rows in the parts: {shares}. No prompt is in two.")
    )
    run.notes |= {"records": len(records), "parts": {name: dict(count) for name, count in counts.items()}}


def _card(config: CardConfig, run: Run) -> None:
    stats = statistics_of(config.files)
    run.licences |= set(stats.licences)
    write_text(run.out, card(stats, config.title, config.description))


def _write(run: Run, records: Sequence[Record]) -> None:
    run.notes["records"] = write_records(run.out, records)
    run.licences |= {record.licence for record in records}


def _report(path: Path, on_bad: OnBad) -> int:
    """Report the lines of a file that has bad lines only; return how many they are."""
    bad: list[LineError] = []
    list(read_rows(path, on_bad=bad.append))
    for error in bad:
        on_bad(error)
    return len(bad)


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


IMPORT = Step("data import", 1, _import, writes_file=True, config=ImportConfig)
CHECK = Step("data check", 1, _check, writes_file=True, config=CheckConfig)
MERGE = Step("data merge", 1, _merge, writes_file=True, config=MergeConfig)
SPLIT = Step("data split", 1, _split, config=SplitConfig)
CARD = Step("data card", 1, _card, writes_file=True, config=CardConfig)
