"""What a format is: its columns, the choices it needs, and how a record becomes rows of it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

from equipoise.data.identity import AnyRecord
from equipoise.records import Conversation, Exchange, Pair, messages_of, text_of

ColumnType = Literal["text", "truth", "whole", "flags", "messages"]
"""flags is category name -> true, false or null; messages is a list of role and content."""


class Column(NamedTuple):
    """One column of a format."""

    name: str
    type: ColumnType
    about: str


class LeftOut(NamedTuple):
    """A record, or an answer of it, that a format cannot hold or that a choice leaves out."""

    reason: str


Out = dict[str, Any] | LeftOut


class Choices(Protocol):
    """The settings that a format may look at; a choice that it does not take is None."""

    @property
    def preference(self) -> Literal["better", "safer", "overall"] | None:
        """Which preference ranks the answers of a pair."""

    @property
    def both_unsafe(self) -> Literal["keep", "drop"] | None:
        """Whether pairs with two unsafe answers stay."""

    @property
    def ties(self) -> Literal["drop", "both"] | None:
        """Whether a tie is left out, or given once in either order."""

    @property
    def style(self) -> Literal["conversational", "standard"] | None:
        """Chat messages or plain text."""

    @property
    def label(self) -> Literal["safe", "better", "safer", "overall"] | None:
        """What makes an answer desirable: being safe, or being the preferred one of its pair."""


class Format(NamedTuple):
    """A format, as data."""

    about: str
    rows: Callable[[AnyRecord, Choices], Iterator[Out]] | None
    """None where records are written as they are."""
    columns: Callable[[Choices], tuple[Column, ...]]
    task: str
    """The hub's name of what the rows are for."""
    choices: Mapping[str, str | None] = {}
    """Setting -> its default; None where the user must choose."""
    is_unique: bool = False
    """True where a row that stands already is left out."""


def plain_prompt(prompt: Conversation) -> str | LeftOut:
    """Return a prompt as one text, if it is one."""
    if not isinstance(prompt, str) and not (len(prompt) == 1 and prompt[0].role == "user"):
        return LeftOut("the prompt is a chat of several turns, and the format takes one text")
    return text_of(prompt)


def styled_prompt(prompt: Conversation, style: str | None) -> str | list[dict[str, str]] | LeftOut:
    """Return a prompt as chat messages or as plain text."""
    return plain_prompt(prompt) if style == "standard" else messages_of(prompt)


def styled_answer(text: str, style: str | None) -> str | list[dict[str, str]]:
    """Return an answer as a chat message or as plain text."""
    return text if style == "standard" else [{"role": "assistant", "content": text}]


def exchanges_of(record: AnyRecord) -> tuple[Exchange, ...]:
    """Return an exchange, or both answers of a pair as exchanges; nothing for a prompt."""
    if isinstance(record, Pair):
        return record.exchange(0), record.exchange(1)
    return (record,) if isinstance(record, Exchange) else ()
