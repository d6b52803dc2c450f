"""The runs that make data: settings, and what each does. The command line and recipes use the same."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, cast

from pydantic import Field

from equipoise.config import Config, InputPath
from equipoise.data.card import card
from equipoise.data.check import Finding, FoundError, check, unreadable
from equipoise.data.identity import AnyRecord
from equipoise.data.import_config import ImportConfig
from equipoise.data.io import (
    NoRowsError,
    Placed,
    read_placed,
    record_kind,
    write_records,
    writing_records,
)
from equipoise.data.merge import Merged, merge
from equipoise.data.opposite import Opposites
from equipoise.data.resolve import OnContradiction, Resolved, resolve
from equipoise.data.rows import LineError, OnBad, Row, fail, read_rows
from equipoise.data.sampling import reservoir
from equipoise.data.sources import find_source, hub_rows, import_records
from equipoise.data.splits import check_fractions, split
from equipoise.data.statistics import Counting, Statistics, statistics
from equipoise.data.statistics_page import page
from equipoise.data.values import translate, with_labels
from equipoise.errors import ConfigError, DataError
from equipoise.lineage import Run, Step, write_text
from equipoise.progress import track


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


class StatsConfig(FilesConfig):
    """Settings of the page of statistics."""

    title: str = "Data statistics"


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


class Checked(NamedTuple):
    """How many records can be read, and all that is wrong, in order of place."""

    records: int
    findings: list[Finding]


def check_files(files: Sequence[Path]) -> Checked:
    """Read files and check what is in them; memory grows with ids and texts' hashes only."""
    bad: list[LineError] = []
    counting = Counter[str]()
    opposites = Opposites()
    findings = list(check(opposites.watch(_counted(read_files(files, bad.append), counting))))
    findings += opposites.findings()
    order = {str(path): index for index, path in enumerate(files)}
    findings += map(unreadable, bad)
    return Checked(counting.total(), sorted(findings, key=lambda found: (order[found.path], found.line)))


def _counted(placed: Iterable[Placed[AnyRecord]], counts: Counter[str]) -> Iterator[Placed[AnyRecord]]:
    for item in placed:
        counts[item.path] += 1
        yield item


