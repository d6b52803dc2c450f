"""Potato's files: the YAML and the data that its server reads, and the answers that it writes.

Potato is GPL software: it runs as its own program in its own environment and is never imported. What is
written here was checked against version 2.12.1 (`potato validate --strict`, and its page in a browser).
"""

import html
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from equipoise.annotation.card import LETTERS, UNSAFE, WARNING, Card, Option, Question
from equipoise.annotation.filled import Filled
from equipoise.annotation.project import Page
from equipoise.annotation.suggest import suggestion_text
from equipoise.config import to_yaml
from equipoise.data.rows import LineError
from equipoise.lineage import write_text

CONFIG, ANSWERS, LOG = "potato.yaml", "answers", "serve.log"
"""What lies in the project's folder: Potato's settings, the folder of what people entered, and what the
server says of itself, in which there are no texts of items."""

OWN = (ANSWERS, LOG, "layouts", "project.sqlite", "project.sqlite-wal", "project.sqlite-shm")
"""What Potato itself writes there."""

_DATA, _STYLE, _STATE = "potato.jsonl", "potato.css", "user_state.json"

# What is about answer A stands on the left, what is about B on the right. Potato's own `layout` is not
# used: it takes the forms out of the containers that `display_logic` hides, so that all show all the time.
_CSS = """\
.instance-display-container, .annotation_schema {
  display: grid !important; grid-template-columns: 1fr 1fr; gap: 12px 16px !important; align-items: start;
}
.instance-display-container > *, .annotation_schema > * {
  grid-column: 1 / -1; width: auto !important; max-width: none !important; margin: 0 !important;
}
.instance-display-container:has([data-field-key="answer_B"]) > [data-field-key="answer_A"],
.annotation_schema:has([data-schema-name$="_B"]) > [data-schema-name$="_A"] { grid-column: 1; }
.instance-display-container > [data-field-key="answer_B"],
.annotation_schema > [data-schema-name$="_B"] { grid-column: 2; }
.annotation_schema > [data-schema-name^="is_safe_"] { grid-row: 1; }
.annotation_schema > [data-schema-name^="severity_"] { grid-row: 2; }
.annotation_schema > [data-schema-name^="categories_"] { grid-row: 3; }
.annotation_schema > .display-logic-hidden { display: none; }
.shadcn-radio-option { align-items: flex-start !important; }
.shadcn-radio-option > input { flex: none; margin-top: 0.25em; }
.text-display-content { white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def write_potato(
    folder: Path, card: Card, pages: Sequence[Page], *, people_per_item: int | None = None
) -> None:
    """Write the files of a Potato project: one page per item, every question required where it is asked.

    Args:
        folder: Where they go.
        card: What is asked.
        pages: What is shown.
        people_per_item: How many people label each item, more where several have it open at once;
            None = everyone.
    """
    rows = [json.dumps(_row(card, page), ensure_ascii=False) for page in pages]
    write_text(folder / _DATA, "".join(row + "\n" for row in rows))
    write_text(folder / _STYLE, _CSS)
    has_suggestions = any(page.suggestions for page in pages)
    settings = potato_settings(card, has_suggestions=has_suggestions, people_per_item=people_per_item)
    write_text(folder / CONFIG, to_yaml(settings))


def potato_settings(card: Card, *, has_suggestions: bool, people_per_item: int | None) -> dict[str, Any]:
    """Return Potato's settings for a card."""
    fields = {"prompt": "Prompt"} | {f"answer_{letter}": card.heading(letter) for letter in card.letters}
    if has_suggestions:
        fields["suggestions"] = "What models said; they may be wrong"
    return {
        "annotation_task_name": card.title,
        "annotation_instructions": f"**{WARNING}** {card.guide}",
        "task_dir": ".",
        "output_annotation_dir": ANSWERS,
        "data_files": [_DATA],
        "item_properties": {"id_key": "key", "text_key": "key"},
        "instance_display": {
            "fields": [{"key": key, "type": "html", "label": label} for key, label in fields.items()],
            "resizable": False,  # else a long text is cut until one asks for all of it
        },
        "annotation_schemes": [_scheme(question) for question in card.questions],
        "base_css": _STYLE,
        "require_password": False,
        "jumping_to_id_disabled": True,
        "assignment_strategy": "random",
        "num_annotators_per_item": people_per_item or 0,
        "interaction_tracking": {"disclose_to_annotators": True},
    }


def read_potato(answers: Path, on_bad: Callable[[LineError], None]) -> Iterator[Filled]:
    """Yield the cards that people filled, in the order of their names.

    Args:
        answers: Potato's output folder, with a folder for each person.
        on_bad: Called for what cannot be read; reading goes on if it returns.
    """
    for path in sorted(answers.glob(f"*/{_STATE}")):
        try:
            state = json.loads(path.read_text("utf-8"))
            person = state["user_id"]
            cards = state["instance_id_to_label_to_value"].items()
            times = state.get("instance_id_to_behavioral_data", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            on_bad(LineError(path, 1, "file", "not what Potato 2.12 writes for a person"))
            continue
        for number, (key, labels) in enumerate(cards, start=1):
            try:
                yield Filled(str(path), number, person, key, _answers(labels), _seconds(times.get(key)))
            except (ValueError, KeyError, TypeError, AttributeError):
                on_bad(LineError(path, number, "labels", "not a list of Potato's labels", key))


def _answers(labels: list[list[Any]]) -> dict[str, list[str]]:
    answers: dict[str, list[str]] = {}
    for label, value in labels:
        if value not in (None, "", False, "false"):
            answers.setdefault(label["schema"], []).append(label["name"])
    return answers


def _seconds(times: dict[str, Any] | None) -> float | None:
    milliseconds = (times or {}).get("total_time_ms")
    return None if milliseconds is None else round(milliseconds / 1000, 3)


def _row(card: Card, page: Page) -> dict[str, Any]:
    suggestions = "\n\n".join(suggestion_text(card, suggestion) for suggestion in page.suggestions)
    texts = {"prompt": page.prompt} | {
        f"answer_{letter}": text for letter, text in zip(LETTERS, page.responses, strict=False)
    }
    texts["suggestions"] = suggestions or "nothing"
    # Potato puts the row into a <script> of the page as it is, where a text with </script> would break out:
    # so no `<` goes in, and the field type is html, whose sanitizer leaves escaped text alone.
    return {"key": page.item.key} | {name: _escaped(text) for name, text in texts.items()}


def _escaped(text: str) -> str:
    return html.escape(text).replace("{", "&#123;").replace("}", "&#125;") or "(empty)"


def _scheme(question: Question) -> dict[str, Any]:
    scheme: dict[str, Any] = {
        "annotation_type": "multiselect" if question.several else "radio",
        "name": question.name,
        "description": question.text,
        "labels": [_label(option, question) for option in question.options],
        "label_requirement": {"required": True},
    }
    if question.several:
        scheme["display_config"] = {"num_columns": 2}
    if question.if_unsafe:
        condition = {"schema": question.if_unsafe, "operator": "equals", "value": UNSAFE}
        scheme["display_logic"] = {"show_when": [condition]}
    return scheme


def _label(option: Option, question: Question) -> dict[str, str]:
    label = {"name": option.value, "displayed_label": option.title}
    if question.several:  # too many to spell out; the definition shows under the mouse
        return label | {"tooltip": option.help}
    return label | {"displayed_label": f"{option.title}: {option.help}"} if option.help else label
