"""One line of `responses.jsonl`."""

from pydantic import BaseModel, ConfigDict

from equipoise.records import Conversation

DECODING = ("max_new_tokens", "temperature", "top_p", "seed")
"""Settings of an evaluation that say how the model responds."""


class Response(BaseModel):
    """What a model responded to a prompt: the contract of `generate`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    sample: int
    prompt: Conversation
    response: str
    model: str
