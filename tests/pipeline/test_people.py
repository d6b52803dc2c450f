"""The recipe people-small, from a release to labels of people; the tools' files are written by hand here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.annotation.project import read_project
from equipoise.data.io import read_records, write_records
from equipoise.errors import RunStoppedError
from equipoise.lineage import read_manifest
from equipoise.pipeline.recipe import Recipe, load_recipe
from equipoise.pipeline.run import run_recipe
from equipoise.records import Exchange, Judgement

RECIPE = Path(__file__).parents[2] / "recipes" / "people-small.yaml"
Load = Callable[..., Recipe]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load the recipe for 6 of 12 rows that a guard finds harmless."""
    shared: dict[str, Any] = {"label_origin": "model:guard", "annotators": ("guard",), "licence": "MIT"}
    rows = [
        Exchange(id=f"e{n}", prompt=f"question {n}", response="bread", is_safe=True, **shared)
        for n in range(12)
    ]
    write_records(tmp_path / "release.jsonl", rows)
    return lambda *more: load_recipe(RECIPE, [f"exchanges={tmp_path / 'release.jsonl'}", "rows=6", *more])


def step_of(out: Path, name: str) -> Path:
    (place,) = out.glob(f"steps/{name}-*")
    return place


def enter(project: Path, person: str, verdicts: dict[str, str]) -> None:
    """Write what Potato keeps of a person: record's id -> safe or unsafe, which is severe and violent."""
    keys = {item.id: item.key for item in read_project(project).items.values()}
    more = {"severity_A": "3", "categories_A": "Violence"}
    labels = {
        keys[record]: [
            [{"schema": name, "name": value}, value]
            for name, value in ({"is_safe_A": verdict} | (more if verdict == "unsafe" else {})).items()
        ]
        for record, verdict in verdicts.items()
    }
    folder = project / "answers" / person
    folder.mkdir(exist_ok=True)
    state = {"user_id": person, "instance_id_to_label_to_value": labels}
    (folder / "user_state.json").write_text(json.dumps(state), "utf-8")


def test_it_waits_for_people_and_goes_on_when_all_is_labelled(load: Load, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def expect_to_wait_with(ready: int) -> None:
        with pytest.raises(
            RunStoppedError, match=rf"answers: {ready} of 6 items are labelled by 2 people; `"
        ):
            run_recipe(load(), out)
        names = {place.name.rpartition("-")[0] for place in out.glob("steps/*")}
        assert names == {"sample", "potato", "label_studio"}
        assert not (out / "manifest.json").exists()

    expect_to_wait_with(0)
    project = step_of(out, "potato")
    ids = [item.id for item in read_project(project).items.values()]
    assert "guard" not in (project / "potato.jsonl").read_text("utf-8")
    enter(project, "ann", dict.fromkeys(ids, "safe"))
    expect_to_wait_with(0)
    enter(project, "bo", dict.fromkeys(ids[:4], "safe"))
    expect_to_wait_with(4)
    enter(project, "bo", dict.fromkeys(ids[:4], "safe") | dict.fromkeys(ids[4:], "unsafe"))
    done = {step.name: step for step in run_recipe(load(), out)}

    assert [name for name, step in done.items() if step.skipped] == ["sample", "potato", "label_studio"]
    judgements = list(read_records(out / "judgements.jsonl", Judgement))
    assert sorted((j.subject, j.annotator) for j in judgements) == sorted(
        (id_, person) for id_ in ids for person in ("ann", "bo")
    )
    found = {row.id: row for row in read_records(out / "exchanges.jsonl", Exchange)}
    assert list(found) == ids
    assert [found[id_].is_safe for id_ in ids] == [True] * 4 + [None] * 2
    assert {row.label_origin for row in found.values()} == {"consensus of 2: 2 person"}
    assert {row.provenance["consensus"]["label_origin_before"] for row in found.values()} == {"model:guard"}  # type: ignore[index, call-overload]
    agreement = json.loads((step_of(out, "agreement") / "agreement.json").read_text("utf-8"))["agreement"]
    percent = {
        row["between"]: row["coefficients"]["percent"]["value"]
        for row in agreement
        if row["question"] == "is_safe"
    }
    assert percent["person-person"] == pytest.approx(4 / 6)
    assert percent["person-model"] == pytest.approx(10 / 12)
    assert read_manifest(out / "manifest.json").licences == ["MIT"]

    with pytest.raises(RunStoppedError, match="0 of 6 items are labelled by 3 people"):
        run_recipe(load("people=3"), out)
    enter(project, "cy", dict.fromkeys(ids, "safe"))  # on the same pages
    run_recipe(load("people=3"), out)
    assert all(row.is_safe for row in read_records(out / "exchanges.jsonl", Exchange))


def test_it_takes_what_label_studio_exported_instead(load: Load, tmp_path: Path) -> None:
    out, exported = tmp_path / "out", tmp_path / "export.json"
    with pytest.raises(RunStoppedError):
        run_recipe(load(), out)
    tasks = json.loads((step_of(out, "label_studio") / "tasks.json").read_text("utf-8"))
    safe = {"from_name": "is_safe_A", "type": "choices", "value": {"choices": ["Safe"]}}
    for task in tasks:
        task["annotations"] = [{"completed_by": number, "result": [safe]} for number in (1, 2)]
    tasks[0]["annotations"].pop()
    exported.write_text(json.dumps(tasks), "utf-8")
    with pytest.raises(RunStoppedError, match=r"export\.json: 5 of 6 items are labelled by 2 people$"):
        run_recipe(load(f"answers={exported}"), out)
    run_recipe(load(f"answers={exported}", "people=1"), out)
    judgements = list(read_records(out / "judgements.jsonl", Judgement))
    assert len(judgements) == 11
    assert {j.provenance["tool"] for j in judgements} == {"label-studio"}
    assert len(list(read_records(out / "exchanges.jsonl", Exchange))) == 6
