"""The runs that clean what models wrote: prompts are refined, responses selected."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from equipoise.config import Config, InputPath, ModelRef
from equipoise.curation.dedup import Similarity
from equipoise.curation.filters import BatchFilter, Filter, TooShort
from equipoise.curation.gibberish import (
    THRESHOLDS,
    TOKENS,
    Improbable,
    Jumbled,
    Likelihood,
    Remembering,
    Repetitive,
)
from equipoise.curation.language import OtherLanguage
from equipoise.data.card import card
from equipoise.data.io import read_records, write_records
from equipoise.data.statistics import statistics
from equipoise.data.steps import FilesConfig
from equipoise.extras import require
from equipoise.generation.sources import Device, DType
from equipoise.lineage import Run, Step, replacing, write_text
from equipoise.progress import say
from equipoise.records import Exchange, Pair, Prompt
from equipoise.synthesis.refine import refine
from equipoise.synthesis.responses import (
    by_shingles,
    exchanges_of,
    pairs_of,
    qualities,
    read_responses,
    select,
    sound,
)
from equipoise.synthesis.texts import with_likelihood

Share = Annotated[float, Field(gt=0, le=1)]


class LikelihoodConfig(Config):
    """Which model says how probable a text is, in a run that may do without one."""

    likelihood: ModelRef | None = None
    """See `curation.gibberish`."""
    min_likelihood: float | None = None
    """In nats per token; None: the one that is known of the model."""
    dtype: DType = "auto"
    device: Device = "auto"


class RefineConfig(FilesConfig, LikelihoodConfig):
    """Settings of `prompts refine`."""

    languages: tuple[str, ...] = ("en",)
    min_chars: Annotated[int, Field(ge=1)] = 8
    threshold: Share = 0.8
    """Jaccard index of the shingles from which on two prompts are near-copies."""


class SelectConfig(LikelihoodConfig):
    """Settings of `responses select`."""

    responses: InputPath
    """Rows of `generate` over a file of prompts."""
    output: Literal["exchanges", "pairs"] = "exchanges"
    keep: Annotated[int, Field(ge=1)] = 2
    """Responses per prompt."""
    quality_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of the quality's rank among a prompt's responses, against the similarity to one that is kept."""
    max_similarity: Share = 0.7
    greedy_first: bool = True
    """The first sample of each model is its default answer, as `generate --greedy-first` writes it."""
    languages: tuple[str, ...] = ("en",)
    min_chars: Annotated[int, Field(ge=1)] = 8
    seed: int = 0


def changes_path(out: Path) -> Path:
    """Return where the list of what `prompts refine` changed lies, beside the prompts."""
    return out.with_name(out.name + ".changes.jsonl")


def likelihood_of(config: LikelihoodConfig) -> tuple[Likelihood | None, float]:
    """Load the model that says how probable texts are; without one there is none."""
    if config.likelihood is None:
        return None, 0.0
    require("a likelihood", "train")
    from equipoise.generation.likelihood import load_likelihood

    least = config.min_likelihood
    if least is None:
        name = config.likelihood.rstrip("/").rpartition("/")[2]
        least = THRESHOLDS.get(name, float("-inf"))
        if name not in THRESHOLDS:
            say(f"{config.likelihood}: no threshold is known of it; min_likelihood sets one")
    model = load_likelihood(config.likelihood, max_tokens=TOKENS, dtype=config.dtype, device=config.device)
    return Remembering(model), least


def _filters(config: RefineConfig) -> tuple[Filter | BatchFilter, ...]:
    likelihood, least = likelihood_of(config)
    own: dict[type, Filter] = {
        TooShort: TooShort(config.min_chars),
        OtherLanguage: OtherLanguage(config.languages),
    }
    standard = with_likelihood(None if likelihood is None else Improbable(likelihood, least))
    return tuple(own.get(type(check), check) for check in standard)


def _refine(config: RefineConfig, run: Run) -> None:
    prompts = [row for path in config.files for row in read_records(path, Prompt)]
    left = refine(prompts, _filters(config), Similarity(config.threshold))
    write_records(run.out, left.prompts)
    run.side_files.append(changes_path(run.out))
    with replacing(changes_path(run.out)) as part, part.open("w", encoding="utf-8") as lines:
        for change in left.changes:
            row = {key: value for key, value in change._asdict().items() if key != "of" or value is not None}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    run.licences |= {prompt.licence for prompt in left.prompts}
    reasons = Counter(change.reason for change in left.changes)
    run.notes |= {
        "rows": len(prompts),
        "prompts": len(left.prompts),
        "dropped": sum(c.after is None for c in left.changes),
        "changes": dict(reasons.most_common()),
    }
    counts = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common()) or "none"
    about = f"Refined; changes: {counts}. Each is listed with its original in {changes_path(run.out).name}."
    write_text(run.card, card(statistics(left.prompts), "Refined prompts", about))


def _select(config: SelectConfig, run: Run) -> None:
    dropped: Counter[str] = Counter()
    asked = list(read_responses(config.responses, greedy_first=config.greedy_first, dropped=dropped))
    likelihood, least = likelihood_of(config)
    filters: list[Filter | BatchFilter] = [TooShort(config.min_chars), OtherLanguage(config.languages)]
    filters += [Repetitive(), Jumbled() if likelihood is None else Improbable(likelihood, least)]
    asked = sound(asked, filters, dropped)
    records: list[Exchange | Pair] = []
    models: Counter[str] = Counter()
    for (prompt, responses), quality in zip(asked, qualities(asked, likelihood), strict=True):
        chosen = select(
            responses,
            quality,
            by_shingles([r.text for r in responses]),
            keep=config.keep,
            weight=config.quality_weight,
            most=config.max_similarity,
        )
        models.update(one.response.model for one in chosen)
        made: Sequence[Exchange | Pair] = (
            exchanges_of(prompt, chosen)
            if config.output == "exchanges"
            else pairs_of(prompt, chosen, config.seed)
        )
        records += made
    run.licences |= {record.licence for record in records}
    run.notes |= {
        "prompts": len(asked),
        "records": write_records(run.out, records),
        "models": dict(models.most_common()),
        "dropped": dict(dropped.most_common()),
        "without_response": sum(not a.responses for a in asked),
    }
    about = "Responses of models, yet to be judged. None was written by a person."
    write_text(run.card, card(statistics(records), "Selected responses", about))


REFINE = Step("prompts refine", 1, _refine, writes_file=True, config=RefineConfig)
SELECT = Step("responses select", 1, _select, writes_file=True, config=SelectConfig)
