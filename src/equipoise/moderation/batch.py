"""`moderate --file` and `refusals --file`: rows in, the same rows with the guard's answer out."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from equipoise.batch import Row, conversation, run_batch, text
from equipoise.config import Config, InputPath
from equipoise.errors import DataError
from equipoise.lineage import Run, Step
from equipoise.models.features import TextPair
from equipoise.moderation.guard import Guard, load_guard
from equipoise.moderation.refusal import PrefixRefusals
from equipoise.protocols import RefusalVerdict, Verdict
from equipoise.records import Exchange, text_of

POLICY = "default"
"""Name of the thresholds that are stored in the guard."""


class ModerateConfig(Config):
    """Settings of `moderate`."""

    file: InputPath
    """JSON Lines of `{"id", "prompt"?, "response"?}`."""
    guard: InputPath
    chunk: Annotated[int, Field(ge=1)] = 256
    """Rows at a time."""


class RefusalsConfig(Config):
    """Settings of `refusals`."""

    file: InputPath
    """JSON Lines of `{"id", "prompt", "response"}`."""
    guard: InputPath | None = None
    method: Literal["classifier", "prefix"] = "classifier"
    """prefix looks at the response's opening only; it misses much and cannot see a partial refusal."""
    chunk: Annotated[int, Field(ge=1)] = 256


def moderation_fields(pair: TextPair, verdict: Verdict, categories: Sequence[str]) -> Row:
    """Return a verdict as the fields of the batch contract; categories keep the taxonomy's order."""
    return {
        "target": "prompt" if pair.response is None else "response",
        "is_safe": verdict.is_safe,
        "unsafe_probability": round(verdict.unsafe_probability, 6),
        "severity": verdict.severity,
        "severity_probabilities": [round(p, 6) for p in verdict.severity_probabilities],
        "harm_categories": [name for name in categories if name in verdict.categories],
        "category_probabilities": {n: round(p, 6) for n, p in verdict.category_probabilities.items()},
        "truncated": verdict.truncated,
        "policy": POLICY,
    }


def judge_texts(guard: Guard, pairs: Sequence[TextPair]) -> list[Row]:
    """Judge prompts and responses mixed, in one pass."""
    reading = guard.read(pairs)
    names = guard.card.taxonomy.names
    return [moderation_fields(pair, reading.verdict(i), names) for i, pair in enumerate(pairs)]


def refusal_fields(verdict: RefusalVerdict) -> Row:
    """Return a refusal verdict as the fields of the batch contract."""
    return {
        "refusal": verdict.refusal,
        "refusal_probabilities": {name: round(p, 6) for name, p in verdict.probabilities.items()},
    }


def moderate_file(config: ModerateConfig, run: Run) -> None:
    """Judge every row; with both texts the response is judged in its context."""
    guard = load_guard(config.guard)

    def parse(row: Row) -> TextPair:
        pair = text_pair(row)
        guard.require("prompt" if pair.response is None else "response")
        return pair

    counts = run_batch(
        config.file,
        run.out,
        parse,
        lambda pairs: judge_texts(guard, pairs),
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
    if config.guard is None:
        raise DataError("refusals: no guard given; expected --guard DIR, or --set method=prefix")
    return load_guard(config.guard).refusals


MODERATE = Step("moderate", 1, moderate_file, writes_file=True, config=ModerateConfig)
REFUSALS_STEP = Step("refusals", 1, refusals_file, writes_file=True, config=RefusalsConfig)
