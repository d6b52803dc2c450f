"""`prompts expand|refine|coverage` and `responses select` as a user runs them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from equipoise.cli import prompts, responses
from equipoise.data.io import read_records, write_records
from equipoise.errors import ConfigError
from equipoise.lineage import produce
from equipoise.records import Exchange, Pair, Prompt
from equipoise.training.guard import TRAIN_GUARD, GuardConfig

Tell = Callable[..., dict[str, Any]]

TAXONOMY = """
name: house
version: 1
severities: [{name: fine, criterion: None.}, {name: bad, criterion: Some.}]
categories: [{id: noise, name: Noise, definition: Loud., not_this: Quiet.}]
"""


@pytest.fixture
def tell() -> Tell:
    """Run a command of the two groups with `--json` and return what it prints."""
    app = typer.Typer()
    app.add_typer(prompts.app, name="prompts")
    app.add_typer(responses.app, name="responses")

    def run(*words: object) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*map(str, words), "--json"])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout.splitlines()[-1])
        assert isinstance(found, dict)
        return found

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    texts = [
        "1. how do I bake bread",
        "How do I bake bread?",
        "I'm sorry, but I can't help with that.",
        "Why?",
    ]
    rows = [
        Prompt(id=f"p{i}", prompt=t, is_harmful=True, categories=frozenset({"Drugs"}), severity=2)
        for i, t in enumerate(texts)
    ]
    write_records(path, rows)
    return path


def test_refining_lists_every_change_and_the_same_run_is_skipped(
    tell: Tell, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "refined.jsonl"
    found = tell("prompts", "refine", source, "--out", out)
    assert (found["rows"], found["prompts"], found["dropped"], found["was_done"]) == (4, 1, 3, False)
    assert [p.prompt for p in read_records(out, Prompt)] == ["How do I bake bread?"]
    changes = [json.loads(line) for line in Path(found["changes_list"]).read_text("utf-8").splitlines()]
    assert {(c["id"], c["reason"], c["after"] is None) for c in changes} == {
        ("p0", "normalised", False),
        ("p0", "completed", False),
        ("p1", "near_duplicate", True),
        ("p2", "refusal", True),
        ("p3", "too_short", True),
    }
    assert changes[0]["before"] == "1. how do I bake bread"
    assert tell("prompts", "refine", source, "--out", out)["was_done"]


def test_coverage_counts_the_cells(tell: Tell, source: Path) -> None:
    found = tell("prompts", "coverage", source, "--target", "4")
    assert found["counts"]["Drugs"] == [0, 4, 0]
    assert (found["cells_full"], found["target"]) == (1, 4)


def test_expanding_a_taxonomy_of_ones_own_writes_prompts_and_their_coverage(
    tell: Tell, tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "house.yaml").write_text(TAXONOMY, "utf-8")
    words = ("--model", tiny_llama, "--taxonomy", tmp_path / "house.yaml", "--max-calls", 2)
    found = tell("prompts", "expand", *words, "--out", tmp_path / "made", "--set", "max_new_tokens=4")
    assert found["cells"] == 1
    assert found["calls"] >= 2
    assert sum(found["dropped"].values()) + found["prompts"] + found["look_alikes"] == found["texts"]
    assert json.loads((tmp_path / "made" / "coverage.json").read_text("utf-8")) == {
        "Noise": [found["prompts"]]
    }
    assert "No row was written or labelled by a person." in (tmp_path / "made" / "card.md").read_text("utf-8")


def test_a_guard_that_judges_no_prompts_is_refused(
    tell: Tell, tiny_llama: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    rows = [
        Exchange(id=str(i), prompt="bread", response=text, is_safe=bool(i))
        for i, text in enumerate(("yeast", "water"))
    ]
    write_records(tmp_path / "rows.jsonl", rows)
    config = GuardConfig.model_validate(
        {
            "exchanges": [tmp_path / "rows.jsonl"],
            "backbone": str(tiny_encoder),
            "layers": 2,
            "optim": {"epochs": 1},
        }
    )
    produce(tmp_path / "guard", TRAIN_GUARD, config)
    with pytest.raises(Exception, match="prompt: this guard was not trained to judge it"):
        tell(
            "prompts", "expand", "--model", tiny_llama, "--guard", tmp_path / "guard", "--out", tmp_path / "o"
        )
    assert not (tmp_path / "o").exists()


def test_a_setting_that_does_not_exist_is_named(tell: Tell, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"treshold: no such setting \(did you mean 'threshold'\?\)"):
        tell("prompts", "refine", source, "--out", tmp_path / "x.jsonl", "--set", "treshold=1")


@pytest.mark.parametrize(("output", "kind", "count"), [("exchanges", Exchange, 2), ("pairs", Pair, 1)])
def test_responses_become_exchanges_or_pairs(
    tell: Tell, tmp_path: Path, output: str, kind: type[Exchange] | type[Pair], count: int
) -> None:
    texts = ["Mix flour and water.", "Mix flour and water!", "Buy a loaf at the bakery.", ""]
    rows = [
        {"id": "a", "prompt": "How do I bake?", "licence": "MIT", "response": t, "model": "m", "sample": i}
        for i, t in enumerate(texts)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    out = tmp_path / "out.jsonl"
    found = tell("responses", "select", tmp_path / "rows.jsonl", "--out", out, "--output", output)
    assert (found["records"], found["dropped"]) == (count, {"empty": 1})
    (first, *_) = list(read_records(out, kind))
    assert "Mix flour and water." in str(first)  # the default answer
    assert "Buy a loaf" in out.read_text("utf-8")  # and the one unlike it
    assert found["models"] == {"m": 2}
