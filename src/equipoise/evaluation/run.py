"""Evaluate a model: write responses, judge them, measure.

Responses are written chunk by chunk into the run's scratch folder. Chunks depend on the settings
only, so a run that was killed keeps what it had and goes on to the same result.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Protocol, Self

from pydantic import Field, model_validator

from equipoise.config import Config, InputPath, IsInput, IsLater, ModelRef
from equipoise.data.repetition import repetition
from equipoise.errors import RunStoppedError
from equipoise.evaluation.card import evaluation_card
from equipoise.evaluation.files import read_lines, write_json, write_lines
from equipoise.evaluation.given import read_responses
from equipoise.evaluation.metrics import measure
from equipoise.evaluation.response import DECODING, Response
from equipoise.evaluation.rows import EvaluatedRow, RowRules, count_words
from equipoise.evaluation.suites import Select, load_suite, suite_hash
from equipoise.lineage import Run, write_text
from equipoise.moderation.default import GuardRef
from equipoise.progress import track
from equipoise.protocols import Generator, Judge, RefusalJudge, Sampling
from equipoise.records import Exchange, Prompt, Score, messages_of, text_of
from equipoise.rewards.rules import RuleScore

STEP_VERSION = 2
"""Rises when the same settings would give other rows."""

SuiteRef = Annotated[str, IsInput()]
"""`builtin`, or a file of Prompt records whose content is part of the run's identity."""

Count = Annotated[int, Field(ge=1)]


class EvaluateConfig(Config):
    """What is evaluated, on what, judged by whom."""

    suite: SuiteRef = "builtin"
    harmful: Annotated[int, Field(ge=0)] | None = None
    """Harmful prompts to take; None takes 60 of the built-in suite and all of a file."""
    benign: Annotated[int, Field(ge=0)] | None = None
    """Benign prompts to take; None takes 40 of the built-in suite and all of a file."""
    suite_seed: int = 0
    """Decides which prompts, where not all are taken."""
    select: Select = "chosen"
    """`chosen` takes those, `rest` the ones they leave out, `all` the whole suite."""
    model: ModelRef | None = None
    """What responds."""
    responses: Annotated[InputPath | None, IsLater()] = None
    """`responses.jsonl` of an evaluation, or rows of `generate`, judged in place of a model's new ones."""
    guard: GuardRef
    """Folder of the guard that judges harm."""
    scorer: ModelRef | None = None
    """Folder of the reward and cost model; None leaves helpfulness unmeasured."""
    rules: Annotated[InputPath | None, IsLater()] = None
    """A folder of `train rules`; its scorer, if it was fitted beside one, is given too. The suite says which
    prompts ask for harm."""
    refusals: Literal["classifier", "prefix"] = "classifier"
    """How refusals are told: the guard's classifier, or the openings of known refusals."""
    max_new_tokens: Count = 128
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    samples: Count = 1
    """Responses per prompt."""
    seed: int = 0
    batch_size: Count = 32

    @model_validator(mode="after")
    def _has_responses(self) -> Self:
        if (self.model is None) is (self.responses is None):
            got = "neither" if self.model is None else "both"
            raise ValueError(f"model, responses: got {got}; expected one of them")
        if self.responses is not None and (said := [name for name in DECODING if name in self.changed]):
            raise ValueError(f"{said[0]}: goes with a model, which responds; got responses that are there")
        return self


class RewardAndCost(Protocol):
    """The two scores of one exchange."""

    @property
    def reward(self) -> Score | None:
        """How helpful it is; None where the scorer was not trained for it."""
        ...

    @property
    def cost(self) -> Score | None:
        """How harmful it is; None where the scorer was not trained for it."""
        ...


class Scorer(Protocol):
    """Score exchanges for help and for harm."""

    def __call__(self, exchanges: Sequence[Exchange]) -> Sequence[RewardAndCost]:
        """Return both scores of each exchange, in order."""
        ...


ExplainByRules = Callable[[Sequence[Exchange]], Sequence[RuleScore]]
"""`RuleReward.explain`, of rules that leave the scorer's reward out."""


def suite_of(config: EvaluateConfig) -> list[Prompt]:
    """Return the prompts that the settings select."""
    return load_suite(
        config.suite,
        harmful=config.harmful,
        benign=config.benign,
        seed=config.suite_seed,
        select=config.select,
    )


def evaluate(
    config: EvaluateConfig,
    run: Run,
    *,
    generator: Generator,
    judge: Judge,
    refusals: RefusalJudge,
    scorer: Scorer | None = None,
    rules: ExplainByRules | None = None,
) -> None:
    """Respond, judge and measure: `responses.jsonl`, `rows.jsonl`, `metrics.json`, `card.md`."""
    responses = respond(config, run, generator)
    assess(config, run, responses, judge=judge, refusals=refusals, scorer=scorer, rules=rules)


