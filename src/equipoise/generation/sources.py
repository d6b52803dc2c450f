"""Where responses come from: a model in this process or one behind a server, by the same few words.

Nothing here loads torch before a local model is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from equipoise.generation.client import EndpointConfig
from equipoise.generation.endpoint import EndpointGenerator
from equipoise.generation.replies import Answer
from equipoise.protocols import Messages, Sampling

if TYPE_CHECKING:
    from equipoise.generation.local import LocalGenerator

Device = Literal["auto", "cpu", "cuda", "mps"]
"""As in `models.backbone`, which loads torch."""

DType = Literal["auto", "float32", "bfloat16"]
"""As in `models.backbone`."""

_ROUNDS = 32
"""Requests that follow each other on a connection before a chunk ends, when the last ones are waited for."""


class Asked(NamedTuple):
    """A prompt to be answered, by the name that its samples are seeded by."""

    id: str
    messages: Messages
    is_harmful: bool | None = None
    """Whether it asks for harm, where that is known."""
    provenance: Mapping[str, Any] | None = None
    """Of the prompt: what a reward may go by, for example `response_type`."""


Draw = Callable[[Sequence[Asked], Sampling], list[list[Answer]]]
"""Gives `sampling.samples` answers per prompt, in order."""


@dataclass(frozen=True)
class Responder:
    """Answer prompts by one model: an operator over records, which can be sent to another process.

    The model is loaded, or the journal opened, at the first use, and is not sent along.
    """

    model: str
    """Built-in name, folder or hub id; with an endpoint, the name that the server knows."""
    sampling: Sampling
    endpoint: EndpointConfig | None = None
    greedy_first: bool = False
    """Write a greedy answer before the samples."""
    batch_size: int = 32
    dtype: DType = "auto"
    device: Device = "auto"
    journal: Path | None = None
    choose: Callable[[Draw], Draw] | None = None
    """What stands between the model and its answers, for example a guard that takes one of several draws."""

    @property
    def answers_per_prompt(self) -> int:
        """How many answers each prompt gets."""
        return self.sampling.samples + self.greedy_first

    @property
    def chunk(self) -> int:
        """Prompts at a time that keep the model, or all connections to the server, busy."""
        responses = 4 * self.batch_size if self.endpoint is None else _ROUNDS * self.endpoint.concurrency
        return max(1, responses // self.answers_per_prompt)

    def __call__(self, prompts: Sequence[Asked]) -> list[list[Answer]]:
        """Return `answers_per_prompt` answers per prompt, in order; the greedy one first."""
        draw = self._draw if self.choose is None else self.choose(self._draw)
        if not self.greedy_first:
            return draw(prompts, self.sampling)
        greedy = draw(prompts, self.sampling._replace(temperature=0.0, top_p=1.0, samples=1))
        return [a + b for a, b in zip(greedy, draw(prompts, self.sampling), strict=True)]

    def check(self, prompt: Asked) -> None:
        """Refuse a prompt that a local model cannot take, with DataError; a server says so itself."""
        if self.endpoint is None:
            self._local.encode(prompt.messages, self.sampling)

    def _draw(self, prompts: Sequence[Asked], sampling: Sampling) -> list[list[Answer]]:
        messages, ids = [p.messages for p in prompts], [p.id for p in prompts]
        if self.endpoint is not None:
            return self._remote.answers(messages, sampling, ids)
        return [[Answer(text) for text in texts] for texts in self._local(messages, sampling, ids)]

    @cached_property
    def _local(self) -> "LocalGenerator":
        from equipoise.generation.local import load_generator

        return load_generator(self.model, batch_size=self.batch_size, dtype=self.dtype, device=self.device)

    @cached_property
    def _remote(self) -> EndpointGenerator:
        assert self.endpoint is not None
        return EndpointGenerator(self.model, self.endpoint, journal=self.journal)

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings, without what was loaded."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
