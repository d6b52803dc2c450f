"""Two people on the real Potato page, in a real browser: export, serve, fill, import."""

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from equipoise.annotation.environment import install_tool, potato_requirements
from equipoise.annotation.people import EXPORT, IMPORT, ExportConfig, ImportConfig
from equipoise.annotation.project import read_project
from equipoise.data.io import read_records, write_records
from equipoise.lineage import produce
from equipoise.models.builtin import cache_folder
from equipoise.records import Answer, Judgement, Labels, Message, Pair, text_of

pytestmark = pytest.mark.tools

SAFE = Labels(is_safe=True, severity=0, categories=frozenset())
LITTER = Labels(is_safe=False, severity=1, categories=frozenset({"Environmental Damage"}))
FRAUD = Labels(is_safe=False, severity=2, categories=frozenset({"Economic Crime", "White-Collar Crime"}))
MARKUP = "Use </script><script>document.title = 'taken'</script> & {{ 7 * 7 }}, <b>then</b>\n\n  1. wait &lt;"
CHAT = (Message(role="user", content="Hi"), Message(role="assistant", content="Hello."))


def pair(id_: str, prompt: Any, *answers: str) -> Pair:
    first, second = (Answer(response=text) for text in answers)
    return Pair(id=id_, prompt=prompt, answers=(first, second))


PAIRS = [
    pair("a/1#\u00fc", "Where do I put old paint?", MARKUP, ""),
    pair("b", CHAT, "word " * 600, "Short."),
    pair("c", "How do I bill twice?", "You do not.", "So."),
]
SAID = [
    Judgement(
        id="1",
        subject="c#1",
        annotator="judge-v1",
        labels=FRAUD,
        confidence=0.9,
        rationale="It <i>helps</i>.",
    ),
    Judgement(id="2", subject="c", annotator="judge-v1", safer=0),
]
Serve = Callable[[Path], AbstractContextManager[dict[str, Any]]]
Fill = Callable[[dict[str, Any]], dict[str, Any]]
Opinion = tuple[Labels, Labels, object, object]
OPINIONS: dict[str, dict[str, Opinion]] = {
    "Ann O'Hara": {
        "a/1#\u00fc": (SAFE, LITTER, 0, 0),
        "b": (SAFE, SAFE, 1, "tie"),
        "c": (SAFE, FRAUD, 1, 0),
    },
    "bo@example.org": {
        "a/1#\u00fc": (SAFE, SAFE, 0, "tie"),
        "b": (LITTER, SAFE, "tie", 1),
        "c": (SAFE, FRAUD, 0, 0),
    },
}


def on_the_card(opinion: Opinion, swapped: bool) -> dict[str, list[str]]:
    """What has to be clicked for an opinion on the record's answers."""
    answers: dict[str, list[str]] = {}
    for letter, index in zip("AB", (1, 0) if swapped else (0, 1), strict=True):
        labels = opinion[:2][index]
        assert isinstance(labels, Labels)
        answers[f"is_safe_{letter}"] = ["safe" if labels.is_safe else "unsafe"]
        if not labels.is_safe:
            answers[f"severity_{letter}"] = [str(labels.severity)]
            answers[f"categories_{letter}"] = sorted(labels.categories or ())
    for name, choice in zip(("better", "safer"), opinion[2:], strict=True):
        answers[name] = ["tie" if choice == "tie" else "A" if (choice == 0) != swapped else "B"]
    return answers


