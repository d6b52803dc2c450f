"""Which judge, and how it is loaded: the settings of `annotate judge`, and the operator made of them.

Nothing here loads torch before a local model is asked for: a judge behind a server needs none.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from equipoise.config import Config, InputPath, ModelRef, TaxonomyRef
from equipoise.engines import Engine
from equipoise.errors import ConfigError
from equipoise.extras import require
from equipoise.generation.client import EndpointConfig
from equipoise.generation.endpoint import EndpointGenerator
from equipoise.generation.endpoint_options import EndpointOptionScorer
from equipoise.generation.sources import Device, DType
from equipoise.generation.usage import Usage
from equipoise.judges.asking import OptionAsker, TextAsker, measure_priors
from equipoise.judges.judging import Judged, RecordJudge
from equipoise.judges.language_model import LanguageModelJudge
from equipoise.judges.preferences import OnFlip
from equipoise.judges.questions import NO_YES, QuestionName, Questions, make_questions
from equipoise.lineage import write_text
from equipoise.moderation.default import GuardPath
from equipoise.progress import say
from equipoise.protocols import OptionScorer
from equipoise.records import Judgement
from equipoise.taxonomy import load_taxonomy

_PRIORS = "priors.json"
_LANGUAGE_MODEL = {"taxonomy", "questions", "answers", "categories", "on_flip", "calibrate", "endpoint"}
"""Settings that say something to a language model only."""


class JudgeConfig(Config):
    """Settings of `annotate judge`: a guard, a scorer, or a language model here or behind a server."""

    file: InputPath
    """Exchanges or pairs."""
    guard: GuardPath | None = None
    scorer: InputPath | None = None
    model: ModelRef | None = None
    """With an endpoint, the name that the server knows."""
    endpoint: EndpointConfig | None = None
    name: str | None = None
    """Name of the annotator in the judgements; the last part of the folder's or model's name where None."""
    taxonomy: TaxonomyRef = "pku19"
    """In whose words a language model is asked; a guard has its own."""
    questions: tuple[QuestionName, ...] | None = None
    """What a language model is asked; all but `overall` where None."""
    answers: Literal["logprobs", "text"] = "logprobs"
    """The likeliest option, or what the model writes, read strictly."""
    categories: Literal["each", "together"] = "each"
    """One question per category, or one for all, whose answer is a list that must be written."""
    on_flip: OnFlip = "tie"
    calibrate: bool = False
    """Take out what an option has without anything to judge. Zhao et al. 2021."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 32
    """Length of a written answer."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Prompts at a time, of a local model that writes."""
    dtype: DType = "auto"
    device: Device = "auto"
    chunk: Annotated[int, Field(ge=1)] = 128
    """Records at a time; also what a kill can cost."""
    engine: Engine = "local"
    workers: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        given = [name for name in ("guard", "scorer", "model") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of guard, scorer and model, got {' and '.join(given) or 'none'}")
        if self.endpoint is not None and (self.workers > 1 or self.engine != "local"):
            raise ValueError(
                "workers: a server is asked from one process; expected endpoint.concurrency instead"
            )
        if given != ["model"]:
            for name in sorted(self.changed & _LANGUAGE_MODEL):
                raise ValueError(f"{name}: is for a language model, got a {given[0]}")
            return self
        if self.answers == "logprobs" and self.categories == "together":
            raise ValueError("categories: a list of them must be written; expected answers: text")
        for name, value in (("calibrate", self.calibrate), ("on_flip", self.on_flip == "average")):
            if value and self.answers == "text":
                raise ValueError(f"{name}: needs log-probabilities, got answers: text")
        return self

    @property
    def annotator(self) -> str:
        """Name of the annotator in the judgements."""
        judge = self.guard or self.scorer or self.model
        return self.name or str(judge).rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class JudgeOperator:
    """Judges chunks of records; loaded at its first use, and not sent to another process before."""

    config: JudgeConfig
    questions: tuple[QuestionName, ...]
    scratch: Path
    """Where what was asked for the run as a whole is kept."""

    def __call__(self, records: Sequence[Judged]) -> list[list[Judgement]]:
        """Return the judgements of each record, in order."""
        return self._judge(records)

    def take_usage(self) -> Usage | None:
        """Return what a server's answers took since the last call; None where no server is asked."""
        return None if self._server is None else self._server.take_usage()

    @cached_property
    def _judge(self) -> RecordJudge:
        return load_judge(self.config, self.questions, self.scratch, self._server)

    @cached_property
    def _server(self) -> EndpointGenerator | None:
        model, endpoint = self.config.model, self.config.endpoint
        if model is None or endpoint is None:
            return None
        return EndpointGenerator(model, endpoint, journal=self.scratch / "journal.jsonl", missing="")

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings, without what was loaded."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def load_judge(
    config: JudgeConfig,
    questions: Sequence[QuestionName],
    scratch: Path,
    server: EndpointGenerator | None = None,
) -> RecordJudge:
    """Load the judge that the settings name.

    Args:
        config: The settings.
        questions: What to ask a language model.
        scratch: Folder for the priors of a calibration.
        server: Writes the answers, where the settings name a server.
    """
    if config.endpoint is None:
        require(f"a judge in this process ('{config.annotator}')", "train")
    if config.guard is not None:
        from equipoise.judges.learned import GuardJudge
        from equipoise.moderation.guard import load_guard

        return GuardJudge(load_guard(config.guard, config.device), config.annotator)
    if config.scorer is not None:
        from equipoise.judges.learned import ScorerJudge
        from equipoise.rewards.learned import load_scorer

        return ScorerJudge(load_scorer(config.scorer, config.device), config.annotator)
    asked = make_questions(
        load_taxonomy(config.taxonomy), questions, together=config.categories == "together"
    )
    ask = _asker(config, asked, scratch, server)
    how = "text" if isinstance(ask, TextAsker) else "calibrated logprobs" if config.calibrate else "logprobs"
    return LanguageModelJudge(
        asked, ask, config.annotator, on_flip=config.on_flip, kind=f"language model, {how}"
    )


