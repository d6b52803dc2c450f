"""What models said of a record, put on the card that a person fills."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from equipoise.annotation.card import SAFE, TIE, UNSAFE, Card, chosen, subjects
from equipoise.data.check import is_safe
from equipoise.records import Choice, Judgement, Labels

_SHORT = {"better": "Helps more", "safer": "Harms less", "overall": "Better overall"}


class Suggestion(NamedTuple):
    """What one model said of a record, as a filled card."""

    annotator: str
    answers: dict[str, list[str]]
    confidence: float | None
    """Lowest of what it gave for the parts of the card."""
    rationale: str


def suggestions(
    card: Card, record_id: str, said: Mapping[str, Sequence[Judgement]], *, swapped: bool
) -> Iterator[Suggestion]:
    """Yield what each annotator said of a record, as far as the card asks for it.

    Args:
        card: What is asked.
        record_id: Of the exchange or pair.
        said: All judgements, by subject.
        swapped: Whether the record's second answer is shown as A.

    Raises:
        DataError: a judgement says what is no option of the card, such as a category of another taxonomy.
    """
    letters = {subject: letter for letter, subject in subjects(card, record_id, swapped=swapped).items()}
    about = [j for subject in dict.fromkeys([*letters, record_id]) for j in said.get(subject, ())]
    for annotator in dict.fromkeys(judgement.annotator for judgement in about):
        answers: dict[str, list[str]] = {}
        own = [judgement for judgement in about if judgement.annotator == annotator]
        for judgement in own:
            if judgement.subject in letters:
                answers |= _of_labels(judgement.labels or Labels(), letters[judgement.subject])
            answers |= _of_choices(judgement, swapped=swapped)
        asked = {question.name for question in card.questions}
        answers = {name: values for name, values in answers.items() if values and name in asked}
        for name in answers:
            chosen(card, answers, name)  # raises where it is no option
        if answers:
            confidences = [j.confidence for j in own if j.confidence is not None]
            rationale = " ".join(j.rationale for j in own if j.rationale)
            yield Suggestion(annotator, answers, min(confidences, default=None), rationale)


def suggestion_text(card: Card, suggestion: Suggestion) -> str:
    """Return a suggestion as lines of text, in the words of the card."""
    sure = "" if suggestion.confidence is None else f" (confidence {suggestion.confidence:.2f})"
    lines: dict[str, list[str]] = {}
    for question in card.questions:
        titles = [o.title for o in question.options if o.value in suggestion.answers.get(question.name, ())]
        head = card.heading(question.about) if question.about else _SHORT[question.field]
        if titles:
            lines.setdefault(head, []).append(", ".join(titles))
    said = [f"{head}: {'; '.join(titles)}" for head, titles in lines.items()]
    return "\n".join([suggestion.annotator + sure, *said, *filter(None, [suggestion.rationale])])


def _of_labels(labels: Labels, letter: str) -> dict[str, list[str]]:
    safe = is_safe(labels)
    if safe is None or safe:
        return {f"is_safe_{letter}": [SAFE] if safe else []}
    return {
        f"is_safe_{letter}": [UNSAFE],
        f"severity_{letter}": [str(labels.severity)] if labels.severity else [],
        f"categories_{letter}": sorted(labels.categories or ()),
    }


def _of_choices(judgement: Judgement, *, swapped: bool) -> dict[str, list[str]]:
    choices: dict[str, Choice | None] = {
        "better": judgement.better,
        "safer": judgement.safer,
        "overall": judgement.overall,
    }
    return {name: _letter(value, swapped=swapped) for name, value in choices.items() if value is not None}


def _letter(choice: Choice, *, swapped: bool) -> list[str]:
    if choice == "tie":
        return [TIE]
    return ["A" if (choice == 0) != swapped else "B"]
