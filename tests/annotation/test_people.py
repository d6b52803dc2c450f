"""Records out to a tool, and what people entered there back as judgements."""

import json
from pathlib import Path
from typing import Any

import pytest

from equipoise.annotation.people import EXPORT, IMPORT, ExportConfig, ImportConfig
from equipoise.annotation.project import Item, read_project
from equipoise.data.check import FoundError
from equipoise.data.io import read_records, write_records
from equipoise.errors import ConfigError, DataError, RunStoppedError
from equipoise.lineage import Outcome, produce, read_manifest
from equipoise.records import Answer, Exchange, Judgement, Labels, Pair, Prompt

SAFE = Labels(is_safe=True, severity=0, categories=frozenset())
TICKED_SAFE = {"from_name": "is_safe_A", "type": "choices", "value": {"choices": ["Safe"]}}
"""In Label Studio."""


def pairs(folder: Path, count: int = 3) -> Path:
    records = [
        Pair(
            id=f"p{n}",
            prompt=f"question {n}",
            answers=(Answer(response=f"one {n}"), Answer(response=f"two {n}")),
            source="own",
            licence="MIT",
        )
        for n in range(count)
    ]
    write_records(folder / "pairs.jsonl", records)
    return folder / "pairs.jsonl"


def export(folder: Path, file: Path, **more: Any) -> Path:
    produce(folder / "project", EXPORT, ExportConfig(file=file, **more))
    return folder / "project"


def enter(project: Path, person: str, cards: dict[str, dict[str, list[str]]]) -> None:
    """Write what Potato keeps of a person: record's id -> question -> values."""
    keys = {item.id: item.key for item in read_project(project).items.values()}
    labels = {
        keys.get(record, record): [
            [{"schema": name, "name": value}, value] for name, values in answers.items() for value in values
        ]
        for record, answers in cards.items()
    }
    times = {key: {"total_time_ms": 9000} for key in labels}
    state = {
        "user_id": person,
        "instance_id_to_label_to_value": labels,
        "instance_id_to_behavioral_data": times,
    }
    folder = project / "answers" / person
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "user_state.json").write_text(json.dumps(state), "utf-8")


def shown(item: Item, first: str, second: str) -> tuple[str, str]:
    """What has to be chosen under A and B so that the record's answers get `first` and `second`."""
    return (second, first) if item.swapped else (first, second)


def take_in(project: Path, out: Path, **more: Any) -> Outcome:
    return produce(out, IMPORT, ImportConfig.model_validate({"project": project, **more}))


def test_a_filled_card_becomes_judgements_of_both_answers_and_of_the_pair(tmp_path: Path) -> None:
    project = export(tmp_path, pairs(tmp_path, 8))
    items = list(read_project(project).items.values())
    assert len({item.swapped for item in items}) == 2  # both orders are tried
    for item in items:
        safe_first = shown(item, "safe", "unsafe")
        worse = "A" if item.swapped else "B"
        answers = {
            **{f"is_safe_{letter}": [value] for letter, value in zip("AB", safe_first, strict=True)},
            f"severity_{worse}": ["3"],
            f"categories_{worse}": ["Violence", "Drugs"],
            "better": [worse],
            "safer": ["tie"],
        }
        enter(project, f"person-{item.id}", {item.id: answers})
    take_in(project, tmp_path / "j.jsonl")
    found = {(j.subject, j.annotator): j for j in read_records(tmp_path / "j.jsonl", Judgement)}
    assert len(found) == 3 * len(items)
    unsafe = Labels(is_safe=False, severity=3, categories=frozenset({"Violence", "Drugs"}))
    for item in items:
        person = f"person-{item.id}"
        assert found[f"{item.id}#0", person].labels == SAFE
        assert found[f"{item.id}#1", person].labels == unsafe
        pair = found[item.id, person]
        assert (pair.better, pair.safer, pair.overall, pair.labels) == (1, "tie", None, None)
        assert (pair.seconds, found[f"{item.id}#0", person].seconds) == (9.0, None)
        assert (pair.source, pair.licence, pair.label_origin) == ("own", "MIT", "human")
        assert pair.provenance.get("swapped", False) is item.swapped


