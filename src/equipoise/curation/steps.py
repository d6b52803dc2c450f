"""The runs that curate data: settings, and what each does. The command line and recipes use the same."""

import json
import math
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from equipoise.curation.dedup import Copy, Similarity, near_copies
from equipoise.curation.minhash import Unit
from equipoise.data.identity import AnyRecord, texts_of
from equipoise.data.io import Placed, write_records
from equipoise.data.steps import FilesConfig, read_files
from equipoise.engines import Engine
from equipoise.errors import DataError
from equipoise.lineage import Run, Step, replacing
from equipoise.records import Prompt

TextField = Literal["prompt", "response", "both"]
"""Which texts of a record are compared, each with its like; a pair has two responses, in their order."""


class DedupConfig(FilesConfig):
    """Settings of a search for near-copies."""

    field: TextField = "both"
    """With several texts a record is as similar to another as the least similar of them."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Jaccard index of the shingles from which on two texts are near-copies."""
    unit: Unit = "char"
    """What shingles are made of; `word` does not suit texts without spaces."""
    shingle: Annotated[int, Field(ge=1, le=64)] = 5
    """Units per shingle."""
    num_perm: Annotated[int, Field(ge=16, le=1024)] = 128
    recall: Annotated[float, Field(gt=0, lt=1)] = 0.98
    """Probability with which a pair right at the threshold is compared."""
    seed: int = 0
    score: str | None = None
    """A number in the records' provenance; the one with the highest is kept of a group, else the first."""
    engine: Engine = "local"
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes, or Ray actors, that sketch texts."""

    @property
    def similarity(self) -> Similarity:
        """What counts as a near-copy."""
        return Similarity(self.threshold, self.unit, self.shingle, self.num_perm, self.recall, self.seed)


def dropped_path(out: Path) -> Path:
    """Return where the list of the near-copies that were dropped lies, beside the records that are kept."""
    return out.with_name(out.name + ".dropped.jsonl")


def texts_in(field: TextField, record: AnyRecord) -> tuple[str, ...]:
    """Return the texts of a record that are compared; a prompt has no response and raises DataError."""
    if field == "response" and isinstance(record, Prompt):
        raise DataError("response: missing, got a prompt; expected --field prompt")
    texts = texts_of(record)
    return {"prompt": texts[:1], "response": texts[1:], "both": texts}[field]


def _dedup(config: DedupConfig, run: Run) -> None:
    scores = array("d") if config.score is not None else None

    def texts() -> Iterator[tuple[str, ...]]:
        for placed in _one_kind(config):
            if config.score is not None and scores is not None:
                scores.append(_score(placed, config.score))
            yield _at(placed, lambda record: texts_in(config.field, record))

    found = near_copies(
        texts(),
        config.similarity,
        scores=scores,
        scratch=run.scratch,
        engine=config.engine,
        workers=config.workers,
    )
    dropped = {copy.row: copy for copy in found.copies}
    named = {row for copy in found.copies for row in (copy.row, copy.of, copy.through) if row is not None}
    names: dict[int, tuple[str, str]] = {}

    def kept() -> Iterator[AnyRecord]:
        for row, placed in enumerate(read_files(config.files)):
            if row in named:
                names[row] = placed.record.id, f"{placed.path}:{placed.line}"
            if row not in dropped:
                run.licences.add(placed.record.licence)
                yield placed.record

    run.notes["records"] = write_records(run.out, kept())
    run.side_files.append(dropped_path(run.out))
    with replacing(dropped_path(run.out)) as part, part.open("w", encoding="utf-8") as lines:
        for copy in found.copies:
            lines.write(json.dumps(_line(copy, names), ensure_ascii=False) + "\n")
    sketcher = config.similarity.sketcher
    run.notes |= {
        "rows": found.rows,
        "dropped": len(found.copies),
        "exact": found.exact,
        "near": len(found.copies) - found.exact,
        "compared": found.compared,
        "passed_over": found.passed_over,
        "bands": sketcher.bands,
        "rows_per_band": sketcher.rows,
    }


def _line(copy: Copy, names: dict[int, tuple[str, str]]) -> dict[str, str | float]:
    """Return one line of the list of what was dropped."""
    (own, place), (of, of_place) = names[copy.row], names[copy.of]
    line: dict[str, str | float] = {"id": own, "row": place, "of": of, "of_row": of_place}
    line["similarity"] = round(copy.similarity, 6)
    if copy.through is not None:
        line["through"], line["through_row"] = names[copy.through]
    return line


def _one_kind(config: DedupConfig) -> Iterator[Placed[AnyRecord]]:
    first: type[AnyRecord] | None = None
    for placed in read_files(config.files):
        kind = type(placed.record)
        first = first or kind
        if kind is not first:
            names = f"{kind.__name__} after {first.__name__}"
            raise DataError(f"{placed.path}:{placed.line}: line: got {names}; expected records of one kind")
        yield placed


def _score(placed: Placed[AnyRecord], name: str) -> float:
    value = placed.record.provenance.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        where = f"{placed.path}:{placed.line}: provenance.{name}"
        raise DataError(f"{where}: missing or no number; every record needs it to be ranked by")
    return value


def _at(placed: Placed[AnyRecord], read: Callable[[AnyRecord], tuple[str, ...]]) -> tuple[str, ...]:
    """Return what is read of a record; an error gets its place."""
    try:
        return read(placed.record)
    except DataError as exc:
        raise DataError(f"{placed.path}:{placed.line}: {exc}") from None


DEDUP = Step("curate dedup", 1, _dedup, writes_file=True, config=DedupConfig)
