"""Settings of an expansion, and the callables that it works with."""

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple, Self

from pydantic import Field, model_validator

from equipoise.config import Config, InputPath, TaxonomyRef
from equipoise.curation.gibberish import Improbable, Likelihood
from equipoise.protocols import Generator, Verdict

PromptJudge = Callable[[Sequence[str]], list[Verdict]]
"""Judges prompts by themselves: one verdict per text, in order."""


class Tools(NamedTuple):
    """The models behind an expansion."""

    generate: Generator
    """Goes on from an answer that is begun: the last turn is the assistant's."""
    model: str
    """What the records name as their writer."""
    judge: PromptJudge | None = None
    """Decides what is kept; without one the category is what was asked for, and nobody checked it."""
    judge_name: str = ""
    likelihood: Likelihood | None = None
    """Leaves out what is improbable, and ranks what is left."""
    threshold: float = 0.0
    """Mean log-likelihood in nats per token below which a text is improbable."""

    @property
    def improbable(self) -> Improbable | None:
        """The filter that the likelihood gives."""
        return None if self.likelihood is None else Improbable(self.likelihood, self.threshold)


class ExpandSettings(Config):
    """How many prompts are made, of what, and how they are decoded."""

    taxonomy: TaxonomyRef = "pku19"
    frames: InputPath | None = None
    """Beginnings of prompts; None: the taxonomy's own file, or the generic one."""
    examples: InputPath | None = None
    """Prompts or exchanges with categories, to be shown to the model; None: the built-in corpus for pku19."""
    target: Annotated[int, Field(ge=1)] = 3
    """Prompts per cell."""
    max_calls: Annotated[int, Field(ge=1)] = 1200
    """Budget: times that the model is asked, each for `samples` texts, look-alikes not counted."""
    calls_per_cell: Annotated[int, Field(ge=1)] = 2
    """Calls for each open cell in a round."""
    samples: Annotated[int, Field(ge=1)] = 4
    """Texts per call."""
    shots: Annotated[int, Field(ge=0)] = 3
    """Examples per call; up to half of them are prompts that the run itself has made."""
    context_share: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Share of the calls that put a sentence of context before a prompt that is there already."""
    twin_rounds: Annotated[int, Field(ge=0)] = 4
    """How often a harmless look-alike is tried for a prompt that has none."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.8
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_new_tokens: Annotated[int, Field(ge=1)] = 28
    licence: str = "unknown"
    """Of what the model writes."""
    seed: int = 0

    @model_validator(mode="after")
    def _reaches_a_round(self) -> Self:
        if self.max_calls < self.calls_per_cell:
            raise ValueError(
                f"max_calls: less than one cell's round, got {self.max_calls};"
                f" expected at least calls_per_cell, {self.calls_per_cell}"
            )
        return self
