"""The runs over judgements, `agreement` and `consensus`; the command line and recipes use the same."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from equipoise.annotation.agreement import agreement, agreement_markdown
from equipoise.annotation.conflicts import find_conflicts
from equipoise.annotation.consensus import Consensus, Judged, consensus, utilities
from equipoise.annotation.preferences import POLICIES, conflict_report
from equipoise.annotation.quality import rater_reports
from equipoise.annotation.raters import PREFERENCES, Panel, collect
from equipoise.annotation.settle import Method
from equipoise.config import Config, InputPath
from equipoise.data.io import read_records, write_records
from equipoise.data.steps import read_files
from equipoise.errors import ConfigError, DataError, near
from equipoise.lineage import Run, Step, write_text
from equipoise.progress import track
from equipoise.records import Exchange, Judgement, Pair

Files = Annotated[tuple[InputPath, ...], Field(min_length=1)]


class AgreementConfig(Config):
    """Settings of an agreement report."""

    judgements: Files
    categories: bool = True
    """Whether each category is reported by itself, besides the sets."""
    draws: Annotated[int, Field(ge=100)] = 1000
    seed: int = 0


class ConsensusConfig(Config):
    """Settings of a consensus."""

    judgements: Files
    records: Files
    gold: tuple[InputPath, ...] = ()
    """Records with right labels, to measure annotators by."""
    method: Method = "dawid-skene"
    overall: str | None = None
    """Policy that makes `overall` of `better` and `safer` where nobody gave it."""


def read_judgements(files: Sequence[Path]) -> list[Judgement]:
    """Return the judgements of some files, in order."""
    return [row for path in files for row in track(read_records(path, Judgement), f"reading {path.name}")]


def read_judged(files: Sequence[Path]) -> list[Judged]:
    """Return exchanges and pairs; a prompt, or an id that stands twice, raises DataError."""
    records: list[Judged] = []
    seen: dict[str, str] = {}
    for path, line, record in read_files(files):
        where = f"{path}:{line}"
        if not isinstance(record, Exchange | Pair):
            raise DataError(f"{where}: a prompt without a response; expected exchanges or pairs")
        if record.id in seen:
            raise DataError(f"{where}: id: '{record.id}' stands already at {seen[record.id]}")
        seen[record.id] = where
        records.append(record)
    return records


def _agreement(config: AgreementConfig, run: Run) -> None:
    judgements = read_judgements(config.judgements)
    panel = collect(judgements)
    flagged = {name for j in judgements if j.labels for name in j.labels.categories or ()}
    names = sorted(flagged) if config.categories else []
    found = agreement(panel, names, draws=config.draws, seed=config.seed)
    if not found:
        raise DataError(
            f"judgements: no subject that two annotators answered, got {len(judgements)} by"
            f" {len(panel.kinds)} annotators"
        )
    report = {
        "judgements": len(judgements),
        "annotators": panel.kinds,
        "agreement": [row.to_json() for row in found],
    }
    write_text(run.out / "agreement.json", json.dumps(report, indent=1, ensure_ascii=False))
    write_text(run.out / "agreement.md", agreement_markdown(found))
    run.licences |= {judgement.licence for judgement in judgements}
    run.notes |= {
        "judgements": len(judgements),
        "annotators": dict(Counter(panel.kinds.values())),
        "questions": list(dict.fromkeys(row.question for row in found)),
    }


def _consensus(config: ConsensusConfig, run: Run) -> None:
    if config.overall is not None and config.overall not in POLICIES:
        known = ", ".join(POLICIES)
        raise ConfigError(
            f"overall: no policy '{config.overall}'{near(config.overall, POLICIES)}; known: {known}"
        )
    judgements = read_judgements(config.judgements)
    panel, records = collect(judgements), read_judged(config.records)
    result = consensus(records, panel, method=config.method)
    if not result.judged:
        subject = next(iter(panel.answers), "none")
        raise DataError(
            f"judgements: none is about one of the {len(records)} records, got subjects such as '{subject}';"
            " expected ids of the records"
        )
    labelled = _with_overall(_with_utilities(result.records, panel), config.overall)
    raters = rater_reports(judgements, panel, records, result.questions, gold=read_judged(config.gold))
    conflicts = find_conflicts(labelled)
    pairs = [record for record in labelled if isinstance(record, Pair)]
    run.notes |= {
        "records": write_records(run.out, labelled),
        **_counts(result),
        "text_conflicts": [conflict._asdict() for conflict in conflicts],
        "preferences": conflict_report(pairs).to_json() if pairs else None,
        "raters": [rater.to_json() for rater in raters],
    }
    run.licences |= {record.licence for record in [*labelled, *judgements]}


def _counts(result: Consensus) -> dict[str, Any]:
    return {
        "judged": result.judged,
        "single": result.single,
        "undecided": result.undecided,
        "adjusted": result.adjusted,
        "strangers": result.strangers,
        "not_converged": [n for n, q in result.questions.items() if q.latent and not q.latent.converged],
    }


def _with_utilities(records: Sequence[Judged], panel: Panel) -> list[Judged]:
    """Add Bradley-Terry utilities to pairs whose answers are compared with more than one other."""
    pairs = [record for record in records if isinstance(record, Pair)]
    count = Counter((str(pair.prompt), a.response) for pair in pairs for a in pair.answers)
    if not any(number > 1 for number in count.values()):
        return list(records)
    found: dict[str, dict[str, Any]] = {}
    for name in PREFERENCES:
        for id_, values in utilities(pairs, panel, name).items():
            found.setdefault(id_, {})[name] = [round(value, 4) for value in values]
    return [
        record.model_copy(update={"provenance": {**record.provenance, "utility": found[record.id]}})
        if record.id in found
        else record
        for record in records
    ]


def _with_overall(records: Sequence[Judged], policy: str | None) -> list[Judged]:
    if policy is None:
        return list(records)
    made: list[Judged] = []
    for record in records:
        choice = POLICIES[policy](record) if isinstance(record, Pair) and record.overall is None else None
        if choice is not None:
            note = {**record.provenance, "overall_by": policy}
            record = record.model_copy(update={"overall": choice, "provenance": note})  # noqa: PLW2901
        made.append(record)
    return made


AGREEMENT = Step("annotate agreement", 1, _agreement, config=AgreementConfig)
CONSENSUS = Step("annotate consensus", 1, _consensus, writes_file=True, config=ConsensusConfig)
