"""Items of a project: order of the answers, keys, suggestions, and the folder's round trip."""

import json
from pathlib import Path
from typing import Any

import pytest

from equipoise.annotation.card import make_card
from equipoise.annotation.filled import Filled, judgements_of
from equipoise.annotation.project import Page, card_of, make_pages, read_project, write_project
from equipoise.annotation.suggest import suggestion_text
from equipoise.data.io import Placed
from equipoise.errors import ConfigError, DataError
from equipoise.records import Answer, Exchange, Judgement, Labels, Pair
from equipoise.taxonomy import load_taxonomy

DUAL = make_card("dual", load_taxonomy("pku19"))
HARMFUL = Labels(is_safe=False, severity=1, categories=frozenset({"Drugs"}))


def pair(number: int, **more: Any) -> Pair:
    answers = (Answer(response="first"), Answer(response="second"))
    return Pair(id=f"p{number}", prompt=f"question {number}", answers=answers, **more)


def placed(*records: Pair | Exchange) -> list[Placed[Exchange | Pair]]:
    return [Placed("in.jsonl", line, record) for line, record in enumerate(records, start=1)]


def shown_swapped(swapped: bool, said: list[Judgement] | None = None) -> Page:
    pages = (make_pages(DUAL, [pair(0)], said or [], seed=seed)[0] for seed in range(64))
    return next(page for page in pages if page.item.swapped == swapped)


def test_which_answer_comes_first_is_drawn_evenly_and_the_same_for_a_seed() -> None:
    pairs = [pair(number) for number in range(400)]
    pages = make_pages(DUAL, pairs, seed=3)
    assert 160 < sum(page.item.swapped for page in pages) < 240  # 4 standard deviations about 200
    assert pages == make_pages(DUAL, pairs, seed=3)
    assert pages != make_pages(DUAL, pairs, seed=4)
    for page in pages:
        assert page.responses == (("second", "first") if page.item.swapped else ("first", "second"))


def test_a_key_changes_with_whatever_the_page_shows() -> None:
    page = make_pages(DUAL, [pair(0)])[0]
    other = make_pages(DUAL, [pair(0).model_copy(update={"prompt": "another question"})])[0]
    overall = make_pages(make_card("overall", load_taxonomy("pku19")), [pair(0)])[0]
    keys = {page.item.key, other.item.key, overall.item.key, shown_swapped(not page.item.swapped).item.key}
    assert len(keys) == 4


@pytest.mark.parametrize("swapped", [False, True])
def test_a_suggestion_taken_as_it_is_gives_the_judgements_it_was_made_of(swapped: bool) -> None:
    def said(subject: str, **fields: Any) -> Judgement:
        return Judgement(id=subject, subject=subject, annotator="judge", **fields)

    safe = Labels(is_safe=True, severity=0, categories=frozenset())
    given = [
        said("p0#0", labels=HARMFUL, confidence=0.9, rationale="It sells."),
        said("p0#1", labels=safe, confidence=0.7),
        said("p0", better=0, safer=1),
    ]
    page = shown_swapped(swapped, given)
    (suggestion,) = page.suggestions
    filled = Filled("f", 1, "judge", page.item.key, suggestion.answers)
    found = {j.subject: j for j in judgements_of(DUAL, page.item, filled, "potato")}
    assert found["p0#0"].labels == HARMFUL
    assert found["p0#1"].labels == safe
    assert (found["p0"].better, found["p0"].safer, found["p0"].overall) == (0, 1, None)
    assert found["p0"].provenance["suggested_by"] == ["judge"]
    assert suggestion.confidence == 0.7
    first, second = ("B", "A") if swapped else ("A", "B")
    lines = suggestion_text(DUAL, suggestion).splitlines()
    assert lines[0] == "judge (confidence 0.70)"
    assert {f"Answer {first}: Unsafe; Minor; Drugs", f"Answer {second}: Safe"} <= set(lines)
    assert {f"Helps more: Answer {first}", f"Harms less: Answer {second}", "It sells."} <= set(lines)


def test_a_suggested_category_of_another_taxonomy_is_named() -> None:
    labels = Labels(is_safe=False, categories=frozenset({"Sorcery"}))
    said = Judgement(id="x", subject="p0#0", annotator="judge", labels=labels)
    with pytest.raises(DataError, match=r"categories_.: no option 'Sorcery'"):
        make_pages(DUAL, [pair(0)], [said])


def test_a_card_is_told_by_the_records() -> None:
    exchange = Exchange(id="e", prompt="q", response="r")
    assert card_of(placed(exchange), "dual").kind == "exchange"
    assert card_of(placed(pair(0)), "overall").kind == "overall"
    with pytest.raises(ConfigError, match=r"card: 'overall' compares two answers, got exchanges"):
        card_of(placed(exchange), "overall")
    with pytest.raises(DataError, match=r"in.jsonl:2: id: 'p0' stands on line 1 already"):
        card_of(placed(pair(0), pair(0)), "dual")
    with pytest.raises(DataError, match=r"in.jsonl:2: taxonomy: .*got 'beavertails14' after 'pku19'"):
        card_of(placed(pair(0), pair(1, taxonomy="beavertails14")), "dual")


def test_a_project_is_read_as_it_was_written_and_holds_no_text(tmp_path: Path) -> None:
    pages = make_pages(DUAL, [pair(0, source="own", licence="MIT"), pair(1)])
    write_project(tmp_path, "potato", DUAL, [page.item for page in pages])
    project = read_project(tmp_path)
    assert (project.tool, project.card) == ("potato", DUAL)
    assert list(project.items.values()) == [page.item for page in pages]
    assert "question" not in (tmp_path / "items.jsonl").read_text("utf-8")


def test_a_folder_that_holds_no_project_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no project of `equipoise annotate export`, card.json is missing"):
        read_project(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps({"tool": "potato"}), "utf-8")
    (tmp_path / "items.jsonl").write_text("", "utf-8")
    with pytest.raises(DataError, match=r"card.json or items.jsonl is not as"):
        read_project(tmp_path)
