"""Token rows of a policy: a prompt through the chat template, and its responses side by side."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
