"""Rollouts: what a policy wrote, in tokens, with what it takes to learn from it."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from equipoise.generation.local import LocalGenerator
from equipoise.models.chat import decode_response
from equipoise.models.layout import Row
from equipoise.protocols import Sampling
from equipoise.records import Exchange, Prompt, messages_of


class Rollout(NamedTuple):
    """One response to one prompt."""

    prompt: Prompt
    sample: int
    prompt_ids: list[int]
    ids: list[int]
    """Tokens of the response, the one that ended it included; at least one."""
    text: str
    is_truncated: bool
    """Whether it reached the limit before it ended."""
    logps: tuple[float, ...]
    """Log-probability in nats of each token under the model that wrote it, with temperature 1 and no nucleus:
    a policy gradient wants it drawn so. Where a server wrote it they are the server's, or empty."""

    @property
    def exchange(self) -> Exchange:
        """The rollout as a record, as rewards take it; its id is `ID#SAMPLE`."""
        return self.prompt.exchange(self.text, self.sample)


def roll_out(generator: LocalGenerator, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
    """Let a model in this process write `sampling.samples` responses per prompt; seeded by the prompts' ids.

    Raises:
        DataError: a prompt and its response do not fit the model.
    """
    encoded = [generator.encode(messages_of(p.prompt), sampling) for p in prompts]
    written = generator.write(encoded, sampling, [p.id for p in prompts], with_logps=True)
    return [
        [
            Rollout(
                prompt,
                k,
                ids,
                [*w.ids, *([] if w.stop is None else [w.stop])],
                decode_response(generator.tokenizer, w.ids),
                w.stop is None,
                w.logps,
            )
            for k, w in enumerate(responses)
        ]
        for prompt, ids, responses in zip(prompts, encoded, written, strict=True)
    ]


def rows_of(rollouts: Sequence[Rollout]) -> list[Row]:
    """Return rollouts as rows of tokens: those of one prompt that follow each other share it, in order."""
    groups = [list(group) for _, group in groupby(rollouts, key=lambda r: (r.prompt.id, r.prompt_ids))]
    return [Row(group[0].prompt_ids, [r.ids for r in group]) for group in groups]
