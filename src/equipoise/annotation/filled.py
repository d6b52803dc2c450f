"""A card that a person has filled, and the judgements that it is."""

from typing import NamedTuple

from pydantic import JsonValue

from equipoise.annotation.card import Card, chosen, read_choice, read_labels, subjects, unanswered
from equipoise.annotation.project import Item, Tool
from equipoise.records import Choice, Judgement


class Filled(NamedTuple):
    """What one person entered about one item, and where it was read."""

    path: str
    row: int
    """From 1: which of the file's entries."""
    annotator: str
    key: str
    answers: dict[str, list[str]]
    seconds: float | None = None
    is_skipped: bool = False
    """Whether the person passed the item by, in so many words."""


def judgements_of(card: Card, item: Item, filled: Filled, tool: Tool) -> list[Judgement]:
    """Return a filled card as records: one for an exchange, for a pair one for each answer and one for both.

    What was asked and not answered is None, and is named in `provenance["missing"]`. The time is that of
    the whole card; where a card gives several judgements, it stands on the one for the pair.

    Raises:
        DataError: an answer to no question of the card, or no option of it; the message names the question.
    """
    for name in filled.answers:
        chosen(card, filled.answers, name)
    missing = unanswered(card, filled.answers)
    shared: dict[str, JsonValue] = {"tool": tool, "card": card.kind}
    if item.swapped:
        shared["swapped"] = True
    if item.suggested_by:
        shared["suggested_by"] = list(item.suggested_by)

    def judgement(subject: str, lacks: dict[str, str], **fields: object) -> Judgement:
        return Judgement.model_validate(
            {
                "id": f"{subject}@{filled.annotator}" + ("/overall" if card.kind == "overall" else ""),
                "source": item.source,
                "licence": item.licence,
                "label_origin": "human",
                "annotators": (filled.annotator,),
                "provenance": shared | ({"missing": lacks} if lacks else {}),
                "subject": subject,
                "annotator": filled.annotator,
                **fields,
            }
        )

    def lacking(about: str | None) -> dict[str, str]:
        return {question.field: "not answered" for question in missing if question.about == about}

    parts = []
    if card.kind != "overall":
        for letter, subject in subjects(card, item.id, swapped=item.swapped).items():
            labels = read_labels(card, filled.answers, letter)
            seconds = filled.seconds if card.kind == "exchange" else None
            parts.append(judgement(subject, lacking(letter), labels=labels, seconds=seconds))
    if card.kind != "exchange":
        choices: dict[str, Choice | None] = {
            question.field: read_choice(card, filled.answers, question.name, swapped=item.swapped)
            for question in card.questions
            if question.about is None
        }
        parts.append(judgement(item.id, lacking(None), seconds=filled.seconds, **choices))
    return sorted(parts, key=lambda part: part.subject)
