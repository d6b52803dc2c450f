"""`generate`: a file of prompts in, the same rows with responses out."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple, Self

from pydantic import Field, model_validator

from equipoise.batch import Row, conversation, run_batch
from equipoise.config import Config, InputPath, ModelRef
from equipoise.generation.local import load_generator
from equipoise.lineage import Run, Step
from equipoise.models.backbone import Device, DType
from equipoise.protocols import Messages, Sampling
from equipoise.records import messages_of


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

    model: ModelRef
    prompts: InputPath
    """JSON Lines of `{"id", "prompt"}`."""
    sampling: SamplingConfig = SamplingConfig()
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Responses at a time."""
    dtype: DType = "auto"
    device: Device = "auto"


class _Asked(NamedTuple):
    id: str
    messages: Messages


def generate(config: GenerateConfig, run: Run) -> None:
    """Write the responses; bad lines are counted in the notes of the manifest as `errors`."""
    generator = load_generator(
        config.model, batch_size=config.batch_size, dtype=config.dtype, device=config.device
    )
    sampling = config.sampling.plain()

    def parse(row: Row) -> _Asked:
        asked = _Asked(str(row["id"]), messages_of(conversation(row)))
        generator.encode(asked.messages, sampling)  # refuses what is too long or does not fit the template
        return asked

    def compute(asked: Sequence[_Asked]) -> list[list[Row]]:
        texts = generator([a.messages for a in asked], sampling, [a.id for a in asked])
        return [
            [{"response": text, "model": config.model, "sample": k} for k, text in enumerate(samples)]
            for samples in texts
        ]

    counts = run_batch(
        config.prompts,
        run.out,
        parse,
        compute,
        chunk=max(1, 4 * config.batch_size // sampling.samples),
        scratch=run.scratch,
        key=("id",),
        label="chunks of prompts",
    )
    run.notes.update(rows=counts.rows, errors=counts.errors)


GENERATE = Step("generate", 1, generate, writes_file=True, config=GenerateConfig)
