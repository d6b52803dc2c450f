"""Label Studio's files: the XML of the labelling page, the tasks with predictions, and its JSON export.

Both preferences are plain choices, since its Pairwise tag has no tie and one dimension only. What models
said goes along as predictions; its export names these by number only, so they are never read from there.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from equipoise.annotation.card import LETTERS, WARNING, Card, Option, Question
from equipoise.annotation.filled import Filled
from equipoise.annotation.project import Page
from equipoise.annotation.suggest import Suggestion
from equipoise.data.rows import LineError
from equipoise.errors import DataError
from equipoise.lineage import write_text

CONFIG, TASKS = "label_studio.xml", "tasks.json"
"""What lies in the project's folder: the labelling configuration, and the tasks to import."""


def write_label_studio(folder: Path, card: Card, pages: Sequence[Page]) -> None:
    """Write the labelling configuration and the tasks, which hold our key of each item."""
    write_text(folder / CONFIG, labelling_config(card))
    tasks = [_task(card, page) for page in pages]
    write_text(folder / TASKS, json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")


def labelling_config(card: Card) -> str:
    """Return the XML of the page for a card."""
    view = ET.Element("View")
    ET.SubElement(view, "Header", value=WARNING, size="4")
    ET.SubElement(view, "Header", value=card.guide, size="5")
    ET.SubElement(view, "Header", value="Prompt", size="4")
    ET.SubElement(view, "Text", name="prompt", value="$prompt", valueType="text")
    row = ET.SubElement(view, "View", style="display: flex; gap: 1em; align-items: flex-start")
    for letter in card.letters:
        column = ET.SubElement(row, "View", style="flex: 1 1 0; min-width: 0")
        ET.SubElement(column, "Header", value=card.heading(letter), size="4")
        name = f"answer_{letter}"
        ET.SubElement(column, "Text", name=name, value=f"${name}", valueType="text")
        for question in card.questions:
            if question.about == letter:
                _ask(column, card, question)
    for question in card.questions:
        if question.about is None:
            _ask(view, card, question)
    ET.indent(view)
    return ET.tostring(view, encoding="unicode") + "\n"


def read_label_studio(card: Card, path: Path, on_bad: Callable[[LineError], None]) -> Iterator[Filled]:
    """Yield the cards in a JSON export of Label Studio; drafts and predictions are none.

    Args:
        card: The card that was exported.
        path: The file that its export as JSON wrote.
        on_bad: Called for what cannot be read; reading goes on if it returns.

    Raises:
        DataError: the file is no such export.
    """
    try:
        tasks = json.loads(path.read_text("utf-8"))
    except ValueError as exc:
        raise DataError(f"{path}: not JSON; expected the export of Label Studio as JSON") from exc
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise DataError(f"{path}: expected a list of tasks, the export of Label Studio as JSON")
    for number, task in enumerate(tasks, start=1):
        if not isinstance(task.get("annotations"), list):
            what = "missing; expected the export as JSON, which lists them (JSON-MIN does not)"
            on_bad(LineError(path, number, "annotations", what))
            continue
        data = task.get("data")
        key = data.get("key") if isinstance(data, dict) else None
        if not isinstance(key, str):
            on_bad(LineError(path, number, "data.key", "missing; the task is not one that was exported here"))
            continue
        for annotation in task["annotations"]:
            try:
                yield _filled(card, path, number, key, annotation)
            except DataError as exc:
                on_bad(LineError(path, number, "annotations", str(exc), key))
            except (KeyError, TypeError, AttributeError):
                on_bad(LineError(path, number, "annotations", "not as Label Studio 1.23 writes them", key))


def _filled(card: Card, path: Path, number: int, key: str, annotation: dict[str, Any]) -> Filled:
    answers: dict[str, list[str]] = {}
    for result in annotation["result"]:
        if result["type"] != "choices":
            raise DataError(f"{result['from_name']}: expected choices, got {result['type']}")
        question = card.question(result["from_name"])
        values = {_title(question, option): option.value for option in question.options}
        # a title that is not ours stays, and is refused with its name where the card is read
        answers[question.name] = [values.get(title, title) for title in result["value"]["choices"]]
    seconds = annotation.get("lead_time")
    return Filled(
        path=str(path),
        row=number,
        annotator=_person(annotation["completed_by"]),
        key=key,
        answers=answers,
        seconds=None if seconds is None else round(float(seconds), 3),
        is_skipped=annotation.get("was_cancelled") is True,
    )


def _person(completed_by: Any) -> str:
    """Return a name for a person: the export gives a number, or an object that may hold an address."""
    if isinstance(completed_by, dict):
        return str(completed_by.get("email") or completed_by["id"])
    if completed_by is None:
        raise DataError("completed_by: nobody")
    return str(completed_by)


def _ask(parent: ET.Element, card: Card, question: Question) -> None:
    holder = parent
    shown: dict[str, str] = {}
    if question.if_unsafe:
        unsafe = card.question(question.if_unsafe).options[-1].title
        shown = {"visibleWhen": "choice-selected", "whenTagName": question.if_unsafe}
        shown["whenChoiceValue"] = unsafe
        holder = ET.SubElement(parent, "View", shown)
    ET.SubElement(holder, "Header", value=question.text, size="5")
    kind = "multiple" if question.several else "single-radio"
    attributes = {"name": question.name, "toName": _about(question), "choice": kind, "required": "true"}
    attributes["requiredMessage"] = f"Not answered: {question.text}"
    if question.several:
        attributes["layout"] = "inline"
    choices = ET.SubElement(holder, "Choices", attributes | shown)
    for option in question.options:
        hint = {"hint": option.help} if option.help and question.several else {}
        ET.SubElement(choices, "Choice", {"value": _title(question, option)} | hint)


def _task(card: Card, page: Page) -> dict[str, Any]:
    answers = {
        f"answer_{letter}": text or "(empty)" for letter, text in zip(LETTERS, page.responses, strict=False)
    }
    data = {"key": page.item.key, "id": page.item.id, "prompt": page.prompt} | answers
    return {"data": data, "predictions": [_prediction(card, said) for said in page.suggestions]}


def _prediction(card: Card, suggestion: Suggestion) -> dict[str, Any]:
    results = []
    for name, values in suggestion.answers.items():
        question = card.question(name)
        titles = [_title(question, option) for option in question.options if option.value in values]
        result = {"from_name": name, "to_name": _about(question), "type": "choices"}
        results.append(result | {"value": {"choices": titles}})
    score = {} if suggestion.confidence is None else {"score": suggestion.confidence}
    return {"model_version": suggestion.annotator, "result": results} | score


def _title(question: Question, option: Option) -> str:
    """Return what the page says and the export holds; help on one of many shows under the mouse alone."""
    return f"{option.title}: {option.help}" if option.help and not question.several else option.title


def _about(question: Question) -> str:
    return f"answer_{question.about}" if question.about else "prompt"
