"""Potato's files: what its server is given, and what people's answers become. The real page: tests/tools."""

import html
import json
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from equipoise.annotation.card import WARNING, CardKind, make_card
from equipoise.annotation.potato import potato_settings, read_potato, write_potato
from equipoise.annotation.project import make_pages
from equipoise.data.rows import LineError
from equipoise.records import Answer, Judgement, Labels, Pair
from equipoise.taxonomy import load_taxonomy

HOSTILE = "</script><script>alert(1)</script> {{ 7 * 7 }} <b>bold</b> & \u2028 done"


def settings(kind: CardKind = "dual", **more: Any) -> dict[str, Any]:
    card = make_card(kind, load_taxonomy("pku19"))
    return potato_settings(card, **{"has_suggestions": False, "people_per_item": None, **more})


def state(person: str, labels: object, milliseconds: int | None = 4500) -> dict[str, Any]:
    """What Potato 2.12.1 keeps of a person, as far as it is read."""
    return {
        "user_id": person,
        "instance_id_to_label_to_value": {"k1": labels},
        "instance_id_to_behavioral_data": {"k1": {"total_time_ms": milliseconds}} if milliseconds else {},
    }


def saved(folder: Path, person: str, what: object) -> Path:
    (folder / person).mkdir(parents=True)
    path = folder / person / "user_state.json"
    path.write_text(what if isinstance(what, str) else json.dumps(what), "utf-8")
    return path


def test_every_question_is_asked_and_required_and_severity_shows_only_for_unsafe() -> None:
    schemes = {scheme["name"]: scheme for scheme in settings()["annotation_schemes"]}
    assert len(schemes) == 8
    assert all(scheme["label_requirement"] == {"required": True} for scheme in schemes.values())
    kinds = {name for name, scheme in schemes.items() if scheme["annotation_type"] == "multiselect"}
    assert kinds == {"categories_A", "categories_B"}
    shown_when = [{"schema": "is_safe_B", "operator": "equals", "value": "unsafe"}]
    assert schemes["severity_B"]["display_logic"] == {"show_when": shown_when}
    assert "display_logic" not in schemes["better"]
    assert "layout" not in settings()  # it takes the forms out of what display_logic hides


def test_the_page_warns_and_cuts_no_text() -> None:
    assert WARNING in settings()["annotation_instructions"]
    assert settings()["instance_display"]["resizable"] is False


def test_what_models_said_has_a_field_only_where_it_is_shown() -> None:
    def keys(**more: Any) -> list[str]:
        return [field["key"] for field in settings(**more)["instance_display"]["fields"]]

    assert keys() == ["prompt", "answer_A", "answer_B"]
    assert keys(has_suggestions=True) == ["prompt", "answer_A", "answer_B", "suggestions"]
    assert keys(kind="exchange") == ["prompt", "answer_A"]


def test_no_text_can_break_out_of_the_page_and_none_is_lost(tmp_path: Path) -> None:
    card = make_card("dual", load_taxonomy("pku19"))
    answers = (Answer(response=HOSTILE), Answer(response=""))
    labels = Labels(is_safe=True)
    said = Judgement(id="j", subject="p#0", annotator="<i>judge</i>", labels=labels, rationale=HOSTILE)
    pages = make_pages(card, [Pair(id="p", prompt=HOSTILE, answers=answers)], [said])
    write_potato(tmp_path, card, pages)
    text = (tmp_path / "potato.jsonl").read_text("utf-8")
    assert not re.search(r"[<>]|\{\{", text)
    row = json.loads(text)
    letter = "B" if pages[0].item.swapped else "A"
    assert html.unescape(row["prompt"]) == HOSTILE
    assert html.unescape(row[f"answer_{letter}"]) == HOSTILE
    assert row["key"] == pages[0].item.key
    written = YAML(typ="safe").load((tmp_path / "potato.yaml").read_text("utf-8"))
    assert written == potato_settings(card, has_suggestions=True, people_per_item=None)
    assert (tmp_path / written["base_css"]).is_file()


def test_answers_are_read_with_person_key_and_time(tmp_path: Path) -> None:
    labels = [
        [{"schema": "categories_A", "name": "Drugs"}, "Drugs"],
        [{"schema": "is_safe_A", "name": "unsafe"}, "unsafe"],
        [{"schema": "categories_A", "name": "Violence"}, "Violence"],
        [{"schema": "categories_A", "name": "Cybercrime"}, False],
    ]
    saved(tmp_path, "bo", state("bo", labels))
    saved(tmp_path, "Ann O'Hara", state("Ann O'Hara", [], None))
    bad: list[LineError] = []
    first, second = read_potato(tmp_path, bad.append)
    assert (first.annotator, first.answers, first.seconds) == ("Ann O'Hara", {}, None)
    assert (second.annotator, second.key, second.seconds) == ("bo", "k1", 4.5)
    assert second.answers == {"categories_A": ["Drugs", "Violence"], "is_safe_A": ["unsafe"]}
    assert bad == []


def test_a_file_or_an_item_that_potato_did_not_write_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    saved(tmp_path, "a", '{"user_id": "a", "instance')
    saved(tmp_path, "b", [1, 2])
    saved(tmp_path, "c", state("c", "is_safe_A"))
    saved(tmp_path, "d", state("d", [[{"schema": "better", "name": "tie"}, "tie"]]))
    bad: list[LineError] = []
    (filled,) = read_potato(tmp_path, bad.append)
    assert filled.answers == {"better": ["tie"]}
    assert [(Path(e.path).parent.name, e.line, e.field) for e in bad] == [
        ("a", 1, "file"),
        ("b", 1, "file"),
        ("c", 1, "labels"),
    ]