def test_an_exchange_gives_one_judgement_and_an_overall_card_one_preference(tmp_path: Path) -> None:
    write_records(tmp_path / "e.jsonl", [Exchange(id="e", prompt="q", response="r")])
    project = export(tmp_path, tmp_path / "e.jsonl")
    enter(project, "ann", {"e": {"is_safe_A": ["safe"]}})
    take_in(project, tmp_path / "j.jsonl")
    (judgement,) = read_records(tmp_path / "j.jsonl", Judgement)
    assert (judgement.subject, judgement.labels, judgement.seconds) == ("e", SAFE, 9.0)

    (tmp_path / "second").mkdir()
    project = export(tmp_path / "second", pairs(tmp_path, 1), card="overall")
    enter(project, "ann", {"p0": {"overall": ["A"]}})
    take_in(project, tmp_path / "o.jsonl")
    (judgement,) = read_records(tmp_path / "o.jsonl", Judgement)
    (item,) = read_project(project).items.values()
    assert judgement.overall == (1 if item.swapped else 0)
    assert (judgement.better, judgement.safer) == (None, None)


def test_what_was_not_answered_is_none_and_every_gap_is_counted(tmp_path: Path) -> None:
    project = export(tmp_path, pairs(tmp_path))
    enter(project, "ann", {"p0": {"is_safe_A": ["unsafe"], "better": ["tie"]}, "p1": {}})
    notes = take_in(project, tmp_path / "j.jsonl").manifest.notes
    assert notes["incomplete"] == ["p0 by ann"]
    assert notes["skipped"] == ["p1 by ann"]
    assert notes["unanswered"] == ["p2"]
    assert notes["cards"] == {"ann": 1}
    found = {j.subject: j for j in read_records(tmp_path / "j.jsonl", Judgement)}
    (item,) = (item for item in read_project(project).items.values() if item.id == "p0")
    first, second = ("p0#1", "p0#0") if item.swapped else ("p0#0", "p0#1")
    assert found[first].labels == Labels(is_safe=False)
    assert found[first].provenance["missing"] == {"severity": "not answered", "categories": "not answered"}
    assert found[second].labels is None
    assert (found["p0"].better, found["p0"].safer) == ("tie", None)
    assert found["p0"].provenance["missing"] == {"safer": "not answered"}


def test_bad_rows_are_all_named_and_nothing_is_written_unless_told_to_skip(tmp_path: Path) -> None:
    project = export(tmp_path, pairs(tmp_path))
    good = {"better": ["A"]}
    cards = {"p0": {"better": ["C"]}, "no-such-key": good, "p1": good, "p2": {**good, "mood": ["good"]}}
    enter(project, "ann", cards)
    (project / "answers" / "bo").mkdir()
    (project / "answers" / "bo" / "user_state.json").write_text("{", "utf-8")
    with pytest.raises(FoundError) as caught:
        take_in(project, tmp_path / "j.jsonl")
    assert not (tmp_path / "j.jsonl").exists()
    found = [(f.line, f.id, f.field) for f in caught.value.findings]
    assert sorted(found) == [(1, "", "file"), (1, "p0", "better"), (2, "", "key"), (4, "p2", "mood")]
    outcome = take_in(project, tmp_path / "j.jsonl", on_bad="skip")
    bad: Any = outcome.manifest.notes["bad"]
    assert len(bad) == 4
    assert {j.subject for j in read_records(tmp_path / "j.jsonl", Judgement)} == {"p1", "p1#0", "p1#1"}


def test_new_answers_are_imported_again_and_the_same_are_not(tmp_path: Path) -> None:
    project = export(tmp_path, pairs(tmp_path))
    enter(project, "ann", {"p0": {"better": ["A"]}})
    assert not take_in(project, tmp_path / "j.jsonl").skipped
    assert take_in(project, tmp_path / "j.jsonl").skipped
    enter(project, "bo", {"p0": {"better": ["A"]}})
    with pytest.raises(ConfigError, match=r"holds another run"):
        take_in(project, tmp_path / "j.jsonl")
    outcome = produce(
        tmp_path / "j.jsonl", IMPORT, ImportConfig(project=project, answers=project / "answers"), force=True
    )
    assert outcome.manifest.notes["cards"] == {"ann": 1, "bo": 1}


