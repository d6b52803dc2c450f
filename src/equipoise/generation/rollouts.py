"""Rollouts: what a policy wrote, in tokens, with what it takes to learn from it."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from equipoise.generation.local import LocalGenerator
from equipoise.models.chat import chat_ids, decode_response, encode_response
from equipoise.models.layout import Row
from equipoise.protocols import Generator, Sampling
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
    a policy gradient wants it drawn so. Empty where a server wrote it; the policy can be asked."""

    @property
    def exchange(self) -> Exchange:
        """The rollout as a record, as rewards take it; its id is `ID#SAMPLE`."""
        return Exchange(id=f"{self.prompt.id}#{self.sample}", prompt=self.prompt.prompt, response=self.text)


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


def roll_out_elsewhere(
    generate: Generator, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], sampling: Sampling
) -> list[list[Rollout]]:
    """Let anything write the responses, for example a server, and read its texts in the policy's tokens.

    A text of as many tokens as were allowed counts as truncated: a server's own tokens are not known.
    """
    texts = generate([messages_of(p.prompt) for p in prompts], sampling, [p.id for p in prompts])
    return [
        [_read(tokenizer, prompt, k, text, sampling.max_new_tokens) for k, text in enumerate(responses)]
        for prompt, responses in zip(prompts, texts, strict=True)
    ]


def rows_of(rollouts: Sequence[Rollout]) -> list[Row]:
    """Return rollouts as rows of tokens: those of one prompt that follow each other share it, in order."""
    groups = [list(group) for _, group in groupby(rollouts, key=lambda r: (r.prompt.id, r.prompt_ids))]
    return [Row(group[0].prompt_ids, [r.ids for r in group]) for group in groups]


def _read(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, sample: int, text: str, limit: int) -> Rollout:
    ids = encode_response(tokenizer, text)  # the last one ends it
    prompt_ids = chat_ids(tokenizer, messages_of(prompt.prompt))
    return Rollout(prompt, sample, prompt_ids, ids[:limit], text, len(ids) > limit, ())
