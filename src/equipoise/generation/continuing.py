"""A generator that goes on from an answer that is begun, to the end of the line."""

from collections.abc import Sequence
from pathlib import Path

from equipoise.generation.decoding import decode
from equipoise.generation.local import LocalGenerator, load_generator
from equipoise.models.chat import chat_ids
from equipoise.protocols import Messages, Sampling


class LineGenerator:
    """Goes on where the last turn, the assistant's, stops; a `protocols.Generator`.

    A line's end stops it, so a list costs no more than the one entry that is wanted.
    """

    def __init__(self, generator: LocalGenerator) -> None:
        """Use a local generator's model."""
        self.generator = generator
        tokenizer = generator.tokenizer
        ends = {i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i])}
        self.stop_ids = generator.stop_ids | ends

    def __call__(
        self, prompts: Sequence[Messages], sampling: Sampling, ids: Sequence[str] | None = None
    ) -> list[list[str]]:
        """Return `sampling.samples` continuations per prompt, in order."""
        own, tokenizer = self.generator, self.generator.tokenizer
        keys = ids if ids is not None else [str(i) for i in range(len(prompts))]
        written = decode(
            own.model,
            [self._encode(prompt) for prompt in prompts],
            keys,
            sampling,
            stop_ids=self.stop_ids,
            pad_id=tokenizer.pad_token_id,
            batch_size=own.batch_size,
        )
        return [[tokenizer.decode(w.ids, skip_special_tokens=True) for w in many] for many in written]

    def _encode(self, prompt: Messages) -> list[int]:
        *before, last = prompt
        begun = self.generator.tokenizer(last["content"], add_special_tokens=False)["input_ids"]
        return [*chat_ids(self.generator.tokenizer, before), *begun]


def load_lines(
    ref: str | Path, *, batch_size: int = 32, dtype: str = "auto", device: str = "auto"
) -> LineGenerator:
    """Load a model that goes on from what is begun."""
    return LineGenerator(load_generator(ref, batch_size=batch_size, dtype=dtype, device=device))
