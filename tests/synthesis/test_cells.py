"""Which cells prompts fill, and which examples belong to a cell."""

from pathlib import Path

import pytest

from equipoise.data.io import write_records
from equipoise.errors import TaxonomyError
from equipoise.records import Prompt
from equipoise.synthesis.cells import Cell, cells_in, coverage, load_examples
from equipoise.taxonomy import load_taxonomy


def prompt(
    *categories: str, severity: int | None = 2, asked: str | None = None, harmful: bool = True
) -> Prompt:
    provenance = {} if asked is None else {"asked": {"category": asked, "severity": severity}}
    return Prompt(
        id="a",
        prompt="text",
        is_harmful=harmful,
        categories=frozenset(categories),
        severity=severity,
        provenance=provenance,
    )


@pytest.mark.parametrize(
    ("made", "cells"),
    [
        (prompt("Violence", "Drugs"), [Cell("Drugs", 2), Cell("Violence", 2)]),
        (prompt("Violence", "Drugs", asked="Violence"), [Cell("Violence", 2)]),
        (prompt("Drugs", asked="Violence"), []),
        (prompt("Drugs", severity=None), []),
        (prompt(severity=0, harmful=False), []),
    ],
)
def test_a_prompt_fills_the_cell_it_was_made_for_or_all_of_its_own(made: Prompt, cells: list[Cell]) -> None:
    assert cells_in(made) == cells


def test_coverage_counts_cells_and_those_that_reach_the_target() -> None:
    found = coverage([prompt("Drugs")] * 3 + [prompt("Violence", severity=1)] * 2, load_taxonomy("pku19"))
    assert found.counts == {Cell("Drugs", 2): 3, Cell("Violence", 1): 2}
    assert (found.filled(2), found.filled(3), found.filled(4)) == (2, 1, 0)
    assert found.to_json()["Drugs"] == [0, 3, 0]
    assert "| Drugs | 0 | 3 | 0 |" in found.markdown(3)
    assert "1 of 57 cells hold at least 3 prompts." in found.markdown(3)


def test_the_built_in_corpus_has_examples_of_every_cell() -> None:
    taxonomy = load_taxonomy("pku19")
    examples = load_examples(taxonomy, None)
    for name in taxonomy.names:
        assert {severity for severity, _ in examples.by_category[name]} == {1, 2, 3}
        assert examples.near(Cell(name, 3))[0] in {t for s, t in examples.by_category[name] if s == 3}


def test_examples_of_the_users_own_come_from_a_file(tmp_path: Path) -> None:
    write_records(tmp_path / "own.jsonl", [prompt("Violence")])
    assert load_examples(load_taxonomy("pku19"), tmp_path / "own.jsonl").texts() == ["text"]
    write_records(tmp_path / "odd.jsonl", [prompt("Violense")])
    with pytest.raises(TaxonomyError, match="no category 'Violense'"):
        load_examples(load_taxonomy("pku19"), tmp_path / "odd.jsonl")


def test_another_taxonomy_has_no_examples_without_a_file() -> None:
    assert load_examples(load_taxonomy("beavertails14"), None).texts() == []
