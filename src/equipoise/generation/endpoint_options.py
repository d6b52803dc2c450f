"""How probable each of a few fixed answers is, by a server, as well as it can say.

A server that gives log-probabilities is asked for one token and its likeliest alternatives. One that does
not is asked for an answer, held to the options by a JSON schema where it takes one; the option that the
answer names then has probability 1. An answer that names none, or several, is missing: a row of NaN.
Options should differ in their first letters (A, B, C; yes, no; safe, unsafe).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from pydantic import JsonValue

from equipoise.generation.endpoint import Ask, EndpointGenerator
from equipoise.generation.option_text import check_options, score_text, score_tokens
from equipoise.generation.replies import Answer, Reply, first_choice, first_token
from equipoise.generation.usage import Usage
from equipoise.protocols import Messages

_ALTERNATIVES = (20, 5)
"""Likeliest tokens to ask for; servers differ in how many they give."""
_SPARE_TOKENS = 24
"""Room of a written answer beside the longest option's letters."""

How = Literal["logprobs", "schema", "text"]


class EndpointOptionScorer:
    """Score options by a server; a `protocols.OptionScorer`."""

    def __init__(self, generator: EndpointGenerator) -> None:
        """Ask through the generator, so that answers are kept in its journal."""
        self._generator = generator
        self._takes: dict[str, bool] = {}
        """What the server was found to take."""

    def __call__(self, prompts: Sequence[Messages], options: Sequence[str]) -> list[list[float]]:
        """Return the log-probability in nats of each option, normalised over the options, [N][K].

        Raises:
            DataError: fewer than two options, or one that is empty or there twice.
            RunStoppedError: the server is dead.
        """
        check_options(options)
        if not prompts:
            return []
        how, fields = self._way(options)
        longest = 1 if how == "logprobs" else max(map(len, options)) + _SPARE_TOKENS
        answers = self._generator.ask([Ask(prompt, longest, fields) for prompt in prompts])
        return [_score(answer, how, options) for answer in answers]

    def how(self, options: Sequence[str]) -> How:
        """Return how the server is asked: what it was found to take."""
        return self._way(options)[0]

    def take_usage(self) -> Usage:
        """Return what the answers took since the last call, those from the journal too."""
        return self._generator.take_usage()

    def _way(self, options: Sequence[str]) -> tuple[How, Mapping[str, JsonValue]]:
        for count in _ALTERNATIVES:
            # at temperature 1, since some servers give the log-probabilities after the temperature
            fields: dict[str, JsonValue] = {"logprobs": True, "top_logprobs": count, "temperature": 1.0}
            if self._is_taken(fields, _has_alternatives):
                return "logprobs", fields
        fields = {"response_format": _schema(options), "temperature": 0.0}
        if self._is_taken(fields, lambda reply: True):
            return "schema", fields
        return "text", {"temperature": 0.0}

    def _is_taken(self, fields: Mapping[str, JsonValue], shows: Callable[[Reply], bool]) -> bool:
        name = json.dumps(fields)
        if name not in self._takes:
            self._takes[name] = self._generator.takes(fields, shows)
        return self._takes[name]


def _score(answer: Answer, how: How, options: Sequence[str]) -> list[float]:
    if answer.text is None:
        return [math.nan] * len(options)
    return (
        score_tokens(answer.first_token, options) if how == "logprobs" else score_text(answer.text, options)
    )


def _has_alternatives(reply: Reply) -> bool:
    return len(first_token(first_choice(reply))) > 1


def _schema(options: Sequence[str]) -> JsonValue:
    answer: JsonValue = {"type": "string", "enum": list(options)}
    schema: JsonValue = {
        "type": "object",
        "properties": {"answer": answer},
        "required": ["answer"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