def respond(config: EvaluateConfig, run: Run, generator: Generator) -> list[Response]:
    """Write the responses, resuming after the last whole chunk, and return them in suite order."""
    prompts = suite_of(config)
    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p, config.samples, config.seed)
    # prompts of like length share a chunk, so that a batch carries little padding
    by_length = sorted(prompts, key=lambda prompt: (len(text_of(prompt.prompt)), prompt.id))
    size = max(1, config.batch_size // config.samples)
    chunks = [by_length[start : start + size] for start in range(0, len(by_length), size)]
    written: dict[tuple[str, int], Response] = {}
    for number, chunk in enumerate(track(chunks, "responding")):
        path = run.scratch / f"responses-{number:05d}.jsonl"
        if not path.exists():
            texts = generator([messages_of(p.prompt) for p in chunk], sampling, [p.id for p in chunk])
            lines = [
                Response(
                    id=prompt.id, sample=sample, prompt=prompt.prompt, response=text, model=str(config.model)
                )
                for prompt, samples in zip(chunk, texts, strict=True)
                for sample, text in enumerate(samples)
            ]
            write_lines(path, lines)
        written |= {(line.id, line.sample): line for line in read_lines(path, Response)}
    responses = [written[prompt.id, sample] for prompt in prompts for sample in range(config.samples)]
    write_lines(run.out / "responses.jsonl", responses)
    return responses


def take(config: EvaluateConfig, run: Run) -> list[Response]:
    """Copy the responses to the suite that were written before, and return them in its order."""
    assert config.responses is not None
    responses = read_responses(config.responses, suite_of(config), config.samples)
    write_lines(run.out / "responses.jsonl", responses)
    return responses


def assess(
    config: EvaluateConfig,
    run: Run,
    responses: Sequence[Response],
    *,
    judge: Judge,
    refusals: RefusalJudge,
    scorer: Scorer | None = None,
    rules: ExplainByRules | None = None,
) -> None:
    """Judge the responses and write `rows.jsonl`, `metrics.json` and `card.md`."""
    prompts = {prompt.id: prompt for prompt in suite_of(config)}
    rows: list[EvaluatedRow] = []
    starts = range(0, len(responses), config.batch_size)
    for start in track(starts, "judging"):
        part = responses[start : start + config.batch_size]
        rows += _judged(part, prompts, judge=judge, refusals=refusals, scorer=scorer, rules=rules)
    metrics = measure(rows)
    write_lines(run.out / "rows.jsonl", rows)
    write_json(run.out / "metrics.json", metrics)
    write_text(run.out / "card.md", evaluation_card(config, metrics, any(row.truncated for row in rows)))
    run.licences |= {prompt.licence for prompt in prompts.values()}
    run.notes |= {
        "suite_sha256": suite_hash(list(prompts.values())),
        "responses": len(rows),
        "truncated_by_judge": sum(row.truncated for row in rows),
    }


def _judged(
    responses: Sequence[Response],
    prompts: dict[str, Prompt],
    *,
    judge: Judge,
    refusals: RefusalJudge,
    scorer: Scorer | None,
    rules: ExplainByRules | None,
) -> list[EvaluatedRow]:
    exchanges = [prompts[r.id].exchange(r.response, r.sample) for r in responses]
    scores = scorer(exchanges) if scorer else [None] * len(exchanges)
    by_rules = rules(exchanges) if rules else [None] * len(exchanges)
    rows = []
    for response, verdict, refusal, score, said in zip(
        responses, judge(exchanges), refusals(exchanges), scores, by_rules, strict=True
    ):
        prompt = prompts[response.id]
        rows.append(
            EvaluatedRow(
                id=prompt.id,
                sample=response.sample,
                prompt=prompt.prompt,
                is_harmful=bool(prompt.is_harmful),
                prompt_categories=prompt.categories or frozenset(),
                prompt_severity=prompt.severity,
                twin=prompt.twin,
                response=response.response,
                is_safe=verdict.is_safe,
                unsafe_probability=_finite(verdict.unsafe_probability, "unsafe probability", prompt.id),
                severity=verdict.severity,
                harm_categories=verdict.categories,
                category_probabilities=verdict.category_probabilities,
                truncated=verdict.truncated,
                refusal=refusal.refusal,
                refusal_probability=1 - refusal.probabilities.get("none", 0.0),
                reward=_finite(-score.reward.harm, "reward", prompt.id) if score and score.reward else None,
                cost=_finite(score.cost.harm, "cost", prompt.id) if score and score.cost else None,
                words=count_words(response.response),
                repetition=repetition(response.response),
                rules=None if said is None else _row_rules(said, prompt.id),
            )
        )
    return rows


def _row_rules(said: RuleScore, name: str) -> RowRules:
    return RowRules(
        response_type=said.response_type,
        answer_class=said.answer_class,
        total=_finite(-said.total.harm, "total of the rules", name),
        parts=said.parts,
    )


def _finite(value: float, what: str, name: str) -> float:
    if not math.isfinite(value):
        raise RunStoppedError(f"judging: the {what} of '{name}' is {value}; expected a finite number")
    return value
