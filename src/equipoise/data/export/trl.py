"""The data set formats of trl: preference (explicit prompt), unpaired preference (KTO), prompt-only.

Each in both styles that trl knows: conversational (chat messages) and standard (plain text).
"""

from collections.abc import Iterator

from equipoise.data.check import is_safe
from equipoise.data.export.rows import (
    Choices,
    Column,
    ColumnType,
    Format,
    LeftOut,
    Out,
    exchanges_of,
    styled_answer,
    styled_prompt,
)
from equipoise.data.identity import AnyRecord
from equipoise.records import Pair


def preference(record: AnyRecord, choices: Choices) -> Iterator[Out]:
    """Give `prompt`, `chosen` and `rejected` of a pair."""
    if not isinstance(record, Pair):
        yield LeftOut("no pair of answers")
        return
    prompt = styled_prompt(record.prompt, choices.style)
    places = _order(record, str(choices.preference), choices)
    if isinstance(prompt, LeftOut):
        yield prompt
    elif isinstance(places, LeftOut):
        yield places
    else:
        for place in places:
            chosen, rejected = record.answers[place].response, record.answers[1 - place].response
            yield {
                "prompt": prompt,
                "chosen": styled_answer(chosen, choices.style),
                "rejected": styled_answer(rejected, choices.style),
            }


def unpaired(record: AnyRecord, choices: Choices) -> Iterator[Out]:
    """Give `prompt`, `completion` and `label` of each answer.

    The label says whether the answer is safe, or whether it is the preferred one of its pair.
    """
    prompt = styled_prompt(record.prompt, choices.style)
    if isinstance(prompt, LeftOut):
        yield prompt
        return
    for answer, label in _desirable(record, choices):
        if isinstance(label, LeftOut):
            yield label
        else:
            completion = styled_answer(answer, choices.style)
            yield {"prompt": prompt, "completion": completion, "label": label}


def prompts(record: AnyRecord, choices: Choices) -> Iterator[Out]:
    """Give the `prompt` of any record."""
    prompt = styled_prompt(record.prompt, choices.style)
    yield prompt if isinstance(prompt, LeftOut) else {"prompt": prompt}


def _desirable(record: AnyRecord, choices: Choices) -> list[tuple[str, bool | LeftOut]]:
    """Return the answers of a record, each with its label or with why it has none."""
    answers = exchanges_of(record)
    if not answers:
        return [("", LeftOut("a prompt without an answer"))]
    if choices.label == "safe":
        signs = [is_safe(answer) for answer in answers]
        unknown = LeftOut("an answer without a label of its safety")
        labels = [unknown if sign is None else sign for sign in signs]
        return [(answer.response, label) for answer, label in zip(answers, labels, strict=True)]
    if not isinstance(record, Pair):
        return [("", LeftOut("no pair of answers"))]
    places = _order(record, str(choices.label), choices)
    if isinstance(places, LeftOut):
        return [("", places)]
    return [(answer.response, k in places) for k, answer in enumerate(answers)]


def _order(record: Pair, name: str, choices: Choices) -> tuple[int, ...] | LeftOut:
    """Return the place of the chosen answer; both places of a tie that is given in either order."""
    value = getattr(record, name)
    if value is None:
        return LeftOut(f"'{name}' is not labelled")
    if choices.both_unsafe == "drop" and all(is_safe(answer) is False for answer in record.answers):
        return LeftOut("both answers are unsafe")
    if value == "tie":
        return (0, 1) if choices.ties == "both" else LeftOut(f"'{name}' is a tie")
    return (value,)


def _columns(*named: tuple[str, str]) -> tuple[tuple[Column, ...], tuple[Column, ...]]:
    """Return columns of chat messages, and of plain text."""
    kinds: tuple[ColumnType, ColumnType] = ("messages", "text")
    chat, text = (tuple(Column(name, kind, about) for name, about in named) for kind in kinds)
    return chat, text


_PROMPT = ("prompt", "what the model is asked")
_PROMPTS = _columns(_PROMPT)
_PAIRS = _columns(_PROMPT, ("chosen", "the preferred answer"), ("rejected", "the other answer"))
_ANSWERS = _columns(_PROMPT, ("completion", "an answer"))
_LABEL = Column("label", "truth", "whether the answer is desirable")
_STYLE = {"style": "conversational"}


def _is_plain(choices: Choices) -> bool:
    return choices.style == "standard"


TRL_FORMATS = {
    "trl-preference": Format(
        "prompt, chosen and rejected answer",
        preference,
        lambda choices: _PAIRS[_is_plain(choices)],
        "text-generation",
        {"preference": None, "both_unsafe": "keep", "ties": "drop", **_STYLE},
    ),
    "trl-kto": Format(
        "prompt, answer and whether it is desirable",
        unpaired,
        lambda choices: (*_ANSWERS[_is_plain(choices)], _LABEL),
        "text-generation",
        {"label": "safe", "both_unsafe": "keep", **_STYLE},
    ),
    "trl-prompt": Format(
        "prompts, each once",
        prompts,
        lambda choices: _PROMPTS[_is_plain(choices)],
        "text-generation",
        _STYLE,
        is_unique=True,
    ),
}
