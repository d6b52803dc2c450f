"""Pairs given as a chosen and a rejected text: HH-RLHF, and the format of RewardBench.

The order in which a release lists the two says which was preferred; ours must not, so the chosen answer
is 0 or 1 by a hash of the texts, the same wherever the row is read.
"""

import re
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

from equipoise.data.identity import text_key
from equipoise.data.rows import Row, kind_and_size
from equipoise.data.sources.columns import Columns
from equipoise.records import Message, Pair, text_of

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES: dict[str, Literal["user", "assistant"]] = {"Human": "user", "Assistant": "assistant"}


class _Chosen(NamedTuple):
    """Answers in our order, and the place of the chosen one."""

    answers: list[dict[str, Any]]
    place: int


def hh_rlhf(row: Row) -> Pair:
    """Read a pair of HH-RLHF (Bai et al. 2022) whose part is not said: one overall preference."""
    return _transcripts(row, "overall")


def hh_harmless(row: Row) -> Pair:
    """Read a pair of the harmless part: the chosen answer is the safer one."""
    return _transcripts(row, "safer")


def hh_helpful(row: Row) -> Pair:
    """Read a pair of the helpful parts: the chosen answer is the better one."""
    return _transcripts(row, "better")


def reward_bench(row: Row) -> Pair:
    """Read a pair of RewardBench (Lambert et al. 2024): one prompt, `chosen` and `rejected`."""
    columns = Columns(row)
    columns.require("prompt", "chosen", "rejected")
    prompt = _text(columns, "prompt")
    found = _ordered(prompt, _text(columns, "chosen"), _text(columns, "rejected"))
    values = {"id": "", "prompt": prompt, "answers": found.answers, "overall": found.place}
    origin = {"source": "reward-bench", "label_origin": "authors", "provenance": columns.rest()}
    return columns.build(Pair, values | origin)


def _transcripts(row: Row, preference: str) -> Pair:
    columns = Columns(row)
    columns.require("chosen", "rejected")
    chosen, rejected = (_turns(columns, name) for name in ("chosen", "rejected"))
    for number, (ours, theirs) in enumerate(zip_longest(chosen[:-1], rejected[:-1]), start=1):
        if ours != theirs:
            turns = f"turn {number} of {len(chosen)} and {len(rejected)}"
            raise columns.error("rejected", f"the transcripts part before the last turn, at {turns}")
    prompt = tuple(chosen[:-1])
    found = _ordered(text_of(prompt), chosen[-1].content, rejected[-1].content)
    is_one_question = len(prompt) == 1 and prompt[0].role == "user"
    values: dict[str, Any] = {"id": "", "answers": found.answers, preference: found.place}
    values["prompt"] = prompt[0].content if is_one_question else [turn.model_dump() for turn in prompt]
    origin = {"source": "hh-rlhf", "label_origin": "human", "provenance": columns.rest()}
    return columns.build(Pair, values | origin)


def _turns(columns: Columns, name: str) -> list[Message]:
    """Split a transcript into its turns; white space around a turn is no part of it.

    Raises:
        LineError: text before the first turn, or a transcript that does not end in an answer to something.
    """
    before, *parts = _TURN.split(_text(columns, name))
    turns = [
        Message(role=_ROLES[who], content=said.strip())
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    if before.strip() or not turns:
        raise columns.error(
            name, f"expected turns of Human: and Assistant:, got {kind_and_size(before)} first"
        )
    if turns[-1].role != "assistant" or len(turns) < 2:
        got = f"{len(turns)} turns, the last by {turns[-1].role}"
        raise columns.error(name, f"expected a dialogue that ends in an answer of the assistant, got {got}")
    return turns


def _ordered(prompt: str, chosen: str, rejected: str) -> _Chosen:
    place = text_key([prompt, *sorted((chosen, rejected))])[0] & 1
    place = place if chosen <= rejected else 1 - place
    answers = [{"response": rejected}, {"response": rejected}]
    answers[place] = {"response": chosen}
    return _Chosen(answers, place)


def _text(columns: Columns, name: str) -> str:
    value = columns.text(name)
    if not isinstance(value, str):
        raise columns.error(name, f"expected a text, got {kind_and_size(value)}")
    return value