def test_a_label_studio_export_becomes_judgements_and_a_second_card_of_a_person_is_named(
    tmp_path: Path,
) -> None:
    project = export(tmp_path, pairs(tmp_path, 2), to="label-studio")
    tasks = json.loads((project / "tasks.json").read_text("utf-8"))
    choice = {
        "from_name": "safer",
        "to_name": "prompt",
        "type": "choices",
        "value": {"choices": ["Answer A"]},
    }
    by_seven = {"completed_by": 7, "lead_time": 3.0, "result": [choice]}
    tasks[0]["annotations"] = [by_seven, {**by_seven, "completed_by": 8, "was_cancelled": True}]
    tasks[1]["annotations"] = [by_seven, by_seven]
    (tmp_path / "export.json").write_text(json.dumps(tasks), "utf-8")
    outcome = take_in(project, tmp_path / "j.jsonl", answers=tmp_path / "export.json", on_bad="skip")
    notes = outcome.manifest.notes
    assert notes["skipped"] == ["p0 by 8"]
    assert "annotator: '7' has filled this card already" in str(notes["bad"])
    found = [j for j in read_records(tmp_path / "j.jsonl", Judgement) if j.safer is not None]
    swapped = {item.id: item.swapped for item in read_project(project).items.values()}
    assert [(j.subject, j.annotator, j.seconds) for j in found] == [("p0", "7", 3.0), ("p1", "7", 3.0)]
    assert all(j.safer == (1 if swapped[j.subject] else 0) for j in found)


def test_cards_exported_for_potato_can_be_filled_in_label_studio(tmp_path: Path) -> None:
    write_records(tmp_path / "e.jsonl", [Exchange(id="e", prompt="q", response="r")])
    project = export(tmp_path, tmp_path / "e.jsonl")
    (tmp_path / "second").mkdir()
    other = export(tmp_path / "second", tmp_path / "e.jsonl", to="label-studio")
    tasks = json.loads((other / "tasks.json").read_text("utf-8"))
    tasks[0]["annotations"] = [{"completed_by": 7, "result": [TICKED_SAFE]}]
    (tmp_path / "export.json").write_text(json.dumps(tasks), "utf-8")
    take_in(project, tmp_path / "j.jsonl", answers=tmp_path / "export.json")
    (judgement,) = read_records(tmp_path / "j.jsonl", Judgement)
    assert (judgement.subject, judgement.labels) == ("e", SAFE)
    assert judgement.provenance["tool"] == "label-studio"


def test_an_import_waits_until_every_item_is_labelled_by_as_many_people_as_wanted(tmp_path: Path) -> None:
    write_records(tmp_path / "e.jsonl", [Exchange(id=f"e{n}", prompt="q", response="r") for n in range(3)])
    project = export(tmp_path, tmp_path / "e.jsonl")
    safe, begun = {"is_safe_A": ["safe"]}, {"is_safe_A": ["unsafe"], "severity_A": ["1"]}

    def expect_to_wait_with(ready: int) -> None:
        with pytest.raises(RunStoppedError) as stopped:
            take_in(project, tmp_path / "j.jsonl", people=2)
        assert str(stopped.value) == (
            f"{project}/answers: {ready} of 3 items are labelled by 2 people;"
            f" `equipoise annotate serve {project}` shows the pages"
        )
        assert not list(tmp_path.glob("j.jsonl*"))  # there is nothing to go on from

    expect_to_wait_with(0)
    enter(project, "ann", {f"e{n}": safe for n in range(3)})
    expect_to_wait_with(0)
    enter(project, "bo", {"e0": safe, "e1": begun, "e2": {}})
    expect_to_wait_with(1)
    enter(project, "cy", {"e1": safe, "e2": safe})
    notes = take_in(project, tmp_path / "j.jsonl", people=2).manifest.notes
    assert notes["cards"] == {"ann": 3, "bo": 2, "cy": 2}
    assert notes["incomplete"] == ["e1 by bo"]