class _Readable:
    """The records of files that can be read, from the start whenever they are gone through."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __iter__(self) -> Iterator[Placed[AnyRecord]]:
        return read_files(self.files, lambda _: None)


def statistics_of(files: Sequence[Path]) -> Statistics:
    """Count what files of records hold."""
    return statistics(placed.record for placed in read_files(files))


def _import(config: ImportConfig, run: Run) -> None:
    bad: list[LineError] = []
    find_source(config.source)
    rows: Iterable[Row]
    if config.path is not None:
        rows = read_rows(config.path, on_bad=bad.append, columns=config.columns)
    else:
        assert config.hub_id is not None
        rows = hub_rows(config.hub_id, split=config.split, subset=config.subset, revision=config.revision)
    if config.values:
        rows = translate(rows, config.values, bad.append)
    rows = reservoir(rows, config.sample, config.seed) if config.sample else rows
    labelled = with_labels(rows, config.labels)
    found = import_records(config.source, labelled, licence=config.licence, on_bad=bad.append)
    records = cast(Iterator[AnyRecord], track(found, f"importing {config.source}"))  # no judgements
    stats = _write(run, _imported(config, records, bad))
    about = f"Imported as `{config.source}`; {len(bad)} rows could not be read."
    write_text(run.card, card(stats, "Imported data", about))
    kinds = {"Prompt": stats.prompts, "Exchange": stats.exchanges, "Pair": stats.pairs}
    (kind,) = (name for name, count in kinds.items() if count)
    run.notes |= {"kind": kind, "skipped": [str(error) for error in bad]}


def _imported(
    config: ImportConfig, records: Iterator[AnyRecord], bad: Sequence[LineError]
) -> Iterator[AnyRecord]:
    """Yield the records; at the end, stop the import if rows were bad or there was none."""
    first = next(records, None)
    if first is not None:
        yield first
    yield from records
    if bad and config.on_bad == "error":
        raise FoundError("nothing was imported", [unreadable(error) for error in bad])
    if first is None:
        raise DataError(f"{config.path or config.hub_id}: no row to import")


def _check(config: CheckConfig, run: Run) -> None:
    findings, left = check_files(config.files).findings, Resolved([], [], [])
    stats = _write(run, resolve(_Readable(config.files), findings, config.on_contradiction, left))
    about = (
        f"{len(findings)} findings, treated by `{config.on_contradiction}`: {len(left.dropped)} records left "
        f"out, {len(left.flipped)} turned, {len(left.kept)} kept as they are."
    )
    write_text(run.card, card(stats, "Checked data", about))
    run.notes |= {"findings": [str(found) for found in findings], **left._asdict()}


def _merge(config: MergeConfig, run: Run) -> None:
    merged = Merged([], {}, [])
    stats = _write(run, merge(read_files(config.files), merged))
    about = (
        f"Of {len(config.files)} files; {len(merged.duplicates)} records that stood twice left out, "
        f"{len(merged.renamed)} ids renamed, {len(merged.conflicts)} conflicts of labels."
    )
    write_text(run.card, card(stats, "Merged data", about))
    run.notes |= merged._asdict() | {"conflicts": [str(found) for found in merged.conflicts]}


def _split(config: SplitConfig, run: Run) -> None:
    check_fractions(config.fractions)
    stems = {str(path): _stem(path) for path in config.files}
    for stem in stems.values():
        if [_stem(path) for path in config.files].count(stem) > 1:
            raise ConfigError(f"files: two files are named '{stem}', and the parts are named after the files")
    counting = Counting()
    records = counting.watch(placed.record for placed in read_files(config.files))
    parts = split(records, config.fractions, seed=config.seed, stratify=config.stratify)
    for name in config.fractions:
        if name not in parts:
            raise DataError(f"fractions: part '{name}' would be empty, got {len(parts)} rows to split")
    counts = {name: dict.fromkeys(stems.values(), 0) for name in config.fractions}
    with ExitStack() as stack:
        write = {
            (name, stem): stack.enter_context(writing_records(run.out / name / f"{stem}.jsonl"))
            for name, files in counts.items()
            for stem in files
        }
        for placed, part in zip(read_files(config.files), parts, strict=True):
            write[part, stems[placed.path]](placed.record)
            counts[part][stems[placed.path]] += 1
    stats = counting.result()
    run.licences |= set(stats.licences)
    shares = ", ".join(f"{name} {sum(count.values())}" for name, count in counts.items())
    write_text(run.card, card(stats, "Split data", f"Rows in the parts: {shares}. No prompt is in two."))
    run.notes |= {"records": len(parts), "parts": {name: dict(count) for name, count in counts.items()}}


def _card(config: CardConfig, run: Run) -> None:
    stats = statistics_of(config.files)
    run.licences |= set(stats.licences)
    write_text(run.out, card(stats, config.title, config.description))


def _stats(config: StatsConfig, run: Run) -> None:
    stats = statistics_of(config.files)
    run.licences |= set(stats.licences)
    write_text(run.out / "statistics.json", stats.model_dump_json(indent=1) + "\n")
    write_text(run.out / "statistics.html", page(stats, config.title))
    write_text(run.card, card(stats, config.title))
    run.notes["records"] = stats.prompts + stats.exchanges + stats.pairs


def _write(run: Run, records: Iterable[AnyRecord]) -> Statistics:
    """Write records as they come, and return what they hold."""
    counting = Counting()
    run.notes["records"] = write_records(run.out, counting.watch(records))
    stats = counting.result()
    run.licences |= set(stats.licences)
    return stats


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
CHECK = Step("data check", 2, _check, writes_file=True, config=CheckConfig)
MERGE = Step("data merge", 1, _merge, writes_file=True, config=MergeConfig)
SPLIT = Step("data split", 1, _split, config=SplitConfig)
STATS = Step("data stats", 1, _stats, config=StatsConfig)
CARD = Step("data card", 1, _card, writes_file=True, own_card=True, config=CardConfig)
