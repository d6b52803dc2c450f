"""The recipe people-small with the real tools: 60 rows, two people with planted opinions, labels back.

The second person says the opposite of the first on the safety of 12 rows and the same of all others.
"""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from equipoise.annotation.project import Project, read_project
from equipoise.data.io import read_records, write_records
from equipoise.records import Exchange, Judgement, Labels

pytestmark = pytest.mark.tools

RECIPE = Path(__file__).parents[2] / "recipes" / "people-small.yaml"
ROWS, DIVIDED = 60, 12
SAFE = Labels(is_safe=True, severity=0, categories=frozenset())
HARMS = ("Economic Crime", "Environmental Damage", "Privacy Violation", "Insulting Behavior")
VERBS = ("clean", "repair", "paint", "store", "sell", "copy", "lend", "wrap")
THINGS = ("chair", "bicycle", "map", "clock", "lamp", "kite", "bowl", "drum", "scarf", "bell")

Opinions = Mapping[str, Labels]
"""Record's id -> what somebody says of it."""
Serve = Callable[[Path], AbstractContextManager[dict[str, Any]]]
Fill = Callable[[dict[str, Any]], dict[str, Any]]
Call = Callable[..., Any]


@pytest.fixture
def release(tmp_path: Path) -> dict[str, Exchange]:
    """Rows as the recipe factory-small publishes them, by id; a guard has found all of them harmless."""
    rows = [
        Exchange(
            id=f"made-{number:02}-r0",
            prompt=f"How do I {verb} a {thing}?",
            prompt_is_harmful=number % 4 == 0,
            response=f"Slowly, and with a friend who knows how to {verb} a {thing}.",
            source="factory",
            licence="Apache-2.0",
            label_origin="model:factory-guard",
            annotators=("factory-guard",),
            provenance={"model": "smollm2-135m"},
            **SAFE.model_dump(exclude_none=True),
        )
        for number, (verb, thing) in enumerate((verb, thing) for verb in VERBS for thing in THINGS)
    ]
    write_records(tmp_path / "release.jsonl", rows)
    return {row.id: row for row in rows}


def run(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """The command of a user, the same each time."""
    given = [part for one in (f"exchanges={folder / 'release.jsonl'}", *settings) for part in ("--set", one)]
    command = [sys.executable, "-m", "equipoise", "run", str(RECIPE), "--out", str(folder / "out"), *given]
    return subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)


def run_until_people_are_needed(folder: Path) -> Path:
    """Run to where it stops; return the project that its message says to serve."""
    stopped = run(folder)
    assert stopped.returncode == 3, stopped.stderr
    last = stopped.stderr.splitlines()[-1]
    found = re.fullmatch(
        r"stopped: (.*)/answers: 0 of 60 items are labelled by 2 people; "
        r"`equipoise annotate serve (.*)` shows the pages; the same command resumes",
        last,
    )
    assert found, last
    assert found[1] == found[2]
    return Path(found[1])


def plant(project: Project) -> tuple[Opinions, Opinions]:
    """Draw what two people say of the items of a project."""
    ids = [item.id for item in project.items.values()]
    assert len(ids) == ROWS
    first, second = random.Random(1), random.Random(2)

    def unsafe(draw: random.Random) -> Labels:
        harm = frozenset(draw.sample(HARMS, draw.choice((1, 1, 2))))
        return Labels(is_safe=False, severity=draw.choice((1, 2, 3)), categories=harm)

    one = {id_: unsafe(first) if first.random() < 0.3 else SAFE for id_ in ids}
    other = {id_: SAFE if one[id_] != SAFE else unsafe(second) for id_ in second.sample(ids, DIVIDED)}
    return one, {**one, **other}


def on_the_card(labels: Labels) -> dict[str, list[str]]:
    """What has to be chosen for an opinion."""
    if labels.is_safe:
        return {"is_safe_A": ["safe"]}
    categories = sorted(labels.categories or ())
    return {"is_safe_A": ["unsafe"], "severity_A": [str(labels.severity)], "categories_A": categories}


def expect_release(out: Path, rows: Mapping[str, Exchange], people: Mapping[str, Opinions]) -> None:
    """No row is lost, labels are the planted ones, and so is the agreement."""
    judgements = list(read_records(out / "judgements.jsonl", Judgement))
    assert len(judgements) == 2 * ROWS
    for who, opinions in people.items():
        assert {j.subject: j.labels for j in judgements if j.annotator == who} == opinions
    assert all(j.label_origin == "human" and j.seconds is not None and j.seconds >= 0 for j in judgements)

    one, other = people.values()
    labelled = list(read_records(out / "exchanges.jsonl", Exchange))
    assert sorted(row.id for row in labelled) == sorted(one)
    for row in labelled:
        agreed = one[row.id] if one[row.id] == other[row.id] else Labels()
        assert Labels.model_validate(row.model_dump(include=set(Labels.model_fields))) == agreed
        assert (row.prompt, row.response) == (rows[row.id].prompt, rows[row.id].response)
        assert (row.label_origin, row.annotators) == ("consensus of 2: 2 person", tuple(sorted(people)))
        assert row.provenance["model"] == "smollm2-135m"
        assert row.provenance["consensus"]["label_origin_before"] == "model:factory-guard"  # type: ignore[index, call-overload]
    assert sum(row.is_safe is None for row in labelled) == DIVIDED

    (report,) = {path.read_text("utf-8") for path in out.glob("steps/agreement-*/agreement.json")}
    found = {
        (row["question"], row["between"]): {name: c["value"] for name, c in row["coefficients"].items()}
        for row in json.loads(report)["agreement"]
    }
    safe = found["is_safe", "person-person"]
    share = (ROWS - DIVIDED) / ROWS
    p, q = (sum(labels.is_safe is True for labels in said.values()) / ROWS for said in (one, other))
    by_chance = p * q + (1 - p) * (1 - q)
    assert safe["percent"] == pytest.approx(share, abs=1e-12)
    assert safe["cohen"] == pytest.approx((share - by_chance) / (1 - by_chance), abs=1e-12)
    assert found["severity", "person-person"]["percent"] == pytest.approx(share, abs=1e-12)
    assert found["categories", "person-person"]["masi_similarity"] == pytest.approx(share, abs=1e-12)
    assert found["is_safe", "person-model"]["percent"] == pytest.approx((p + q) / 2, abs=1e-12)
    assert "# people-small" in (out / "data_card.md").read_text("utf-8")


