"""A generator that runs a model in this process."""

from collections.abc import Sequence
from pathlib import Path

from equipoise.errors import DataError
from equipoise.generation.decoding import Written, decode
from equipoise.models.backbone import Backbone, load_causal, positions_of
from equipoise.models.chat import chat_ids, decode_response, end_of_turn
from equipoise.protocols import Messages, Sampling


class LocalGenerator:
    """Write responses with a loaded model; a `protocols.Generator`.

    A response depends on the model, the prompt, the sampling and its (seed, id, sample), and not on what
    else is in the batch, up to the rounding of the number format.
    """

    def __init__(self, backbone: Backbone, *, batch_size: int = 32) -> None:
        """Hold the model; `batch_size` is how many responses are written at a time."""
        self.model, self.tokenizer, self.ref = backbone
        self.batch_size = batch_size
        self.stop_ids = frozenset({end_of_turn(self.tokenizer), *self._ends()})
        """Ids that end a response: end-of-sequence and end-of-turn."""

    def __call__(
        self, prompts: Sequence[Messages], sampling: Sampling, ids: Sequence[str] | None = None
    ) -> list[list[str]]:
        """Return `sampling.samples` texts per prompt, in order."""
        return [
            [decode_response(self.tokenizer, response.ids) for response in responses]
            for responses in self.write([self.encode(p, sampling) for p in prompts], sampling, ids)
        ]

    def encode(self, prompt: Messages, sampling: Sampling) -> list[int]:
        """Return the ids of a prompt, ready for the answer.

        Raises:
            DataError: the prompt and the response do not fit the model's positions.
        """
        ids = chat_ids(self.tokenizer, prompt)
        positions = positions_of(self.model)
        if positions is not None and len(ids) + sampling.max_new_tokens > positions:
            raise DataError(
                f"prompt: too long, {len(ids)} tokens and {sampling.max_new_tokens} new ones, "
                f"got {len(ids) + sampling.max_new_tokens}; expected at most {positions}"
            )
        return ids

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        ids: Sequence[str] | None = None,
        *,
        with_logps: bool = False,
    ) -> list[list[Written]]:
        """Return the responses to encoded prompts as token ids, with what ended them."""
        keys = ids if ids is not None else [str(i) for i in range(len(prompts))]
        return decode(
            self.model,
            prompts,
            keys,
            sampling,
            stop_ids=self.stop_ids,
            pad_id=self.tokenizer.pad_token_id,
            batch_size=self.batch_size,
            with_logps=with_logps,
        )

    def _ends(self) -> list[int]:
        configured = self.model.generation_config.eos_token_id
        listed = configured if isinstance(configured, list) else [configured]
        return [i for i in (*listed, self.tokenizer.eos_token_id) if i is not None]


def load_generator(
    ref: str | Path, *, batch_size: int = 32, dtype: str = "auto", device: str = "auto"
) -> LocalGenerator:
    """Load a model for writing responses; an adapter is folded into its base."""
    backbone = load_causal(ref, dtype=dtype, device=device, merge=True)
    return LocalGenerator(backbone, batch_size=batch_size)