def _asker(
    config: JudgeConfig, questions: Questions, scratch: Path, server: EndpointGenerator | None
) -> OptionAsker | TextAsker:
    assert config.model is not None
    if server is not None:
        options = EndpointOptionScorer(server)
        if config.answers == "text" or not _gives_logprobs(config, options):
            return TextAsker(server, config.max_new_tokens)
        return _by_options(config, options, questions, scratch)
    if config.answers == "text":
        from equipoise.generation.local import load_generator

        local = load_generator(
            config.model, batch_size=config.batch_size, dtype=config.dtype, device=config.device
        )
        return TextAsker(local, config.max_new_tokens, check=local.encode)
    from equipoise.generation.options import load_option_scorer

    scorer = load_option_scorer(config.model, dtype=config.dtype, device=config.device)
    return _by_options(config, scorer, questions, scratch)


def _gives_logprobs(config: JudgeConfig, server: EndpointOptionScorer) -> bool:
    """Find out whether a server gives log-probabilities; what needs them raises ConfigError without."""
    if server.how(NO_YES) == "logprobs":
        return True
    assert config.endpoint is not None
    where = f"{config.endpoint.url}: the server gives no log-probabilities"
    if config.calibrate or config.on_flip == "average":
        raise ConfigError(f"{where}; expected no calibrate, and on_flip tie or missing")
    say(f"{where}; its answers are read as they are written")
    return False


def _by_options(
    config: JudgeConfig, scorer: OptionScorer, questions: Questions, scratch: Path
) -> OptionAsker:
    if not config.calibrate:
        return OptionAsker(scorer)
    priors = read_priors(scratch)
    if priors is None:
        priors = measure_priors(scorer, questions)
        write_text(scratch / _PRIORS, json.dumps(priors))
    return OptionAsker(scorer, priors)


def read_priors(scratch: Path) -> dict[str, list[float]] | None:
    """Return the priors that were measured for a run, once however often it is resumed; None without."""
    place = scratch / _PRIORS
    if not place.exists():
        return None
    priors: dict[str, list[float]] = json.loads(place.read_text("utf-8"))
    return priors