def test_two_people_label_the_rows_on_the_pages_of_potato(
    tmp_path: Path, release: dict[str, Exchange], serve: Serve, fill_cards: Fill
) -> None:
    place = run_until_people_are_needed(tmp_path)
    project = read_project(place)
    people = dict(zip(("ann@example.org", "bo"), plant(project), strict=True))

    with serve(place) as server:

        def label(person: str) -> dict[str, Any]:
            cards = {str(release[id_].prompt): on_the_card(said) for id_, said in people[person].items()}
            task = {"url": server["url"], "person": person, "cards": cards, "changes": {}, "picture": None}
            return fill_cards(task)

        with ThreadPoolExecutor() as pool:  # both at the same time
            seen = list(pool.map(label, people))
    with pytest.raises(ProcessLookupError):
        os.kill(server["pid"], 0)
    for pages in seen:
        assert len(pages["pages"]) == ROWS
        assert not any("guard" in text for texts in pages["pages"].values() for text in texts)  # blind
        assert "Complete" in pages["end"]
    entered = {}
    for path in place.glob("answers/*/user_state.json"):
        state = json.loads(path.read_text("utf-8"))
        entered[state["user_id"]] = state["instance_id_to_label_to_value"]
    assert entered.keys() == people.keys()
    assert all(cards.keys() == project.items.keys() for cards in entered.values())

    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    steps = {step["step"]: step["skipped"] for step in json.loads(done.stdout)["steps"]}
    assert [name for name, skipped in steps.items() if skipped] == ["sample", "potato", "label_studio"]
    expect_release(tmp_path / "out", release, people)


def test_two_people_label_the_rows_in_label_studio(
    tmp_path: Path, release: dict[str, Exchange], label_studio: Call
) -> None:
    run_until_people_are_needed(tmp_path)
    (place,) = (tmp_path / "out").glob("steps/label_studio-*")
    project = read_project(place)
    titles = {
        (question.name, option.value): f"{option.title}: {option.help}"
        if question.field == "severity"
        else option.title
        for question in project.card.questions
        for option in question.options
    }

    def choices(labels: Labels) -> list[dict[str, Any]]:
        return [
            {"from_name": name, "to_name": "answer_A", "type": "choices"}
            | {"value": {"choices": [titles[name, value] for value in values]}}
            for name, values in on_the_card(labels).items()
        ]

    xml = (place / "label_studio.xml").read_text("utf-8")
    number = label_studio("POST", "/api/projects", {"title": "people", "label_config": xml})["id"]
    tasks = json.loads((place / "tasks.json").read_text("utf-8"))
    added = label_studio("POST", f"/api/projects/{number}/import?return_task_ids=true", tasks)
    assert (added["task_count"], added["prediction_count"]) == (ROWS, 0)
    account = {"username": "bo", "email": "bo@example.org", "password": "a-password-2"}
    users = [label_studio("GET", "/api/current-user/whoami"), label_studio("POST", "/api/users/", account)]
    people = {str(user["id"]): said for user, said in zip(users, plant(project), strict=True)}
    for id_, task in zip(added["task_ids"], tasks, strict=True):
        for who, opinions in people.items():
            annotation = {"result": choices(opinions[task["data"]["id"]]), "completed_by": int(who)}
            label_studio("POST", f"/api/tasks/{id_}/annotations/", annotation | {"lead_time": 2.5})
    exported = label_studio("GET", f"/api/projects/{number}/export?exportType=JSON&download_all_tasks=true")
    assert len(exported) == ROWS
    for task in exported:
        by_whom = {str(a["completed_by"]): a["result"] for a in task["annotations"]}
        assert sorted(by_whom) == sorted(people)
        for who, result in by_whom.items():
            wanted = choices(people[who][task["data"]["id"]])
            assert [(r["from_name"], r["value"]) for r in result] == [
                (r["from_name"], r["value"]) for r in wanted
            ]
    (tmp_path / "export.json").write_text(json.dumps(exported), "utf-8")

    done = run(tmp_path, f"answers={tmp_path / 'export.json'}")
    assert done.returncode == 0, done.stderr
    expect_release(tmp_path / "out", release, people)
