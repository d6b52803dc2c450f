"""The runs that make prompts from a taxonomy and count them: `synthesis` with its models.

`synthesis` takes its models as callables; here they are loaded. The command line and recipes use the same.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from equipoise.config import ModelRef, TaxonomyRef
from equipoise.data.card import card
from equipoise.data.io import read_records, write_records
from equipoise.data.statistics import statistics
from equipoise.data.steps import FilesConfig
from equipoise.extras import require
from equipoise.generation.client import EndpointConfig
from equipoise.generation.sources import Device
from equipoise.lineage import Run, Step, write_text
from equipoise.moderation.default import GuardPath
from equipoise.pipeline.cleaning import LikelihoodConfig, likelihood_of
from equipoise.protocols import Generator, Verdict
from equipoise.records import Prompt
from equipoise.synthesis.cells import Coverage, coverage
from equipoise.synthesis.expand import Expansion
from equipoise.synthesis.rounds import Round
from equipoise.synthesis.settings import ExpandSettings, PromptJudge, Tools
from equipoise.synthesis.twins import linked, pair_up
from equipoise.taxonomy import load_taxonomy


class ExpandConfig(ExpandSettings, LikelihoodConfig):
    """Settings of `prompts expand`: what to make, by which model, judged by which guard."""

    model: ModelRef
    """Built-in name, folder or hub id; with an endpoint, the name that the server knows."""
    endpoint: EndpointConfig | None = None
    guard: GuardPath | None = None
    """Decides which prompts are kept; without one nobody checks that a prompt is what was asked for."""
    guard_name: str | None = None
    """Name of the judge in the records; the last part of the folder's name where None."""
    batch_size: Annotated[int, Field(ge=1)] = 32

    @property
    def judge_name(self) -> str:
        """Name of the judge in the records; empty where there is none."""
        return self.guard_name or (self.guard.name if self.guard else "")


class CoverageConfig(FilesConfig):
    """Settings of `prompts coverage`."""

    taxonomy: TaxonomyRef = "pku19"
    guard: GuardPath | None = None
    """Assigns the categories anew; without one those of the records count."""
    target: Annotated[int, Field(ge=1)] = 3
    device: Device = "auto"


def _expand(config: ExpandConfig, run: Run) -> None:
    expansion = Expansion(config, _tools(config, run.scratch))
    done: list[Round] = list(expansion.run(run.scratch))
    made = [prompt for one in pair_up(expansion, run.scratch) for prompt in _counted(one, done)]
    prompts = linked(expansion.prompts, made)
    write_records(run.out / "prompts.jsonl", prompts)
    found = coverage(prompts, expansion.taxonomy)
    dropped: Counter[str] = sum((one.dropped for one in done), Counter())
    harmful = len(expansion.prompts)
    run.notes |= {
        "prompts": harmful,
        "look_alikes": len(made),
        "cells": len(expansion.made),
        "cells_full": found.filled(config.target),
        "calls": sum(one.calls for one in done),
        "texts": sum(one.texts for one in done),
        "dropped": dict(dropped.most_common()),
        "likeliest_is_asked": sum(_is_likeliest(prompt) for prompt in expansion.prompts),
    }
    run.licences.add(config.licence)
    write_text(run.out / "coverage.json", json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    about = _about_labels(config, harmful, len(made))
    parts = [card(statistics(prompts), "Prompts made by a model", about), "## Coverage"]
    write_text(run.card, "\n\n".join([*parts, found.markdown(config.target)]))


def _counted(one: Round, done: list[Round]) -> list[Prompt]:
    done.append(one)
    return one.prompts


def _is_likeliest(prompt: Prompt) -> bool:
    asked: Any = prompt.provenance.get("asked")
    judged: Any = prompt.provenance.get("judged")
    return bool(judged) and judged["likeliest"] == asked["category"]


def _about_labels(config: ExpandConfig, harmful: int, twins: int) -> str:
    says = f"the guard `{config.judge_name}` assigns the categories and finds look-alikes harmless"
    if config.guard is None:
        says = "no judge looked at the prompts: categories are those that were asked for"
    return (
        f"No row was written or labelled by a person. `{config.model}` went on from beginnings that belong "
        f"to a category and a severity of `{config.taxonomy}`; {says}. The severity is the one that was "
        f"asked for, and no one has checked it. {twins} of {harmful} harmful prompts have a harmless "
        "look-alike."
    )


def _tools(config: ExpandConfig, scratch: Path) -> Tools:
    judge: PromptJudge | None = None
    if config.guard is not None:
        judge = load_prompt_judge(config.guard, config.device)
    likelihood, least = likelihood_of(config)
    return Tools(
        generate=_generator(config, scratch),
        model=config.model.rstrip("/").rpartition("/")[2],
        judge=judge,
        judge_name=config.judge_name,
        likelihood=likelihood,
        threshold=least,
    )


def _generator(config: ExpandConfig, scratch: Path) -> Generator:
    if config.endpoint is None:
        require("a local model", "train")
        from equipoise.generation.continuing import load_lines

        return load_lines(
            config.model, batch_size=config.batch_size, dtype=config.dtype, device=config.device
        )
    from equipoise.generation.endpoint import EndpointGenerator
    from equipoise.generation.requested_lines import RequestedLines

    return RequestedLines(
        EndpointGenerator(config.model, config.endpoint, journal=scratch / "journal.jsonl", missing="")
    )


def load_prompt_judge(folder: Path, device: str = "auto") -> PromptJudge:
    """Load a guard that judges prompts by themselves; one that was trained on none raises DataError."""
    require("a guard", "train")
    from equipoise.moderation.guard import load_guard

    guard = load_guard(folder, device)
    guard.require("prompt")
    return guard.judge_prompts


def measure_coverage(config: CoverageConfig) -> Coverage:
    """Count the harmful prompts of each cell, by the guard's categories where there is one."""
    taxonomy = load_taxonomy(config.taxonomy)
    prompts = [row for path in config.files for row in read_records(path, Prompt)]
    if config.guard is None:
        return coverage(prompts, taxonomy)
    from equipoise.records import text_of

    verdicts = load_prompt_judge(config.guard, config.device)([text_of(row.prompt) for row in prompts])
    return coverage((_as_judged(row, v) for row, v in zip(prompts, verdicts, strict=True)), taxonomy)


def _as_judged(prompt: Prompt, verdict: Verdict) -> Prompt:
    if not prompt.is_harmful:
        return prompt
    return prompt.model_copy(update={"categories": frozenset(verdict.categories)})


def _coverage(config: CoverageConfig, run: Run) -> None:
    found = measure_coverage(config)
    run.notes |= {"cells_full": found.filled(config.target), "counts": found.to_json()}
    write_text(run.out / "coverage.json", json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    write_text(run.out / "coverage.md", found.markdown(config.target))


EXPAND = Step("prompts expand", 2, _expand, config=ExpandConfig)
COVERAGE = Step("prompts coverage", 2, _coverage, config=CoverageConfig)
