"""The export as a run: the licence gate, the rows, and a folder that is complete or not there."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from equipoise.data.check import FoundError
from equipoise.data.export.card import hub_card
from equipoise.data.export.formats import FORMATS
from equipoise.data.export.licences import excluded_by
from equipoise.data.export.rows import LeftOut
from equipoise.data.export.settings import ExportConfig
from equipoise.data.export.tally import Tally
from equipoise.data.export.writer import json_lines, write_rows
from equipoise.data.identity import AnyRecord, text_key
from equipoise.data.io import Placed, write_records
from equipoise.data.steps import read_files
from equipoise.errors import DataError
from equipoise.lineage import Run, Step, write_text


def _export(config: ExportConfig, run: Run) -> None:
    tally, work = Tally(), run.scratch / "export"
    shutil.rmtree(work, ignore_errors=True)
    (work / "data").mkdir(parents=True)
    try:
        with json_lines(work / "left_out.jsonl") as note:
            for split, files in config.files_of().items():
                _Split(config, split, tally, note).write(files, work / "data")
        if tally.refused and not config.drop_licences:
            what = "nothing was exported (--drop-licences leaves such records out)"
            raise FoundError(what, tally.findings())
    except DataError:
        shutil.rmtree(work)  # so that the folder is free for other settings
        raise
    (run.out / "data").mkdir(exist_ok=True)
    for path in sorted(work.rglob("*.*")):
        path.replace(run.out / path.relative_to(work))
    write_text(run.out / "README.md", hub_card(config, tally))
    run.licences.clear()  # what the inputs' manifests say: the rows know better, and some may be left out
    run.licences |= set(tally.licences)
    run.notes |= {
        "rows": dict(tally.rows),
        "left_out": dict(tally.left_out.most_common()),
        "refused_licences": {name: refused.n for name, refused in sorted(tally.refused.items())},
        "licences": dict(tally.licences),
    }


class _Split:
    """One split on its way: records pass the gate, become rows, and what does not is counted and listed."""

    def __init__(
        self, config: ExportConfig, split: str, tally: Tally, note: Callable[[dict[str, Any]], None]
    ) -> None:
        self.config, self.split, self.tally, self.note = config, split, tally, note
        self.form = FORMATS[config.to]
        self.excluded = (
            *config.exclude_licences,
            *(() if config.allow_unknown_licence else ("unknown",)),
        )

    def write(self, files: Sequence[Path], folder: Path) -> None:
        """Write the split into a folder.

        Raises:
            DataError: nothing is left of it, for another reason than a licence that ends the run anyway.
        """
        config, tally = self.config, self.tally
        path = folder / f"{self.split}.{config.file_format}"
        records = self._allowed(read_files(files))
        if self.form.rows is None:
            first = next(records, None)
            rows = () if first is None else chain((first,), records)
            tally.kinds[self.split] = type(first.record).__name__ if first else ""
            written = write_records(path, self._counted(rows)) if first else 0
        else:
            written = write_rows(path, self.form.columns(config), self._rows(records))
        if not written and (config.drop_licences or not tally.refused):
            reasons = ", ".join(f"{n} x {reason}" for reason, n in tally.left_out.most_common(5))
            what = f"split '{self.split}': no row left to export as {config.to}"
            raise DataError(f"{what}: {reasons or 'no records'}")
        tally.rows[self.split] = written

    def _skip(self, placed: Placed[AnyRecord], reason: str) -> None:
        self.tally.left_out[reason] += 1
        place = {"file": Path(placed.path).name, "line": placed.line, "id": placed.record.id}
        self.note({"split": self.split, **place, "reason": reason})

    def _allowed(self, records: Iterable[Placed[AnyRecord]]) -> Iterator[Placed[AnyRecord]]:
        """Yield the records that the licence gate lets through."""
        verdicts: dict[str, str | None] = {}
        for placed in records:
            licence = placed.record.licence
            if licence not in verdicts:
                verdicts[licence] = excluded_by(licence, self.excluded)
            exclusion = verdicts[licence]
            if exclusion is None:
                yield placed
            else:
                self.tally.refuse(placed, exclusion)
                self._skip(placed, f"licence '{licence}' is excluded ({exclusion})")

    def _rows(self, records: Iterable[Placed[AnyRecord]]) -> Iterator[dict[str, Any]]:
        """Yield the rows that records give, and count what they do not."""
        assert self.form.rows is not None
        seen: set[bytes] = set()
        for placed in records:
            is_used = False
            for row in self.form.rows(placed.record, self.config):
                if isinstance(row, LeftOut):
                    self._skip(placed, row.reason)
                elif self.form.is_unique and not _is_new(row, seen):
                    self._skip(placed, "the prompt stands already")
                else:
                    is_used = True
                    yield row
            if is_used:
                self.tally.take(placed.record)

    def _counted(self, records: Iterable[Placed[AnyRecord]]) -> Iterator[AnyRecord]:
        for placed in records:
            self.tally.take(placed.record)
            yield placed.record


def _is_new(row: dict[str, Any], seen: set[bytes]) -> bool:
    key = text_key([repr(row["prompt"])])
    is_new = key not in seen
    seen.add(key)
    return is_new


EXPORT = Step("data export", 1, _export, config=ExportConfig)