def test_two_people_fill_the_cards_and_their_answers_come_back_exactly(
    tmp_path: Path, serve: Serve, fill_cards: Fill
) -> None:
    write_records(tmp_path / "pairs.jsonl", PAIRS)
    write_records(tmp_path / "said.jsonl", SAID)
    project = tmp_path / "project"
    config = ExportConfig(file=tmp_path / "pairs.jsonl", suggestions=(tmp_path / "said.jsonl",))
    produce(project, EXPORT, config)
    items = {item.id: item for item in read_project(project).items.values()}
    python = install_tool(cache_folder(), "potato", potato_requirements())
    check = [python, "-m", "potato", "validate", "potato.yaml", "--strict"]
    valid = subprocess.run(check, cwd=project, capture_output=True, text=True, check=False)
    assert valid.returncode == 0, valid.stdout

    with serve(project) as server:
        for person, opinions in OPINIONS.items():
            cards = {
                text_of(pair.prompt): on_the_card(opinions[pair.id], items[pair.id].swapped) for pair in PAIRS
            }
            changed = {"is_safe_A": ["unsafe"], "severity_A": ["3"], "categories_A": ["Violence"]}
            hides = {prompt: changed for prompt, card in cards.items() if card["is_safe_A"] == ["safe"]}
            task = {"url": server["url"], "person": person, "cards": cards, "changes": hides}
            task["picture"] = str(tmp_path / "card.png")
            expect_an_honest_page(fill_cards(task), {name: item.swapped for name, item in items.items()})
    with pytest.raises(ProcessLookupError):
        os.kill(server["pid"], 0)
    assert not any(word in (project / "serve.log").read_text("utf-8") for word in ("paint", "bill twice"))

    expect_potatos_own_export(python, project, tmp_path / "own")
    config_in = ImportConfig.model_validate({"project": project})
    outcome = produce(tmp_path / "judgements.jsonl", IMPORT, config_in)
    assert outcome.manifest.notes["cards"] == {"Ann O'Hara": 3, "bo@example.org": 3}
    assert [outcome.manifest.notes[name] for name in ("bad", "incomplete", "skipped", "unanswered")] == [
        []
    ] * 4
    found = {(j.subject, j.annotator): j for j in read_records(tmp_path / "judgements.jsonl", Judgement)}
    assert len(found) == 18
    for person, opinions in OPINIONS.items():
        for subject, (first, second, better, safer) in opinions.items():
            assert found[f"{subject}#0", person].labels == first
            assert found[f"{subject}#1", person].labels == second
            pair = found[subject, person]
            assert (pair.better, pair.safer) == (better, safer)
            assert pair.seconds is not None
            assert 0 < pair.seconds < 1000
            assert pair.provenance.get("suggested_by") == (["judge-v1"] if subject == "c" else None)


def expect_an_honest_page(seen: dict[str, Any], swapped: dict[str, bool]) -> None:
    """Texts as they are, nothing from another host, nothing skipped, nothing asked that does not apply."""
    for pair in PAIRS:
        prompt, first, second, said = seen["pages"][text_of(pair.prompt)]
        assert prompt == text_of(pair.prompt)
        shown = (second, first) if swapped[pair.id] else (first, second)
        assert shown == tuple(answer.response or "(empty)" for answer in pair.answers)
        assert said.startswith("judge-v1 (confidence 0.90)\n") if pair.id == "c" else said == "nothing"
    assert seen["title"] == "Harm, and two preferences"  # the markup in a text did not run
    assert seen["hosts"] == ["127.0.0.1"]
    assert seen["refused"] is True
    assert sorted(seen["hidden"]) == ["categories_A", "categories_B", "severity_A", "severity_B"]
    assert "Complete" in seen["end"]


def expect_potatos_own_export(python: Path, project: Path, out: Path) -> None:
    """Potato's exporter says of everyone what was clicked."""
    command = [python, "-m", "potato.export", "--config", "potato.yaml", "--format", "jsonl", "--output", out]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for path in out.glob("*.jsonl") for line in path.read_text("utf-8").splitlines()]
    items = read_project(project).items
    assert len(rows) == 6
    for row in rows:
        item = items[row["instance_id"]]
        clicked = on_the_card(OPINIONS[row["user_id"]][item.id], item.swapped)
        for name in ("is_safe_A", "is_safe_B", "better", "safer"):
            assert list(row["labels"][name]) == clicked[name]
