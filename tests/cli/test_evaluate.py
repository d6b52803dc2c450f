"""`evaluate`, `compare` and `report` as a user types them, on a tiny model with random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.data.io import write_records
from equipoise.errors import ConfigError, DataError, EquipoiseError
from equipoise.lineage import produce
from equipoise.records import Answer, Exchange, Pair, Prompt
from equipoise.training.guard import TRAIN_GUARD, GuardConfig, GuardOptim
from equipoise.training.scorer import TRAIN_SCORER, ScorerConfig, ScorerOptim

SECRET = "a question with the word marmalade"
Ask = Callable[..., str]
Tell = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def shop(ask: Ask, tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, tiny_llama: Path) -> Path:
    """A folder with a guard, a scorer, a file of prompts, and two finished evaluations."""
    place = tmp_path_factory.mktemp("shop")
    exchanges = [
        Exchange(
            id=f"e{i}",
            prompt=f"ask {i}",
            response="bad words" if i % 2 else "good words",
            is_safe=not i % 2,
            severity=2 * (i % 2),
            categories=frozenset({"Violence"} if i % 2 else ()),
            refusal="none" if i % 3 else "full",
            licence="CC0-1.0",
        )
        for i in range(8)
    ]
    pairs = [
        Pair(
            id=f"p{i}",
            prompt=f"ask {i}",
            answers=(Answer(response="good", is_safe=True), Answer(response="bad", is_safe=False)),
            better=i % 2,
            safer=0,
            licence="CC0-1.0",
        )
        for i in range(6)
    ]
    prompts = [
        Prompt(id=f"q{i}", prompt=f"{SECRET} {i}", is_harmful=i < 4, categories=["Violence"] if i < 4 else [])
        for i in range(7)
    ]
    write_records(place / "e.jsonl", exchanges)
    write_records(place / "p.jsonl", pairs)
    write_records(place / "q.jsonl", prompts)
    heads = {"backbone": str(tiny_encoder), "layers": 1, "hidden": 4}
    produce(
        place / "guard",
        TRAIN_GUARD,
        GuardConfig(exchanges=(place / "e.jsonl",), optim=GuardOptim(epochs=1), **heads),
    )
    produce(
        place / "scorer",
        TRAIN_SCORER,
        ScorerConfig(pairs=(place / "p.jsonl",), optim=ScorerOptim(epochs=1), **heads),
    )
    for name, seed in (("a", 0), ("b", 1)):
        ask(*evaluation(place, tiny_llama, name), "--set", f"seed={seed}")
    return place


def evaluation(place: Path, model: Path, name: str) -> list[object]:
    files = ["--judge", place / "guard", "--scorer", place / "scorer", "--out", place / name]
    sampling = ["--set", "max_new_tokens=6", "--set", "temperature=1.0", "--set", "samples=2"]
    return ["evaluate", place / "q.jsonl", "--model", model, *files, *sampling]


def test_evaluate_judges_every_response(shop: Path) -> None:
    rows = [json.loads(line) for line in (shop / "a" / "rows.jsonl").read_text().splitlines()]
    assert [(row["id"], row["sample"]) for row in rows] == [(f"q{i}", s) for i in range(7) for s in range(2)]
    assert all(row["reward"] is not None and row["cost"] is not None for row in rows)
    assert all(row["words"] == len(row["response"].split()) for row in rows)


def test_evaluate_twice_does_nothing_the_second_time(tell: Tell, shop: Path, tiny_llama: Path) -> None:
    found = tell(*evaluation(shop, tiny_llama, "a"), "--set", "seed=0")
    assert found["skipped"] is True
    assert found["metrics"]["prompts"] == {"all": 7, "harmful": 4, "benign": 3}


def test_texts_show_only_when_asked_for(ask: Ask, shop: Path, tiny_llama: Path) -> None:
    common = [*evaluation(shop, tiny_llama, "strict"), "--force"]
    quiet, json_text = ask(*common), ask(*common, "--json")
    assert "Harmful responses to harmful prompts" in quiet
    assert SECRET not in quiet + json_text
    rows = [json.loads(line) for line in (shop / "strict" / "rows.jsonl").read_text().splitlines()]
    shown = ask(*common, "--show-text")
    assert (SECRET in shown) == any(not row["is_safe"] for row in rows)


def test_compare_prints_paired_differences(ask: Ask, shop: Path) -> None:
    text = ask("compare", shop / "a", shop / "b")
    assert "a -> b: 14 responses to 7 prompts, paired" in text
    assert "note: seed was 0 before and 1 after" in text
    found = json.loads(ask("compare", shop / "a", shop / "b", "--json", "--out", shop / "comparison"))
    assert found["metrics"]["harmful_rate"]["difference"]["clusters"] == 4
    assert json.loads((shop / "comparison" / "comparison.json").read_text()) == found


def test_report_writes_a_page_and_names_it(ask: Ask, tell: Tell, shop: Path) -> None:
    page = shop / "report.html"
    text = ask("report", shop / "a", shop / "b", "--out", page, "--label", "base", "--label", "tuned")
    assert text.splitlines()[-1] == str(page)
    html = page.read_text("utf-8")
    assert "train.guard" in html  # the chain is followed back from the evaluations
    found = tell("report", shop / "a", "--out", shop / "r")
    assert found["out"] == str(shop / "r" / "report.html")
    assert found["runs"][0]["name"] == "a"


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        (["evaluate", "--out", "x"], ConfigError, "guard: missing"),
        (["evaluate", "--out", "x", "--judge", "g"], ConfigError, "model, responses: got neither"),
        (["evaluate", "--out", "x", "--model", "m", "--judge", "no-guard"], EquipoiseError, "no-guard"),
        (["evaluate", "--out", "x", "--set", "modle=1"], ConfigError, "modle"),
        (["compare", "nowhere", "there"], DataError, "nowhere: no finished run here"),
        (["report", "nowhere", "--out", "x.html"], DataError, "nowhere: no such file or folder"),
    ],
)
def test_mistakes_are_one_line(
    *, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], kind: Any, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=says) as caught:
        ask(*words)
    assert "\n" not in str(caught.value)