def test_a_task_that_a_person_passes_by_is_not_waited_for(tmp_path: Path) -> None:
    write_records(tmp_path / "e.jsonl", [Exchange(id="e", prompt="q", response="r")])
    project = export(tmp_path, tmp_path / "e.jsonl", to="label-studio")
    tasks = json.loads((project / "tasks.json").read_text("utf-8"))
    tasks[0]["annotations"] = [{"completed_by": 7, "result": [TICKED_SAFE]}]
    path, out = tmp_path / "export.json", tmp_path / "j.jsonl"
    path.write_text(json.dumps(tasks), "utf-8")
    with pytest.raises(RunStoppedError, match=r"export\.json: 0 of 1 items are labelled by 2 people$"):
        take_in(project, out, answers=path, people=2)
    tasks[0]["annotations"].append({"completed_by": 8, "result": [], "was_cancelled": True})
    path.write_text(json.dumps(tasks), "utf-8")
    assert take_in(project, out, answers=path, people=2).manifest.notes["judgements"] == 1


def test_what_people_entered_outlives_an_export_that_is_forced_again_and_again(tmp_path: Path) -> None:
    config = ExportConfig(file=pairs(tmp_path))
    project = tmp_path / "project"
    produce(project, EXPORT, config)
    enter(project, "ann", {"p0": {"better": ["A"]}})
    (project / "serve.log").write_text("started", "utf-8")
    before = read_manifest(project / "manifest.json").outputs
    for _ in range(2):
        assert produce(project, EXPORT, config, force=True).manifest.outputs == before
    assert take_in(project, tmp_path / "j.jsonl").manifest.notes["cards"] == {"ann": 1}


def test_an_export_is_blind_unless_it_is_given_what_models_said(tmp_path: Path) -> None:
    said = [Judgement(id="j", subject="p1#0", annotator="judge", labels=SAFE)]
    write_records(tmp_path / "said.jsonl", said)
    file = pairs(tmp_path)
    blind = export(tmp_path, file)
    assert "judge" not in (blind / "potato.jsonl").read_text("utf-8")
    (tmp_path / "second").mkdir()
    with_judge = export(tmp_path / "second", file, suggestions=(tmp_path / "said.jsonl",))
    assert (with_judge / "potato.jsonl").read_text("utf-8").count("judge") == 1
    by = {item.id: item.suggested_by for item in read_project(with_judge).items.values()}
    assert by == {"p0": (), "p1": ("judge",), "p2": ()}
    write_records(tmp_path / "other.jsonl", [Judgement(id="j", subject="x", annotator="judge", labels=SAFE)])
    with pytest.raises(DataError, match=r"suggestions: no judgement is about a record of"):
        produce(tmp_path / "third", EXPORT, ExportConfig(file=file, suggestions=(tmp_path / "other.jsonl",)))


def test_an_export_is_a_run_with_licences_and_a_card(tmp_path: Path) -> None:
    outcome = produce(tmp_path / "project", EXPORT, ExportConfig(file=pairs(tmp_path)))
    assert outcome.manifest.licences == ["MIT"]
    assert "3 items of pairs.jsonl" in (tmp_path / "project" / "card.md").read_text("utf-8")


def test_what_cannot_be_labelled_is_refused(tmp_path: Path) -> None:
    write_records(tmp_path / "prompts.jsonl", [Prompt(id="a", prompt="q")])
    with pytest.raises(DataError, match=r"prompts.jsonl: prompts have no answer to judge"):
        export(tmp_path, tmp_path / "prompts.jsonl")
    with pytest.raises(ConfigError, match=r"people_per_item: only Potato takes it"):
        export(tmp_path, pairs(tmp_path), to="label-studio", people_per_item=2)
    project = export(tmp_path, pairs(tmp_path))
    with pytest.raises(DataError, match=r"project/answers: nobody has entered anything$"):
        take_in(project, tmp_path / "j.jsonl")
    with pytest.raises(DataError, match=r"pairs.jsonl: not JSON; expected the export of Label Studio"):
        take_in(project, tmp_path / "j.jsonl", answers=tmp_path / "pairs.jsonl")
    (tmp_path / "second").mkdir()
    other = export(tmp_path / "second", pairs(tmp_path), to="label-studio")
    with pytest.raises(DataError, match=r"project/answers: is a folder; expected the file that Label Studio"):
        take_in(other, tmp_path / "j.jsonl", answers=project / "answers")
