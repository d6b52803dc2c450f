"""A round trip through the real Label Studio: our configuration and tasks in, its export back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.annotation.people import EXPORT, IMPORT, ExportConfig, ImportConfig
from equipoise.annotation.project import read_project
from equipoise.data.io import read_records, write_records
from equipoise.lineage import produce
from equipoise.records import Answer, Judgement, Labels, Pair

pytestmark = pytest.mark.tools

FRAUD = Labels(is_safe=False, severity=2, categories=frozenset({"Economic Crime"}))
Call = Callable[..., Any]


def choice(name: str, about: str, *titles: str) -> dict[str, Any]:
    return {"from_name": name, "to_name": about, "type": "choices", "value": {"choices": list(titles)}}


def test_what_is_entered_comes_back_as_judgements(tmp_path: Path, label_studio: Call) -> None:
    pairs = [
        Pair(id=f"p{n}", prompt=f"question {n}", answers=(Answer(response="one"), Answer(response="two")))
        for n in range(3)
    ]
    said = [Judgement(id="j", subject="p0#0", annotator="judge-v1", labels=FRAUD, confidence=0.75)]
    write_records(tmp_path / "pairs.jsonl", pairs)
    write_records(tmp_path / "said.jsonl", said)
    project, said_in = tmp_path / "project", (tmp_path / "said.jsonl",)
    settings = ExportConfig(file=tmp_path / "pairs.jsonl", to="label-studio", suggestions=said_in)
    produce(project, EXPORT, settings)
    items = {item.id: item for item in read_project(project).items.values()}
    first, second = ("B", "A") if items["p0"].swapped else ("A", "B")
    severity = read_project(project).card.question("severity_A").options[1]

    xml = (project / "label_studio.xml").read_text("utf-8")
    number = label_studio("POST", "/api/projects", {"title": "cards", "label_config": xml})["id"]
    tasks = json.loads((project / "tasks.json").read_text("utf-8"))
    added = label_studio("POST", f"/api/projects/{number}/import?return_task_ids=true", tasks)
    assert (added["task_count"], added["prediction_count"]) == (3, 1)
    one, two, _ = added["task_ids"]
    result = [
        choice(f"is_safe_{first}", f"answer_{first}", "Unsafe"),
        choice(f"severity_{first}", f"answer_{first}", f"{severity.title}: {severity.help}"),
        choice(f"categories_{first}", f"answer_{first}", "Economic Crime"),
        choice(f"is_safe_{second}", f"answer_{second}", "Safe"),
        choice("better", "prompt", "Both the same"),
        choice("safer", "prompt", f"Answer {second}"),
    ]
    label_studio("POST", f"/api/tasks/{one}/annotations/", {"result": result, "lead_time": 12.5})
    label_studio("POST", f"/api/tasks/{two}/annotations/", {"result": [], "was_cancelled": True})
    place = f"/api/projects/{number}/export?exportType=JSON&download_all_tasks=true"
    exported = label_studio("GET", place)
    assert all(isinstance(p, int) for task in exported for p in task["predictions"])  # numbers, no labels
    (tmp_path / "export.json").write_text(json.dumps(exported), "utf-8")

    config = ImportConfig(project=project, answers=tmp_path / "export.json")
    notes = produce(tmp_path / "judgements.jsonl", IMPORT, config).manifest.notes
    assert (notes["bad"], notes["incomplete"]) == ([], [])
    assert len(notes["skipped"]) == 1  # type: ignore[arg-type]
    assert notes["unanswered"] == ["p2"]
    found = {j.subject: j for j in read_records(tmp_path / "judgements.jsonl", Judgement)}
    assert found["p0#0"].labels == FRAUD
    assert found["p0#1"].labels == Labels(is_safe=True, severity=0, categories=frozenset())
    assert (found["p0"].better, found["p0"].safer, found["p0"].seconds) == ("tie", 1, 12.5)
    assert found["p0"].provenance["suggested_by"] == ["judge-v1"]
    assert set(found) == {"p0", "p0#0", "p0#1"}
