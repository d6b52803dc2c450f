"""`annotate judge`: a file of exchanges or pairs in, a file of judgements out.

Finished chunks are kept until the run is complete, so that the same command after a kill asks nothing twice.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue

from equipoise.data.identity import text_key
from equipoise.data.io import read_records, record_kind, write_records
from equipoise.engines import map_chunks
from equipoise.errors import ConfigError, DataError
from equipoise.generation.usage import Usage, together
from equipoise.judges.judging import Judged
from equipoise.judges.load import JudgeConfig, JudgeOperator, read_priors
from equipoise.judges.preferences import PositionBias, position_bias
from equipoise.judges.questions import PREFERENCES, QuestionName
from equipoise.lineage import Run, Step, write_text
from equipoise.progress import bar
from equipoise.records import Exchange, Judgement, Pair, text_of
from equipoise.stats import Estimate

_ASKED: tuple[QuestionName, ...] = ("is_safe", "severity", "categories", "better", "safer")


class _Contents(NamedTuple):
    """What a file holds: the kind of its records, and for each id what names its prompt."""

    kind: type[Exchange] | type[Pair]
    prompts: dict[str, bytes]


def judge(config: JudgeConfig, run: Run) -> None:
    """Judge every record; the notes say what is missing, how much the order decided and what servers took."""
    kind, prompts = _contents(config.file)
    operator = JudgeOperator(config, _questions(config, kind), run.scratch)
    parts = sorted(run.scratch.glob("judged-*.jsonl"))
    done = min(len(parts) * config.chunk, len(prompts))
    records: Iterator[Judged] = islice(read_records(config.file, kind), done, None)
    with bar("judging", len(prompts), done) as advance:
        for answers in map_chunks(
            operator, records, engine=config.engine, workers=config.workers, chunk=config.chunk
        ):
            parts.append(run.scratch / f"judged-{len(parts):06d}.jsonl")
            if (usage := operator.take_usage()) is not None:
                write_text(_used(parts[-1]), json.dumps(usage))
            write_records(parts[-1], chain.from_iterable(answers))
            for _ in answers:
                advance()
    seen = _Seen()
    count = write_records(run.out, (seen(j) for part in parts for j in read_records(part, Judgement)))
    run.licences |= seen.licences
    run.notes |= {
        "judge": config.annotator,
        "rows": len(prompts),
        "judgements": count,
        "prompt_versions": [*sorted(seen.versions - {""})],
        "missing": {name: dict(sorted(counts.items())) for name, counts in seen.missing.items()},
        "position_bias": _bias_notes(run.out, prompts) if kind is Pair else {},
    }
    if config.endpoint is not None:
        used = [Usage(*json.loads(_used(part).read_text("utf-8"))) for part in parts]
        run.notes["usage"] = together(used).note(config.endpoint.price_of(str(config.model)))
    if priors := read_priors(run.scratch):
        run.notes["priors"] = {key: list(prior) for key, prior in priors.items()}


class _Seen:
    """What the notes say of the judgements that went by."""

    def __init__(self) -> None:
        self.licences: set[str] = set()
        self.versions: set[str] = set()
        self.missing: dict[str, Counter[str]] = {}
        """Question -> reason -> how many answers are missing; each category counts."""

    def __call__(self, judgement: Judgement) -> Judgement:
        self.licences.add(judgement.licence)
        self.versions.add(str(judgement.provenance.get("prompt_version", "")))
        reasons: Any = judgement.provenance.get("missing") or {}
        for key, reason in reasons.items():
            self.missing.setdefault(key.partition(".")[0], Counter())[reason] += 1
        return judgement


def _contents(path: Path) -> _Contents:
    kind = record_kind(path)
    if kind not in {Exchange, Pair}:
        raise DataError(f"{path}: holds prompts; expected exchanges or pairs")
    prompts: dict[str, bytes] = {}
    for record in read_records(path, kind):
        if record.id in prompts:
            raise DataError(f"{path}: id '{record.id}' stands twice; `equipoise data check` says where")
        prompts[record.id] = text_key([text_of(record.prompt)])
    return _Contents(kind, prompts)


def _questions(config: JudgeConfig, kind: type[Exchange] | type[Pair]) -> tuple[QuestionName, ...]:
    """Return what to ask about records of a kind; a question of the user's that does not fit is refused."""
    about_pairs = [name for name in config.questions or () if name in PREFERENCES]
    if kind is Pair:
        return config.questions or _ASKED
    if about_pairs:
        raise ConfigError(f"questions: '{about_pairs[0]}' compares two answers, got a file of exchanges")
    return config.questions or tuple(name for name in _ASKED if name not in PREFERENCES)


def _used(part: Path) -> Path:
    """Where it stands what the answers of a server took that are in a part."""
    return part.with_name(part.name.replace("judged", "used")).with_suffix(".json")


def _bias_notes(judged: Path, prompts: dict[str, bytes]) -> dict[str, JsonValue]:
    judgements = read_records(judged, Judgement)
    bias = position_bias((prompts[j.subject], j) for j in judgements if j.subject in prompts)
    return {name: _plain(found) for name, found in bias.items()}


def _plain(bias: PositionBias) -> JsonValue:
    """Return the estimates as JSON; the interval of one cluster alone is null."""

    def numbers(estimate: Estimate) -> dict[str, JsonValue]:
        return {name: None if math.isnan(value) else value for name, value in estimate._asdict().items()}

    return {name: None if value is None else numbers(value) for name, value in bias._asdict().items()}


JUDGE = Step("annotate judge", 2, judge, writes_file=True, config=JudgeConfig)
