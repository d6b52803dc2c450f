"""What a person is given to judge: records as items of a card, and what models said of them.

An item's key is made of all that its page shows, so that an answer is never joined to another text or
to another order of the two answers.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from equipoise.annotation.card import Card, CardKind, make_card
from equipoise.annotation.suggest import Suggestion, suggestions
from equipoise.data.io import Placed, read_rows
from equipoise.errors import ConfigError, DataError
from equipoise.lineage import write_text
from equipoise.records import Exchange, Judgement, Pair, text_of
from equipoise.taxonomy import load_taxonomy

Tool = Literal["potato", "label-studio"]

_CARD, _ITEMS = "card.json", "items.jsonl"


class Item(BaseModel):
    """One page: which record it shows, and how. Holds no text, the tools' own files do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """Name of the item in the tool."""
    id: str
    """Id of the record."""
    source: str
    licence: str
    swapped: bool = False
    """Whether the record's second answer is shown as A."""
    suggested_by: tuple[str, ...] = ()
    """Models whose labels the page shows."""


class Page(NamedTuple):
    """An item with the texts that its page shows."""

    item: Item
    prompt: str
    responses: tuple[str, ...]
    """In the order in which they are shown."""
    suggestions: tuple[Suggestion, ...]


class Project(BaseModel):
    """A card with its items, as it lies in the folder of an export."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tool: Tool
    card: Card
    items: dict[str, Item]
    """By key."""


def card_of(records: Sequence[Placed[Exchange | Pair]], wanted: Literal["dual", "overall"]) -> Card:
    """Return the card for some records of one kind and taxonomy: the answer's half for exchanges.

    Raises:
        DataError: two records have one id, or they are of more than one taxonomy.
        ConfigError: an overall preference is asked about single answers.
    """
    first = records[0].record
    seen: dict[str, int] = {}
    for path, line, record in records:
        if record.id in seen:
            raise DataError(f"{path}:{line}: id: '{record.id:.60}' stands on line {seen[record.id]} already")
        seen[record.id] = line
        if record.taxonomy != first.taxonomy:
            what = f"got '{record.taxonomy}' after '{first.taxonomy}'"
            raise DataError(f"{path}:{line}: taxonomy: records of more than one taxonomy, {what}")
    if isinstance(first, Exchange) and wanted == "overall":
        raise ConfigError("card: 'overall' compares two answers, got exchanges; expected pairs, or card=dual")
    kind: CardKind = wanted if isinstance(first, Pair) else "exchange"
    return make_card(kind, load_taxonomy(first.taxonomy))


def make_pages(
    card: Card, records: Iterable[Exchange | Pair], judgements: Sequence[Judgement] = (), *, seed: int = 0
) -> list[Page]:
    """Return a page per record; which answer of a pair comes first is drawn from the seed and the id."""
    said: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        said.setdefault(judgement.subject, []).append(judgement)
    return [_page(card, record, said, seed) for record in records]


def write_project(folder: Path, tool: Tool, card: Card, items: Iterable[Item]) -> None:
    """Write the card and the items, from which the answers are read again."""
    write_text(folder / _ITEMS, "".join(item.model_dump_json() + "\n" for item in items))
    write_text(folder / _CARD, json.dumps({"tool": tool, "card": card.model_dump()}, ensure_ascii=False))


def read_project(folder: Path) -> Project:
    """Read what `write_project` wrote; a folder that holds none raises DataError."""
    if not (folder / _CARD).is_file():
        raise DataError(f"{folder}: no project of `equipoise annotate export`, {_CARD} is missing")
    try:
        head = json.loads((folder / _CARD).read_text("utf-8"))
        items = [Item.model_validate(row.values) for row in read_rows(folder / _ITEMS)]
        return Project(**head, items={item.key: item for item in items})
    except (ValidationError, ValueError, TypeError) as exc:
        raise DataError(
            f"{folder}: {_CARD} or {_ITEMS} is not as `equipoise annotate export` wrote it"
        ) from exc


def _page(card: Card, record: Exchange | Pair, said: dict[str, list[Judgement]], seed: int) -> Page:
    prompt = text_of(record.prompt)
    swapped = False
    if isinstance(record, Pair):
        swapped = hashlib.sha256(f"{seed}\0{record.id}".encode()).digest()[0] % 2 == 1
        first, second = (answer.response for answer in record.answers)
        responses: tuple[str, ...] = (second, first) if swapped else (first, second)
    else:
        responses = (record.response,)
    said_here = tuple(suggestions(card, record.id, said, swapped=swapped))
    shown = [card.kind, record.id, prompt, *responses, *(said.annotator for said in said_here)]
    item = Item(
        key=hashlib.sha256("\0".join(shown).encode()).hexdigest()[:16],
        id=record.id,
        source=record.source,
        licence=record.licence,
        swapped=swapped,
        suggested_by=tuple(suggestion.annotator for suggestion in said_here),
    )
    return Page(item, prompt, responses, said_here)
