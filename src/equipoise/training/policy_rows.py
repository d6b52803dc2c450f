"""Token rows of a policy: a prompt through the chat template, and its responses side by side."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from equipoise.errors import DataError
from equipoise.models.backbone import positions_of
from equipoise.models.chat import chat_ids, encode_response
from equipoise.models.layout import Row
from equipoise.records import Conversation, messages_of


class PolicyBatch(NamedTuple):
    """Rows with what the loss needs beside them; every tensor is [B] or [2B]."""

    rows: tuple[Row, ...]
    extras: tuple[Tensor, ...] = ()

    def to(self, device: torch.device) -> "PolicyBatch":
        """Return the batch on another device; rows become tensors where the model is."""
        return PolicyBatch(self.rows, tuple(tensor.to(device) for tensor in self.extras))


def make_row(tokenizer: Any, prompt: Conversation, responses: Sequence[str]) -> Row:
    """Tokenize a prompt and its responses; each response ends with the end-of-turn token."""
    return Row(
        chat_ids(tokenizer, messages_of(prompt)), [encode_response(tokenizer, text) for text in responses]
    )


def check_positions(where: str, model: Any, rows: Sequence[Row]) -> None:
    """Raise DataError where a prompt with a response is longer than what the model was made for."""
    positions = positions_of(model)
    longest = max((len(row.prompt) + max(map(len, row.responses)) for row in rows), default=0)
    if positions is not None and longest > positions:
        raise DataError(
            f"{where}: a prompt and its response have {longest} tokens; expected at most the {positions} that"
            " the model takes"
        )
