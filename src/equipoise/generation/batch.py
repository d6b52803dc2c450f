"""`generate`: a file of prompts in, the same rows with responses out.

The models answer one after the other, each the whole file, so that only one is loaded at a time; then
their answers are joined row by row.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from equipoise.batch import Row, conversation, run_batch, writing
from equipoise.config import Config, InputPath, ModelRef
from equipoise.errors import DataError
from equipoise.generation.client import EndpointConfig, read_key
from equipoise.generation.replies import Answer
from equipoise.generation.sources import Asked, Device, Draw, DType, Responder
from equipoise.generation.usage import Usage
from equipoise.lineage import Run, Step, replacing
from equipoise.protocols import Sampling
from equipoise.records import messages_of

_ANSWERS = "equipoise answers"
"""Field of a row on its way, which no row of a user's has."""


class SamplingConfig(Config):
    """How to decode; see `protocols.Sampling`."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    samples: Annotated[int, Field(ge=1)] = 1
    """Responses per prompt."""
    seed: int = 0

    @model_validator(mode="after")
    def _worth_sampling(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.samples} greedy samples are all the same; expected a temperature above 0"
            )
        return self

    def plain(self) -> Sampling:
        """Return the settings in the form that generators take."""
        return Sampling(**self.model_dump())


class GenerateConfig(Config):
    """Settings of `generate`."""

    models: Annotated[tuple[ModelRef, ...], Field(min_length=1)]
    """What answers; with an endpoint, names that the server knows."""
    endpoint: EndpointConfig | None = None
    prompts: InputPath
    """JSON Lines of `{"id", "prompt"}`."""
    sampling: SamplingConfig = SamplingConfig()
    greedy_first: bool = False
    """Write a greedy answer before the samples: sample 0, and one more row per prompt and model."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Responses at a time, of a local model."""
    dtype: DType = "auto"
    device: Device = "auto"

    @model_validator(mode="after")
    def _answers_differ(self) -> Self:
        if len(set(self.models)) < len(self.models):
            raise ValueError(f"models: one is named twice, got {', '.join(self.models)}")
        if self.greedy_first and self.sampling.temperature == 0:
            raise ValueError("greedy_first: the sample is greedy too; expected sampling.temperature above 0")
        return self

    def responder(
        self, model: str, journal: Path | None = None, choose: Callable[[Draw], Draw] | None = None
    ) -> Responder:
        """Return the operator that answers prompts by one of the models; `choose` as in `Responder`."""
        return Responder(
            model=model,
            sampling=self.sampling.plain(),
            endpoint=self.endpoint,
            greedy_first=self.greedy_first,
            batch_size=self.batch_size,
            dtype=self.dtype,
            device=self.device,
            journal=journal,
            choose=choose,
        )


def generate(
    config: GenerateConfig,
    run: Run,
    choose: Callable[[Draw], Draw] | None = None,
    check: Callable[[Asked], None] | None = None,
) -> None:
    """Write the responses; the notes of the manifest count rows, bad lines, missing answers and tokens.

    `choose` stands between each model and its answers, as in `Responder`. `check` refuses a row of the file,
    with DataError, before anything is written for it.
    """
    if config.endpoint is not None:
        read_key(config.endpoint)
    parts = []
    for number, model in enumerate(config.models):
        parts.append(run.scratch / f"answers-{number}.jsonl")
        if not parts[-1].exists():
            responder = config.responder(model, run.scratch / "journal.jsonl", choose)
            _answer_all(config, responder, parts[-1], check)
    run.notes |= _join(parts, config, run.out)


def _answer_all(
    config: GenerateConfig, responder: Responder, out: Path, check: Callable[[Asked], None] | None
) -> None:
    """Write every row of the prompts with all answers of one model in it, or its error."""

    def parse(row: Row) -> Asked:
        harmful = row.get("is_harmful")
        known = harmful if isinstance(harmful, bool) else None
        more = row.get("provenance")
        if check is not None and not isinstance(more, dict | None):
            raise DataError(f"provenance: expected a mapping, got {more!r:.60}")
        provenance = more if isinstance(more, dict) else None
        asked = Asked(str(row["id"]), messages_of(conversation(row)), known, provenance)
        if check is not None:
            check(asked)
        responder.check(asked)
        return asked

    def compute(asked: Sequence[Asked]) -> list[Row]:
        return [{_ANSWERS: [a._asdict() for a in answers]} for answers in responder(asked)]

    scratch = out.with_suffix("")
    run_batch(
        config.prompts,
        out,
        parse,
        compute,
        chunk=responder.chunk,
        scratch=scratch,
        key=("id",),
        label="chunks of prompts",
    )
    shutil.rmtree(scratch, ignore_errors=True)  # not there where no row was


def _join(parts: Sequence[Path], config: GenerateConfig, out: Path) -> dict[str, Any]:
    """Write the answers of all models row by row, and return the counts.

    Samples are numbered on from model to model, so that (id, sample) names a row.
    """
    each = config.sampling.samples + config.greedy_first
    usage = dict.fromkeys(config.models, Usage())
    outcomes: Counter[str] = Counter()
    rows = errors = missing = 0
    with replacing(out) as fresh, writing(fresh) as target:
        for versions in zip(*map(_rows, parts), strict=True):
            if all(_ANSWERS not in row for row in versions):
                errors += 1
                target.write(_line(versions[0]))
                continue
            rows += 1
            for number, (model, row) in enumerate(zip(config.models, versions, strict=True)):
                errors += _ANSWERS not in row
                for answer, place in _placed(row, number * each):
                    if answer.error is None:
                        fields = {key: value for key, value in row.items() if key != _ANSWERS}
                        fields |= {"response": answer.text, "model": model, "sample": place}
                        if answer.guard is not None:
                            fields["guard"] = answer.guard
                            outcomes[answer.guard["outcome"]] += 1
                        target.write(_line(fields))
                        usage[model] = usage[model].plus(answer.prompt_tokens, answer.completion_tokens)
                    else:
                        missing += _ANSWERS in row
                        target.write(
                            _line({"id": row["id"], "sample": place, "model": model, "error": answer.error})
                        )
    counts: dict[str, Any] = {"rows": rows, "errors": errors, "missing": missing}
    if outcomes:
        counts["guard"] = {name: outcomes[name] for name in ("accepted", "refused")}
    if config.endpoint is not None:
        price = config.endpoint.price_of
        counts["usage"] = {model: usage[model].note(price(model)) for model in config.models}
    return counts


def _placed(row: Row, first: int) -> Iterator[tuple[Answer, int]]:
    """Yield the answers of a row with their sample numbers; a row in error is one missing answer."""
    for k, answer in enumerate(row.get(_ANSWERS) or [{"text": None, "error": row["error"]}]):
        yield Answer(**answer), first + k


def _rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


GENERATE = Step("generate", 4, generate, writes_file=True, config=GenerateConfig)
