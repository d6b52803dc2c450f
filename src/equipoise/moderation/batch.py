"""`moderate --file` and `refusals --file`: rows in, the same rows with the guard's answer out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from equipoise.batch import Row, conversation, run_batch, text
from equipoise.config import Config, InputPath, IsInput
from equipoise.errors import DataError
from equipoise.lineage import Run, Step
from equipoise.models.features import TextPair
from equipoise.moderation.default import NAME, GuardPath
from equipoise.moderation.guard import Guard, Runtime, load_guard
from equipoise.moderation.policies import Policy, find_policy
from equipoise.moderation.refusal import PrefixRefusals
from equipoise.protocols import RefusalVerdict, Verdict
from equipoise.records import Exchange, text_of

PolicyRef = Annotated[str, IsInput()]
"""Name of a policy of the guard, or the path of a `.yaml` file."""


class ModerateConfig(Config):
    """Settings of `moderate`."""

    file: InputPath
    """JSON Lines of `{"id", "prompt"?, "response"?}`."""
    guard: GuardPath = Field(default=Path(NAME), validate_default=True)
    policy: PolicyRef | None = None
    """Decides what is unsafe; the guard's default one where None."""
    runtime: Runtime = "torch"
    """What computes; onnx-int8 is the quickest on a CPU, and not quite the same."""
    chunk: Annotated[int, Field(ge=1)] = 256
    """Rows at a time."""


class RefusalsConfig(Config):
    """Settings of `refusals`."""

    file: InputPath
    """JSON Lines of `{"id", "prompt", "response"}`."""
    guard: GuardPath | None = None
    """The shipped one where None."""
    method: Literal["classifier", "prefix"] = "classifier"
    """prefix looks at the response's opening only; it misses much and cannot see a partial refusal."""
    runtime: Runtime = "torch"
    chunk: Annotated[int, Field(ge=1)] = 256

    @model_validator(mode="before")
    @classmethod
    def _classifier_is_a_guard(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("method", "classifier") == "prefix":
            return given
        return given | {"guard": NAME if given.get("guard") is None else given["guard"]}


def moderation_fields(
    pair: TextPair, verdict: Verdict, categories: Sequence[str], *, with_review: bool = False
) -> Row:
    """Return a verdict as the fields of the batch contract; categories keep the taxonomy's order.

    `review` is told only where the policy has a band for it.
    """
    return {
        "target": "prompt" if pair.response is None else "response",
        "is_safe": verdict.is_safe,
        "unsafe_probability": round(verdict.unsafe_probability, 6),
        "severity": verdict.severity,
        "severity_probabilities": [round(p, 6) for p in verdict.severity_probabilities],
        "harm_categories": [name for name in categories if name in verdict.categories],
        "category_probabilities": {n: round(p, 6) for n, p in verdict.category_probabilities.items()},
        "truncated": verdict.truncated,
        "context_truncated": verdict.context_truncated,
        "policy": verdict.policy,
        **({"review": verdict.review} if with_review else {}),
    }


def judge_texts(guard: Guard, pairs: Sequence[TextPair], policy: Policy | None = None) -> list[Row]:
    """Judge prompts and responses mixed, in one pass, by a policy or by the guard's default one."""
    reading, names = guard.read(pairs), guard.card.taxonomy.names
    chosen = policy or guard.policy
    has_band = chosen.review is not None
    return [
        moderation_fields(pair, reading.verdict(i, chosen), names, with_review=has_band)
        for i, pair in enumerate(pairs)
    ]


def policy_of(guard: Guard, given: str | None) -> Policy:
    """Return the guard's policy of that name, or the one in a file; its default one where None."""
    return guard.policy if given is None else find_policy(given, guard.policies, guard.card.taxonomy)


def refusal_fields(verdict: RefusalVerdict) -> Row:
    """Return a refusal verdict as the fields of the batch contract."""
    return {
        "refusal": verdict.refusal,
        "refusal_probabilities": {name: round(p, 6) for name, p in verdict.probabilities.items()},
    }


def moderate_file(config: ModerateConfig, run: Run) -> None:
    """Judge every row; with both texts the response is judged in its context."""
    guard = load_guard(config.guard, runtime=config.runtime)
    policy = policy_of(guard, config.policy)

    def parse(row: Row) -> TextPair:
        pair = text_pair(row)
        guard.require("prompt" if pair.response is None else "response")
        return pair

    counts = run_batch(
        config.file,
        run.out,
        parse,
        lambda pairs: judge_texts(guard, pairs, policy),
        chunk=config.chunk,
        scratch=run.scratch,
        label="moderating",
    )
    run.notes |= counts._asdict()


def text_pair(row: Row) -> TextPair:
    """Return what a row asks to be judged; a row with neither prompt nor response raises DataError."""
    if row.get("prompt") is None and row.get("response") is None:
        raise DataError("prompt: missing, and no response either; expected one of them or both")
    prompt = text_of(conversation(row)) if row.get("prompt") is not None else ""
    return TextPair(prompt, None if row.get("response") is None else text(row, "response"))


def refusals_file(config: RefusalsConfig, run: Run) -> None:
    """Say of every response whether it declines."""
    judge: Any = PrefixRefusals() if config.method == "prefix" else _classifier(config)

    def parse(row: Row) -> Exchange:
        return Exchange(id=str(row["id"]), prompt=conversation(row), response=text(row, "response"))

    counts = run_batch(
        config.file,
        run.out,
        parse,
        lambda exchanges: [refusal_fields(verdict) for verdict in judge(exchanges)],
        chunk=config.chunk,
        scratch=run.scratch,
        label="looking for refusals",
    )
    run.notes |= {**counts._asdict(), "method": config.method}


def _classifier(config: RefusalsConfig) -> Any:
    assert config.guard is not None
    return load_guard(config.guard, runtime=config.runtime).refusals


MODERATE = Step("moderate", 2, moderate_file, writes_file=True, config=ModerateConfig)
REFUSALS_STEP = Step("refusals", 1, refusals_file, writes_file=True, config=RefusalsConfig)
