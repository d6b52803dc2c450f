"""Label Studio's files: the page, tasks with predictions, and its export. The real server: tests/tools."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from equipoise.annotation.card import Card, make_card
from equipoise.annotation.filled import Filled
from equipoise.annotation.label_studio import labelling_config, read_label_studio, write_label_studio
from equipoise.annotation.project import make_pages
from equipoise.data.rows import LineError
from equipoise.errors import DataError
from equipoise.records import Answer, Judgement, Labels, Pair
from equipoise.taxonomy import load_taxonomy

DUAL = make_card("dual", load_taxonomy("pku19"))
_, MODERATE, SEVERE = (f"{level.title}: {level.help}" for level in DUAL.question("severity_A").options)


def choices(name: str, *titles: str) -> dict[str, Any]:
    return {"from_name": name, "to_name": "x", "type": "choices", "value": {"choices": list(titles)}}


def annotation(*results: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": 1,
        "completed_by": 7,
        "lead_time": 12.3456,
        "was_cancelled": False,
        "result": [*results],
    } | more


def exported(folder: Path, *tasks: object) -> Path:
    path = folder / "export.json"
    path.write_text(json.dumps(tasks), "utf-8")
    return path


def read(path: Path, card: Card = DUAL) -> tuple[list[Filled], list[LineError]]:
    bad: list[LineError] = []
    return list(read_label_studio(card, path, bad.append)), bad


def test_the_page_asks_every_question_about_its_text_and_severity_only_for_unsafe() -> None:
    root = ET.fromstring(labelling_config(DUAL))
    asked = {tag.get("name"): tag for tag in root.iter("Choices")}
    assert list(asked) == [question.name for question in DUAL.questions]
    assert [asked[name].get("toName") for name in ("severity_A", "is_safe_B", "better")] == [
        "answer_A",
        "answer_B",
        "prompt",
    ]
    assert all(tag.get("required") == "true" for tag in asked.values())
    shown = {key: asked["severity_B"].get(key) for key in ("visibleWhen", "whenTagName", "whenChoiceValue")}
    assert shown == {
        "visibleWhen": "choice-selected",
        "whenTagName": "is_safe_B",
        "whenChoiceValue": "Unsafe",
    }
    assert asked["categories_A"].get("choice") == "multiple"
    assert [tag.get("value") for tag in asked["safer"]] == ["Answer A", "Answer B", "Both the same"]
    assert {tag.get("name"): tag.get("value") for tag in root.iter("Text")} == {
        "prompt": "$prompt",
        "answer_A": "$answer_A",
        "answer_B": "$answer_B",
    }


def test_a_task_holds_the_texts_our_key_and_what_models_said(tmp_path: Path) -> None:
    pair = Pair(id="p", prompt="q", answers=(Answer(response="one"), Answer(response="two")))
    harm = Labels(is_safe=False, severity=3, categories=frozenset({"Violence", "Drugs"}))
    said = [
        Judgement(id="1", subject="p#0", annotator="judge", labels=harm, confidence=0.8),
        Judgement(id="2", subject="p", annotator="judge", better="tie"),
        Judgement(id="3", subject="p", annotator="other", safer=1),
    ]
    (page,) = make_pages(DUAL, [pair], said)
    write_label_studio(tmp_path, DUAL, [page])
    (task,) = json.loads((tmp_path / "tasks.json").read_text("utf-8"))
    first, second = ("B", "A") if page.item.swapped else ("A", "B")
    texts = {"prompt": "q", f"answer_{first}": "one", f"answer_{second}": "two"}
    assert task["data"] == {"key": page.item.key, "id": "p"} | texts
    one, other = task["predictions"]
    assert (one["model_version"], one["score"]) == ("judge", 0.8)
    found = {r["from_name"]: (r["to_name"], r["value"]["choices"]) for r in one["result"]}
    assert found == {
        f"is_safe_{first}": (f"answer_{first}", ["Unsafe"]),
        f"severity_{first}": (f"answer_{first}", [SEVERE]),
        f"categories_{first}": (f"answer_{first}", ["Violence", "Drugs"]),
        "better": ("prompt", ["Both the same"]),
    }
    assert other["result"][0]["value"] == {"choices": [f"Answer {second}"]}
    assert "score" not in other


def test_an_export_gives_values_person_and_time(tmp_path: Path) -> None:
    results = (
        choices("is_safe_A", "Unsafe"),
        choices("severity_A", MODERATE),
        choices("safer", "Answer B"),
    )
    by_address = annotation(completed_by={"id": 3, "email": "bo@example.org"}, lead_time=None)
    skipped = annotation(was_cancelled=True, completed_by={"id": 4})
    task = {
        "data": {"key": "k"},
        "annotations": [annotation(*results), by_address, skipped],
        "predictions": [1],
    }
    (one, two, three), bad = read(exported(tmp_path, task))
    assert one.answers == {"is_safe_A": ["unsafe"], "severity_A": ["2"], "safer": ["B"]}
    assert (one.annotator, one.key, one.seconds, one.is_skipped) == ("7", "k", 12.346, False)
    assert (two.annotator, two.answers, two.seconds) == ("bo@example.org", {}, None)
    assert (three.annotator, three.is_skipped) == ("4", True)
    assert bad == []


def test_what_cannot_be_used_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    tasks = (
        {"data": {"key": "k1"}, "is_safe_A": "Safe"},  # as JSON-MIN writes it
        {"data": {"prompt": "of another project"}, "annotations": [annotation()]},
        {"data": {"key": "k3"}, "annotations": [annotation(choices("mood", "Good"))]},
        {"data": {"key": "k4"}, "annotations": [{"id": 1}, annotation(completed_by=None)]},
        {"data": {"key": "k5"}, "annotations": [annotation(choices("better", "Answer A"))]},
    )
    (filled,), bad = read(exported(tmp_path, *tasks))
    assert filled.answers == {"better": ["A"]}
    assert [(error.line, error.field) for error in bad] == [
        (1, "annotations"),
        (2, "data.key"),
        (3, "annotations"),
        (4, "annotations"),
        (4, "annotations"),
    ]
    assert "JSON-MIN" in bad[0].what
    assert "mood: no such question" in bad[2].what


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("id,choice\n1,Safe\n", "utf-8")
    with pytest.raises(DataError, match=r"e.csv: not JSON; expected the export of Label Studio"):
        read(tmp_path / "e.csv")
    (tmp_path / "export.json").write_text('{"data": 1}', "utf-8")
    with pytest.raises(DataError, match=r"export.json: expected a list of tasks"):
        read(tmp_path / "export.json")
